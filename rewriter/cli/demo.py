"""The whole way on a small model of handwritten digits that ships with the package."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from rewriter import keras_compat
from rewriter.checking import interpreter
from rewriter.checking.fold import fold
from rewriter.checking.verify import verify
from rewriter.errors import RewriterError
from rewriter.export import export_tflite
from rewriter.files.replacing import replacing, write_bytes
from rewriter.quantization import phases
from rewriter.reading.load import load_model
from rewriter.rewriting.plan import plan
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate

MODEL = Path(__file__).parents[1] / "assets" / "digits_saved_model"
CALIBRATION_SAMPLES = 256
_QAT, _RESULTS = "qat.keras", "results.json"
_INTEGER, _FLOAT = "digits_int8.tflite", "digits_float.tflite"
_FILES = (_QAT, _INTEGER, _FLOAT, _RESULTS)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images float32 (N, 8, 8, 1) in 0..1 and their digits, int (N,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits() -> Digits:
    """scikit-learn's 1,797 handwritten digits: 70 % to train, 30 % to test, always the same."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=0.3, random_state=0, stratify=labels
    )
    return Digits(x_train, y_train, x_test, y_test)


def run(output: Path | None, *, epochs: int = 3, say: Callable[[str], None] = print) -> None:
    """Load, plan, calibrate, fine-tune, export and verify; say what comes out.

    Args:
      output: a folder for the files, made if it is not there; None for a temporary one. Files of
        another run of the demo in it are replaced.
      epochs: of fine-tuning.
      say: gets the lines to show.

    Raises:
      RewriterError, OSError: as the steps do.
    """
    begin = time.perf_counter()
    with _folder(output) as folder:
        kept = "" if output else " (removed at the end; keep the files with --output DIR)"
        say(f"Files go to {folder}{kept}\n")
        _run(folder, epochs, say)
        say(f"\n{time.perf_counter() - begin:.0f} s.")


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    if output is None:
        with tempfile.TemporaryDirectory(prefix="rewriter-demo-") as name:
            yield Path(name)
    else:
        output.mkdir(parents=True, exist_ok=True)
        # Where its own integer file lies it has been before, and may replace the others, too.
        others = [name for name in _FILES if os.path.lexists(output / name)]
        if others and not (output / _INTEGER).is_file():
            raise RewriterError(
                f"{str(output)!r} holds a file {others[0]!r}, which the demo would replace. "
                "Choose another folder."
            )
        yield output


def _run(folder: Path, epochs: int, say: Callable[[str], None]) -> None:
    data = digits()
    model = load_model(MODEL)
    say(f"The trained model:\n{plan(model)}\n")

    qat = rewrite(model)
    calibrate(qat, data.x_train[:CALIBRATION_SAMPLES], progress=False)
    calibrated = _accuracy(qat, data)

    keras = keras_compat.flavour_of(qat).keras
    keras.utils.set_random_seed(0)
    qat.compile(
        keras.optimizers.SGD(0.0005, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(),
        metrics=["accuracy"],
    )
    say(f"Fine-tuning in phase {phases.get_phase(qat)!r}:")
    qat.fit(data.x_train, data.y_train, epochs=epochs, batch_size=32, verbose=2)
    with replacing(folder / _QAT) as path:
        qat.save(path)

    integer_path = folder / _INTEGER
    report = export_tflite(qat, integer_path)
    say(f"\nThe file:\n{report}")
    verification = verify(qat, integer_path, data.x_test, progress=False)
    say(f"\nThe file against its twin on the test images:\n{verification}")
    float_file = float_tflite(model)
    write_bytes(folder / _FLOAT, float_file)

    results = Results(
        accuracy={
            "trained model, float": _accuracy(model, data),
            "calibrated, not fine-tuned": calibrated,
            "fine-tuned (QAT)": _accuracy(qat, data),
            "twin of the file": _accuracy(fold(qat), data),
            "int8 file, in LiteRT": file_accuracy(
                integer_path.read_bytes(), data.x_test, data.y_test
            ),
        },
        bytes={
            "SavedModel, float": sum(f.stat().st_size for f in MODEL.rglob("*") if f.is_file()),
            "tflite, float": len(float_file),
            "tflite, int8": report.bytes,
        },
    )
    say(f"\n{results}")
    write_bytes(folder / _RESULTS, results.to_json().encode())


@dataclasses.dataclass(frozen=True)
class Results:
    """What the demo found: shares of correct test images, and sizes in bytes."""

    accuracy: dict[str, float]
    bytes: dict[str, int]

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        rows = [("accuracy on the test images", "")]
        rows += [(f"  {name}", f"{100 * share:.2f} %") for name, share in self.accuracy.items()]
        rows += [("size", "")]
        rows += [(f"  {name}", f"{size:,} bytes") for name, size in self.bytes.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value:>14}".rstrip() for name, value in rows)


def _accuracy(model: Any, data: Digits) -> float:
    scores = model.predict(data.x_test, verbose=0)
    return float(np.mean(np.argmax(scores, -1) == data.y_test))


def file_accuracy(content: bytes, inputs: np.ndarray, labels: np.ndarray) -> float:
    """The share of samples that a ``.tflite`` classifier with one input gets right."""
    (scores,) = interpreter.run(content, [inputs])
    return float(np.mean(np.argmax(scores, -1) == labels))


def float_tflite(model: Any) -> bytes:
    """The plain float file that TensorFlow's converter makes of a model."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()
    finally:
        logger.setLevel(level)
