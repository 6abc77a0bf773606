"""Seconds and memory of every stage from a saved model to a verified file, for one model."""

from __future__ import annotations

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
    """One model: a chain of ``blocks``, or the application ``name`` where ``blocks`` is 0.

    ``side``: height and width of an application's input; 0: the usual one.
    """

    keras: str
    name: str
    blocks: int = 0
    side: int = 0

    def __str__(self) -> str:
        sized = f" at {self.side}" if self.side else ""
        return f"{self.name} of {self.blocks}" if self.blocks else f"{self.name}{sized}"

    def build(self) -> Any:
        """The model with random weights; those of an application keep its signal alive."""
        keras = importlib.import_module(self.keras)
        if self.blocks:
            return scaling.KINDS[self.name](keras, self.blocks)
        size = self.side or architectures.side(self.name)
        model = architectures.build(keras, self.name, input_shape=(size, size, 3))
        architectures.set_statistics(model, architectures.smooth_images(8, size, 0))
        return model

    def data(self, count: int) -> np.ndarray:
        """Inputs of the model, float32."""
        if self.blocks:
            return np.random.default_rng(1).normal(size=(count, 2, 2, 2)).astype(np.float32)
        return architectures.smooth_images(count, self.side or architectures.side(self.name), 1)


def stages(case: Case, rounds: int, folder: Path) -> Iterator[tuple[str, Any]]:
    """``(stage, reading)`` one after the other, and ``("layers", count)`` and the like."""
    import rewriter

    keras = importlib.import_module(case.keras)
    _allow_deep(case)
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
    yield from exports(rewriter, qat, folder / "model.tflite", rounds)
    yield (
        "verify",
        meter.read(lambda: rewriter.verify(qat, folder / "model.tflite", data[:2], progress=False))[
            0
        ],
    )


def _first_uses(rewriter: Any, keras: Any, folder: Path) -> None:
    """Imports and first uses are nobody's."""
    from benchmarks import usual_converter
    from rewriter.lowering.lower import lower

    model, data = scaling.chain(keras, 2), np.ones((4, 2, 2, 2), "float32")
    model.save(folder / "first.keras")
    qat = rewriter.rewrite(rewriter.load_model(folder / "first.keras"))
    rewriter.calibrate(qat, data, progress=False)
    rewriter.export_tflite(qat, folder / "first.tflite")
    rewriter.verify(qat, folder / "first.tflite", data[:1], progress=False)
    usual_converter.convert(usual_converter.converter(lower(qat)))


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


def exports(rewriter: Any, qat: Any, path: Path, rounds: int) -> Iterator[tuple[str, Any]]:
    """The export and TensorFlow's converter on the same operators, in turn: the median of each.

    Also the difference of the operators of the two files, which should be empty.
    """
    from benchmarks import usual_converter
    from rewriter.checking import reading
    from rewriter.lowering.lower import lower

    ours, theirs, content = [], [], b""
    for _ in range(rounds):
        ours.append(meter.read(lambda: rewriter.export_tflite(qat, path))[0])
        made = usual_converter.converter(lower(qat))
        taken, content = meter.read(lambda made=made: usual_converter.convert(made))
        theirs.append(taken)
        del made
    yield "export", _median(ours)
    yield "usual converter", _median(theirs)
    counts = [reading.census(c).operators for c in (content, path.read_bytes())]
    gaps = {k: counts[0].get(k, 0) - counts[1].get(k, 0) for k in sorted({*counts[0], *counts[1]})}
    yield "operators", sum(counts[1].values())
    yield "other operators", {kind: gap for kind, gap in gaps.items() if gap}


def _median(readings: list[meter.Reading]) -> meter.Reading:
    """By the clock."""
    return sorted(readings, key=lambda reading: reading.wall)[len(readings) // 2]


def added_memory(case: Case, stage: str) -> float:
    """MB that one ``export``, or one run of the ``usual converter``, adds to this process.

    For a process of its own, in which neither has run on the model before: what one of them leaves
    behind would be found by the other.
    """
    import rewriter
    from benchmarks import usual_converter
    from rewriter.lowering.lower import lower

    keras = importlib.import_module(case.keras)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        _first_uses(rewriter, keras, Path(folder))
        _allow_deep(case)
        qat = rewriter.rewrite(case.build())
        rewriter.calibrate(qat, case.data(BATCH), batch_size=BATCH, progress=False)
        if stage == "export":
            return meter.read(lambda: rewriter.export_tflite(qat, path))[0].peak
        made = usual_converter.converter(lower(qat))
        return meter.read(lambda: usual_converter.convert(made))[0].peak


def _allow_deep(case: Case) -> None:
    """Let Keras walk a long chain by recursion."""
    frames = scaling.FRAMES_PER_LAYER * 5 * max(case.blocks, 200)
    sys.setrecursionlimit(max(sys.getrecursionlimit(), frames))


def per_sample(
    rewriter: Any, keras: Any, model: Any, qat: Any, data: np.ndarray, rounds: int
) -> dict[str, float]:
    """Seconds that calibrate and predict take for a sample once they are under way.

    From one batch to the next, the first ones left out, so that tracing does not count; medians
    over all batches of all rounds, which take turns.
    """
    module = sys.modules["rewriter.training.calibrate"]
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


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Everything about one case, as JSON values."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(stages(case, rounds, Path(folder)))
    plain = {
        key: dataclasses.asdict(value) if isinstance(value, meter.Reading) else value
        for key, value in found.items()
    }
    return {**dataclasses.asdict(case), **plain}
