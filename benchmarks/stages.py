"""Seconds and memory of every stage from a saved model to a verified file, for one model."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import architectures, meter, scaling

STAGES = (
    "Keras's load",
    "load",
    "plan",
    "rewrite",
    "clone",
    "TFMOT",
    "calibrate",
    "export",
    "verify",
)
TFMOT_BLOCKS = 200  # longer chains take it minutes: it starts anew after every match
BATCH, BATCHES, WARM_UP = 16, 16, 2


@dataclasses.dataclass(frozen=True)
class Case:
    """One model: a chain of ``blocks``, or the application ``name`` where ``blocks`` is 0."""

    keras: str
    name: str
    blocks: int = 0

    def __str__(self) -> str:
        return f"{self.name} of {self.blocks}" if self.blocks else self.name

    def build(self) -> Any:
        """The model with random weights; those of an application keep its signal alive."""
        keras = importlib.import_module(self.keras)
        if self.blocks:
            return scaling.KINDS[self.name](keras, self.blocks)
        model = architectures.build(keras, self.name)
        architectures.set_statistics(model, architectures.images(self.name, 8, 0))
        return model

    def data(self, count: int) -> np.ndarray:
        """Inputs of the model, float32."""
        if self.blocks:
            return np.random.default_rng(1).normal(size=(count, 2, 2, 2)).astype(np.float32)
        return architectures.images(self.name, count, 1)


def stages(case: Case, rounds: int, folder: Path) -> Iterator[tuple[str, Any]]:
    """``(stage, reading)`` one after the other, and ``("layers", count)`` and the like."""
    import rewriter

    keras = importlib.import_module(case.keras)
    blocks = max(case.blocks, 200)
    sys.setrecursionlimit(max(sys.getrecursionlimit(), scaling.FRAMES_PER_LAYER * 5 * blocks))
    _first_uses(rewriter, keras, folder)
    path = folder / "model.keras"
    case.build().save(path)
    keras.backend.clear_session()
    yield "Keras's load", meter.read(lambda: keras.models.load_model(path))[0]
    keras.backend.clear_session()
    reading, model = meter.read(lambda: rewriter.load_model(path))
    yield "layers", len(model.layers)
    yield "load", reading
    yield "plan", meter.read(lambda: rewriter.plan(model))[0]
    reading, qat = meter.read(lambda: rewriter.rewrite(model))
    yield "rewrite", reading
    yield "clone", meter.read(lambda: keras.models.clone_model(model))[0]
    yield "TFMOT", _tfmot(case, model)
    data = case.data(BATCH * BATCHES)
    reading, _ = meter.read(
        lambda: rewriter.calibrate(qat, data[:BATCH], batch_size=BATCH, progress=False)
    )
    yield "calibrate", reading
    yield "per sample", per_sample(rewriter, keras, model, qat, data, rounds)
    reading, converter, stock = _exports(rewriter, qat, folder / "model.tflite", rounds)
    yield "export", reading
    yield "converter", converter
    yield "stock converter", stock
    yield (
        "verify",
        meter.read(lambda: rewriter.verify(qat, folder / "model.tflite", data[:2], progress=False))[
            0
        ],
    )


def _first_uses(rewriter: Any, keras: Any, folder: Path) -> None:
    """Imports and first uses are nobody's."""
    model, data = scaling.chain(keras, 2), np.ones((4, 2, 2, 2), "float32")
    model.save(folder / "first.keras")
    qat = rewriter.rewrite(rewriter.load_model(folder / "first.keras"))
    rewriter.calibrate(qat, data, progress=False)
    rewriter.export_tflite(qat, folder / "first.tflite")
    rewriter.verify(qat, folder / "first.tflite", data[:1], progress=False)


def _tfmot(case: Case, model: Any) -> Any:
    """The reading of quantize_apply; or why there is none."""
    if case.keras != "tf_keras":
        return "no Keras 3"
    if case.blocks > TFMOT_BLOCKS:
        return "not tried"
    import tensorflow_model_optimization as tfmot

    keras = tfmot.quantization.keras
    try:
        annotated = keras.quantize_annotate_model(model)
        return meter.read(lambda: keras.quantize_apply(annotated))[0]
    except Exception as error:  # whatever it raises is its answer
        return f"refused: {type(error).__name__}"


