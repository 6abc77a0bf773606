"""Accuracy of exported files on real tasks: calibrated by each method, and fine-tuned by recipe.

The models are those of ``../shared`` and the digits of the demo, the data for calibration and
fine-tuning are held apart from the test's. Fine-tuning needs no labels: the loss is the divergence
from the float model's outputs (distillation), so that classes that the data lack are not
forgotten. What is measured is the file in LiteRT, on all test samples; beside it TensorFlow's own
post-training quantization. Rows with several seeds give mean and standard error.

    python benchmarks/accuracy.py --results benchmarks/ACCURACY.md --rows build/accuracy.json

``--rows`` keeps what has been measured, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image
from tqdm.auto import tqdm

import rewriter
from benchmarks import report
from rewriter.checking import interpreter
from rewriter.cli import demo
from rewriter.quantization.quantizers import CALIBRATIONS

SHARED = Path(os.environ.get("REWRITER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CALIBRATED = 256  # samples
TUNED = ("int8", "w4a8", "w4a8-small")
EPOCHS, RATE, BATCH = 3, 1e-5, 32


def _kws() -> tuple[Any, ...]:
    test = np.load(SHARED / "datasets/mlperf_kws01/perf_kws01.npz")
    extra = np.load(SHARED / "datasets/kws_extra/speech_commands_mfcc_2400.npz")["x"]
    x = (test["x"].astype(np.float32) - 83) * 0.5847029
    return SHARED / "models/mlperf_kws01/kws_ref_model", extra, x, test["y"]


def _ic() -> tuple[Any, ...]:
    data = np.load(SHARED / "datasets/cifar10_subset/cifar10_subset.npz")
    train, x = (data[name].astype(np.float32) for name in ("x_train", "x_test"))
    return SHARED / "models/mlperf_ic01/pretrainedResnet.h5", train, x, data["y_test"].ravel()


def _ic_jpeg() -> tuple[Any, ...]:
    data = np.load(SHARED / "datasets/cifar10_jpeg/cifar10_jpeg.npz")
    x = {}
    for part in ("train", "test"):
        files, ends = data[f"jpeg_{part}"], data[f"offsets_{part}"]
        # Of the 50,000 to train on every tenth: enough to draw from.
        chosen = range(0, len(ends) - 1, 10 if part == "train" else 1)
        images = (Image.open(io.BytesIO(files[ends[i] : ends[i + 1]].tobytes())) for i in chosen)
        x[part] = np.stack([np.asarray(image, np.float32) for image in images])
    path = SHARED / "models/mlperf_ic01/pretrainedResnet.h5"
    return path, x["train"], x["test"], data["y_test"].ravel()


def _digits() -> tuple[Any, ...]:
    data = demo.digits()
    return demo.MODEL, data.x_train, data.x_test, data.y_test


TASKS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "kws01": _kws,
    "ic01": _ic,
    "digits": _digits,
    "ic01_jpeg": _ic_jpeg,
}
DRAWS = {"ic01_jpeg": 4}  # of the samples for calibration; such a task is not trained


class Task:
    """A trained model with data; ``train`` (N, ...) has no labels."""

    def __init__(self, name: str):
        self.path, self.train, self.x, self.y = TASKS[name]()
        self.model = rewriter.load_model(self.path)
        self.decided = self.model.predict(self.x, verbose=0, batch_size=256).argmax(-1)
        self.wanted = self.model.predict(self.train, verbose=0)
        self.softmax = bool(np.allclose(self.wanted.sum(-1), 1, atol=1e-3))

    def sample(self, seed: int) -> np.ndarray:
        """To calibrate with."""
        order = np.random.default_rng(seed).permutation(len(self.train))
        return self.train[order[:CALIBRATED]]

    def accuracy(self, outputs: np.ndarray) -> float:
        return 100 * float(np.mean(outputs.reshape(len(self.x), -1).argmax(-1) == self.y))

    def of_file(self, content: bytes) -> dict[str, float]:
        (outputs,) = interpreter.run(content, [self.x])
        same = outputs.reshape(len(self.x), -1).argmax(-1) == self.decided
        own = {"as float": 100 * float(np.mean(same)), "bytes": len(content)}
        return {"accuracy": self.accuracy(outputs)} | own

    def exported(self, qat: Any, folder: Path) -> dict[str, float]:
        path = folder / "accuracy.tflite"
        rewriter.export_tflite(qat, path)
        own = {"model": self.accuracy(qat.predict(self.x, verbose=0))}
        return self.of_file(path.read_bytes()) | own


def float_model(task: Task, folder: Path, seed: int) -> dict[str, float]:
    return {"accuracy": 100 * float(np.mean(task.decided == task.y))}


def tensorflow_ptq(task: Task, folder: Path, seed: int) -> dict[str, float]:
    converter = tf.lite.TFLiteConverter.from_keras_model(task.model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in task.sample(seed))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return task.of_file(converter.convert())


def calibrated(recipe: str, method: str) -> Callable[..., dict[str, float]]:
    def run(task: Task, folder: Path, seed: int) -> dict[str, float]:
        qat = rewriter.rewrite(task.model, recipe)
        rewriter.calibrate(qat, task.sample(seed), method=method, progress=False)
        return task.exported(qat, folder)

    return run


def fine_tuned(recipe: str, method: str) -> Callable[..., dict[str, float]]:
    def run(task: Task, folder: Path, seed: int) -> dict[str, float]:
        tf_keras.utils.set_random_seed(seed)
        qat = rewriter.rewrite(task.model, recipe)
        rewriter.calibrate(qat, task.sample(0), method=method, progress=False)
        rewriter.freeze_batch_norm(qat)
        steps = EPOCHS * len(task.train) // BATCH
        schedule = tf_keras.optimizers.schedules.CosineDecay(RATE, steps)
        loss = (
            tf_keras.losses.KLDivergence() if task.softmax else tf_keras.losses.MeanSquaredError()
        )
        qat.compile(tf_keras.optimizers.Adam(schedule), loss)
        qat.fit(task.train, task.wanted, batch_size=BATCH, epochs=EPOCHS, verbose=0)
        return task.exported(qat, folder)

    return run


ROWS: dict[str, tuple[int, Callable[..., dict[str, float]]]] = {
    "float": (1, float_model),
    "TensorFlow PTQ int8": (1, tensorflow_ptq),
    **{f"calibrated int8, {m}": (1, calibrated("int8", m)) for m in CALIBRATIONS},
    **{f"calibrated {r}, percentile": (1, calibrated(r, "percentile")) for r in TUNED[1:]},
    "calibrated int16x8, minmax": (1, calibrated("int16x8", "minmax")),
    "fine-tuned int8, minmax": (3, fine_tuned("int8", "minmax")),
    **{f"fine-tuned {r}, percentile": (3, fine_tuned(r, "percentile")) for r in TUNED},
}


def _table(rows: dict[str, list[dict[str, float]]], tasks: list[str]) -> str:
    lines = []
    for label in ROWS:
        cells: list[str] = [label]
        for task in tasks:
            found = rows.get(f"{task}: {label}", [])
            if not found:
                cells += ["", "", "", ""]
                continue
            values = [row["accuracy"] for row in found]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            cells.append(
                f"{statistics.mean(values):.2f}" + (f" ± {error:.2f}" if error is not None else "")
            )
            own = [row["model"] for row in found if "model" in row]
            cells.append(f"{statistics.mean(own):.2f}" if own else "")
            same = [row["as float"] for row in found if "as float" in row]
            cells.append(f"{statistics.mean(same):.2f}" if same else "")
            cells.append(f"{found[0]['bytes'] / 1024:.0f}" if "bytes" in found[0] else "")
        lines.append(cells)
    header = [
        "row",
        *(
            f"{task} {what}"
            for task in tasks
            for what in ("file %", "model %", "as float %", "KiB")
        ),
    ]
    return report.table(header, lines)


def main() -> None:
    """Measure what is not in ``--rows`` yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--rows", type=Path, default=Path("build/accuracy.json"))
    parser.add_argument("--results", type=Path, help="replace this benchmark's section of the file")
    args = parser.parse_args()
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(args.rows.read_text()) if args.rows.exists() else {}
    for name in args.tasks:
        task = Task(name)
        for label, (seeds, measure) in tqdm(ROWS.items(), desc=name):
            if name in DRAWS and label.startswith("fine-tuned"):
                continue
            found = rows.setdefault(f"{name}: {label}", [])
            draws = DRAWS.get(name, 1) if label.startswith("calibrated") else 1
            for seed in range(len(found), max(seeds, draws)):
                found.append(measure(task, args.rows.parent, seed))
                args.rows.write_text(json.dumps(rows, indent=1))
    text = _table(rows, args.tasks)
    print(text)
    if args.results:
        words = (
            f"`{report.command()}`\n\nAccuracy in percent, of the file in LiteRT and of the model "
            f"in Keras, and the file's size. Calibrated with {CALIBRATED} samples; fine-tuned for "
            f"{EPOCHS} epochs of Adam from {RATE:g} on the float model's outputs, statistics "
            f"frozen; three seeds. ic01_jpeg: four draws of "
            f"the samples.\n\n{text}"
        )
        report.replace_section(args.results, "Accuracy", words)


if __name__ == "__main__":
    main()
