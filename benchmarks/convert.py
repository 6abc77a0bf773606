"""Seconds and memory of every stage from a saved model to a verified file.

Chains of blocks (see scaling.py) tell how the stages grow with the number of layers, large
applications what they cost in practice. Every case runs in a process of its own. Beside them:
Keras's ``load_model``, ``clone_model`` and ``predict``, and TFMOT's ``quantize_apply`` of the
models that it takes.

The bars: a sample takes ``calibrate``, once it is under way, at most 1.3 times as long as
``predict``, and at least 80 % of ``export`` is spent inside TensorFlow's converter.

    python benchmarks/convert.py --quick
    python benchmarks/convert.py --keras tf_keras keras --results benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm.auto import tqdm

from benchmarks import architectures, meter, report, scaling

QUICK = (10, 20, 40)
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
PER_SAMPLE_BAR, CONVERTER_BAR = 1.3, 0.8
TFMOT_BLOCKS = 200  # longer chains take it minutes: it starts anew after every match
BATCH, BATCHES, WARM_UP = 16, 16, 2
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = ["tensorflow", "tf_keras", "keras", "rewriter", "benchmarks.scaling"]


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
    inside: list[float] = []
    with _timed_converter(inside):
        reading, _ = meter.read(lambda: rewriter.export_tflite(qat, folder / "model.tflite"))
    yield "export", reading
    yield "converter", sum(inside)
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


def _timed_converter(seconds: list[float]) -> Any:
    """While it is entered, what TFLiteConverter.convert takes is appended to ``seconds``."""
    import tensorflow as tf

    original = tf.lite.TFLiteConverter.convert

    def convert(self: Any) -> bytes:
        start = time.perf_counter()
        try:
            return original(self)
        finally:
            seconds.append(time.perf_counter() - start)

    return mock.patch.object(tf.lite.TFLiteConverter, "convert", convert)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Everything about one case, as JSON values."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(stages(case, rounds, Path(folder)))
    plain = {
        key: dataclasses.asdict(value) if isinstance(value, meter.Reading) else value
        for key, value in found.items()
    }
    return {**dataclasses.asdict(case), **plain}


def _cell(value: Any, digits: int = 2) -> str:
    if isinstance(value, str):
        return value
    return f"{value['cpu']:.{digits}f} ({value['wall']:.{digits}f})"


def ratios(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What the bars and the comparisons are about."""
    sample, clone = row["per sample"], row["clone"]["cpu"]
    peer = row["TFMOT"]
    return {
        "rewrite / clone": row["rewrite"]["cpu"] / clone,
        "TFMOT / clone": None if isinstance(peer, str) else peer["cpu"] / clone,
        "calibrate / predict": sample["calibrate wall"] / sample["predict wall"],
        "calibrate / predict, CPU": sample["calibrate cpu"] / sample["predict cpu"],
        "converter": row["converter"] / row["export"]["wall"],
    }


def growth(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """How each stage grows with the number of blocks: CPU seconds, by scaling's exponents."""
    lines = []
    for stage in STAGES:
        kept = [
            {"blocks": row["blocks"], stage: row[stage]["cpu"]}
            for row in rows
            if not isinstance(row[stage], str)
        ]
        if len(kept) > 2:
            slope, quality = scaling.fit(kept, stage)
            steps = ", ".join(f"{e:.2f}" for e in scaling.exponents(kept, stage))
            lines.append([stage, f"{slope:.2f}", f"{quality:.3f}", steps])
    return lines


def rendered(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables in Markdown, for one Keras."""
    label = [str(Case(row["keras"], row["name"], row["blocks"])) for row in rows]
    times, peaks, bars = [], [], []
    for name, row in zip(label, rows, strict=True):
        times.append([name, row["layers"], *(_cell(row[stage]) for stage in STAGES)])
        peaks.append([name, *("" if isinstance(row[stage], str) else f"{row[stage]['peak']:.0f}"
                              for stage in STAGES)])  # fmt: skip
        found, sample = ratios(row), row["per sample"]
        bars.append(
            [
                name,
                f"{found['rewrite / clone']:.2f}",
                "" if found["TFMOT / clone"] is None else f"{found['TFMOT / clone']:.2f}",
                f"{1e3 * sample['calibrate wall']:.2f}",
                f"{1e3 * sample['predict wall']:.2f}",
                f"{found['calibrate / predict']:.2f}",
                f"{found['calibrate / predict, CPU']:.2f}",
                f"{found['converter']:.0%}",
            ]
        )
    parts = [
        "CPU seconds (those of the clock). *calibrate*: one batch of "
        f"{BATCH}, with the tracing; *verify*: two samples.",
        report.table(["model", "layers", *STAGES], times),
        "Peak memory in MB, above what was resident before the stage.",
        report.table(["model", *STAGES], peaks),
        "Bars: *calibrate / predict* for a sample, once under way, at most "
        f"{PER_SAMPLE_BAR}; the converter's share of *export*, at least {CONVERTER_BAR:.0%}.",
        report.table(
            ["model", "rewrite / clone", "TFMOT / clone", "calibrate ms", "predict ms",
             "calibrate / predict", "the same, CPU", "converter's share"],
            bars,
        ),
    ]  # fmt: skip
    for kind in dict.fromkeys(row["name"] for row in rows if row["blocks"]):
        lines = growth([row for row in rows if row["name"] == kind and row["blocks"]])
        if lines:
            parts.append(
                f"Growth of *{kind}*: straight line, and exponents between neighbouring lengths "
                "(1 is linear)."
            )
            parts.append(report.table(["stage", "ms a block", "R^2", "exponents"], lines))
    return "\n\n".join(parts)


def cases(args: argparse.Namespace, keras: str) -> list[Case]:
    """What was asked for."""
    chains = [Case(keras, kind, n) for kind in args.kinds for n in sorted(args.blocks)]
    return [*chains, *(Case(keras, name) for name in args.applications)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keras", nargs="+", choices=("tf_keras", "keras"), default=["tf_keras"])
    parser.add_argument("--kinds", nargs="*", choices=list(scaling.KINDS), default=["chain"])
    parser.add_argument("--blocks", nargs="*", type=int)
    parser.add_argument("--applications", nargs="*", choices=list(architectures.FAMILY))
    parser.add_argument("--rounds", type=int, default=2, help="of calibrate and predict")
    parser.add_argument("--quick", action="store_true", help=f"chains of {QUICK} blocks only")
    parser.add_argument("--results", type=Path, help="replace this benchmark's section of the file")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    if args.blocks is None:
        args.blocks = list(QUICK if args.quick else scaling.BLOCKS)
    if args.applications is None:
        args.applications = [] if args.quick else ["ResNet50", "EfficientNetB7"]
    before = report.load()
    todo = [case for keras in args.keras for case in cases(args, keras)]
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    found: dict[str, list[dict[str, Any]]] = {keras: [] for keras in args.keras}
    bar = tqdm(todo, desc="models")
    for case in bar:
        bar.set_postfix_str(f"{case.keras}: {case}")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=_CONTEXT) as pool:
            row = pool.submit(measure, case, args.rounds).result()
        found[case.keras].append(row)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
    for keras, rows in found.items():
        text = f"`{report.command()}`; at the start: {before}.\n\n{rendered(rows)}"
        if args.results:
            report.replace_section(args.results, f"Conversion ({keras})", text)
        print(f"{text}\n")


if __name__ == "__main__":
    main()