def _exports(
    rewriter: Any, qat: Any, path: Path, rounds: int
) -> tuple[meter.Reading, float, float]:
    """The export with the median share of the converter, and what the converter takes.

    Where memory is new to the process, a single one can be off by a tenth either way.

    Returns:
      The reading of the export; seconds that it spends in the converter; seconds that
      ``TFLiteConverter.from_concrete_functions``, the usual way, takes for the same operators: the
      median, in turn with the exports.
    """
    found, stock = [], []
    for _ in range(rounds):
        inside: list[float] = []
        with _timed_converter(inside):
            reading, _ = meter.read(lambda: rewriter.export_tflite(qat, path))
        found.append((reading, sum(inside)))
        stock.append(_stock_converter(qat).wall)
    reading, converter = sorted(found, key=lambda each: each[1] / each[0].wall)[rounds // 2]
    return reading, converter, float(np.median(stock))


def _stock_converter(qat: Any) -> meter.Reading:
    """``TFLiteConverter.from_concrete_functions`` alone, its function traced beforehand."""
    from rewriter.litert import convert, emit_program, patching
    from rewriter.lower import lower

    program = lower(qat)
    with convert.quiet():
        usual = emit_program.function_converter(program, patching.barrier_slopes(program), {})
        return meter.read(usual.convert)[0]


def per_sample(
    rewriter: Any, keras: Any, model: Any, qat: Any, data: np.ndarray, rounds: int
) -> dict[str, float]:
    """Seconds that calibrate and predict take for a sample once they are under way.

    From one batch to the next, the first ones left out, so that tracing does not count; medians
    over all batches of all rounds, which take turns.
    """
    module = sys.modules["rewriter.calibrate"]
    original, stamps = module.batches_of, []

    def stamp(*_: Any, **__: Any) -> None:
        stamps.append((time.perf_counter(), time.process_time()))

    def batches_of(*args: Any) -> tuple[Iterator[Any], int | None]:
        batches, count = original(*args)

        def stamped() -> Iterator[Any]:
            for batch in batches:
                stamp()
                yield batch

        return stamped(), count

    def calibrate() -> None:
        with mock.patch.object(module, "batches_of", batches_of):
            rewriter.calibrate(qat, data, batch_size=BATCH, progress=False)

    def predict() -> None:
        callback = keras.callbacks.LambdaCallback()
        callback.on_predict_batch_begin = stamp
        model.predict(data, batch_size=BATCH, verbose=0, callbacks=[callback])

    found: dict[str, list[np.ndarray]] = {"calibrate": [], "predict": []}
    for _ in range(rounds):
        for name, function in (("calibrate", calibrate), ("predict", predict)):
            stamps.clear()
            function()
            found[name].append(np.diff(np.array(stamps), axis=0)[WARM_UP:] / BATCH)
    return {
        f"{name} {clock}": float(np.median(np.concatenate(values)[:, index]))
        for name, values in found.items()
        for index, clock in enumerate(("wall", "cpu"))
    }


@contextlib.contextmanager
def _timed_converter(seconds: list[float]) -> Iterator[None]:
    """While it is entered, what a ``convert`` of TensorFlow's takes is appended to ``seconds``."""
    import tensorflow as tf

    def timed(original: Any) -> Any:
        def convert(self: Any) -> bytes:
            start = time.perf_counter()
            try:
                return original(self)
            finally:
                seconds.append(time.perf_counter() - start)

        return convert

    with contextlib.ExitStack() as stack:
        for owner in (tf.lite.TFLiteConverter, tf.compat.v1.lite.TFLiteConverter):
            stack.enter_context(mock.patch.object(owner, "convert", timed(owner.convert)))
        yield


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Everything about one case, as JSON values."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(stages(case, rounds, Path(folder)))
    plain = {
        key: dataclasses.asdict(value) if isinstance(value, meter.Reading) else value
        for key, value in found.items()
    }
    return {**dataclasses.asdict(case), **plain}
