"""Training step and inference: ours in every phase, the float model, TFMOT and BN made of moments.

All variants of one model live in one process and take turns, round by round, on the same batch;
ours is one compiled model whose phase is switched between the turns. ``float again`` is the float
model's step once more: what its ratio differs from 1 by is noise. The first step traces: it is
that of a new model each time, the median of a few, where the process is warm.

    python benchmarks/step.py --keras tf_keras keras --rounds 15 --results benchmarks/RESULTS.md
    python benchmarks/step.py --models mobilenet_v2 --variants ours tfmot
    python benchmarks/step.py --variants int8-per-tensor w4a8 w4a8-small int16x8 lsq lsq+ tqt
    REWRITER_KERNELS=plain python benchmarks/step.py --variants ours --results benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tensorflow as tf

import rewriter
from benchmarks import report
from benchmarks.step_models import PHASES, RECIPES, SHAPES, batch, compiled, variants
from rewriter import kernels

WARM_UP = 2
# Bars: phase quantize and its first step over the float model's of the same Keras; its step over
# TFMOT's, where TFMOT takes the model.
BARS = {"tf_keras": 1.15, "keras": 1.0}
FIRST_STEP = 1.6
TFMOT = 1.0
LEARNED = 1.25  # of recipes with learned ranges; the others have the bar of int8
Turn = tuple[Callable[[], None], Callable[[], Any]]  # made ready, and what is timed
HEADER = (
    "model",
    "variant",
    "ms a step",
    "/ float",
    "quartiles",
    "CPU / float",
    "first step s",
    "/ float",
    "inference / float",
)


def interleaved(turns: dict[str, Turn], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of seconds, and of the ratios to ``float`` within a round."""
    wall: dict[str, list[float]] = {label: [] for label in turns}
    cpu: dict[str, list[float]] = {label: [] for label in turns}
    order = list(turns.items())
    for index in range(-WARM_UP, rounds):
        # Nobody always comes first, or after the same other one.
        turn = order[index % len(order) :] + order[: index % len(order)]
        for label, (ready, step) in turn[:: 1 if index % 2 else -1]:
            ready()
            start, busy = time.perf_counter(), time.process_time()
            step()
            if index >= 0:
                wall[label].append(time.perf_counter() - start)
                cpu[label].append(time.process_time() - busy)
    found = {}
    for label in turns:
        ratios = [a / b for a, b in zip(wall[label], wall["float"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[label] = {
            "seconds": statistics.median(wall[label]),
            "ratio": middle,
            "low": low,
            "high": high,
            "cpu": statistics.median(cpu[label]) / statistics.median(cpu["float"]),
        }
    return found


def measure(
    keras: Any, name: str, rounds: int, wanted: list[str], first_steps: int
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Every variant of one model, and those that could not be built."""
    data = batch(name)
    steps: dict[str, Turn] = {}
    forward: dict[str, Turn] = {}
    first: dict[str, list[float]] = {}
    failed = []
    makers = {
        label: make
        for label, make in variants(keras, name, data[0]).items()
        if label in (*wanted, "float") or not (wanted or label in RECIPES)
    }
    for index in range(first_steps):
        for label, make in list(makers.items()):
            if index and label not in ("float", "ours"):  # these have no bar
                continue
            try:
                step, model = compiled(keras, make, data)
            except Exception as error:  # whatever a peer raises is its answer
                failed.append(f"{name}, {label}: {type(error).__name__}: {str(error)[:120]}")
                del makers[label]
                continue
            seconds = _first(step)
            for what, ready in _labels(label, model).items():
                steps[what] = ready, step
                forward[what] = ready, _inference(model, data[0])
                first.setdefault(what, []).append(seconds)
    rows = interleaved(steps, rounds)
    inference = interleaved(forward, rounds)
    for label, row in rows.items():
        # The very first one of a process pays for what all others find ready.
        row["first"] = statistics.median(first[label][1:] or first[label])
        row["first ratio"] = row["first"] / statistics.median(first["float"][1:])
        row["inference"] = inference[label]["ratio"]
    return rows, failed


def _first(step: Callable[[], Any]) -> float:
    """Seconds of a model's first step, which creates a million objects or so.

    What the models before it have left is kept from Python's garbage collector meanwhile: whose
    step it looks through all of that in, for a second, is chance.
    """
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    gc.unfreeze()
    return seconds


def _labels(label: str, model: Any) -> dict[str, Callable[[], None]]:
    """The rows of one model, and what makes it ready for each."""
    if label == "ours":
        return {
            what: functools.partial(rewriter.set_phase, model, **phase)
            for what, phase in PHASES.items()
        }
    names = (label, f"{label} again") if label == "float" else (label,)
    return dict.fromkeys(names, lambda: None)


def _inference(model: Any, x: Any) -> Callable[[], Any]:
    function = tf.function(lambda inputs: model(inputs, training=False))
    inputs = tf.constant(x)
    return lambda: function(inputs)


def cells(name: str, label: str, row: dict[str, float]) -> tuple[str, ...]:
    return (
        name,
        label,
        f"{1e3 * row['seconds']:.1f}",
        f"{row['ratio']:.2f}",
        f"{row['low']:.2f}-{row['high']:.2f}",
        f"{row['cpu']:.2f}",
        f"{row['first']:.1f}",
        f"{row['first ratio']:.2f}",
        f"{row['inference']:.2f}",
    )


def verdicts(keras: str, name: str, rows: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Bar by bar: model, what, ratio, bar, whether it is met."""
    found = []

    def add(what: str, ratio: float, bar: float) -> None:
        found.append((name, what, f"{ratio:.3f}", f"{bar:.2f}", "yes" if ratio <= bar else "no"))

    if "ours quantize" in rows:
        add("quantize / float", rows["ours quantize"]["ratio"], BARS[keras])
        add("first step, quantize / float", rows["ours quantize"]["first ratio"], FIRST_STEP)
        if "tfmot" in rows:
            ours, peer = rows["ours quantize"]["seconds"], rows["tfmot"]["seconds"]
            add("quantize / TFMOT", ours / peer, TFMOT)
    for recipe, (_, learned) in RECIPES.items():
        if recipe in rows:
            bar = LEARNED if learned else BARS[keras]
            add(f"{recipe} / float", rows[recipe]["ratio"], bar)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kerases = ["tf_keras", "keras"]
    parser.add_argument("--keras", nargs="+", choices=kerases, default=kerases)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--variants", nargs="+", default=[], help="and recipes, by name")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--first-steps",
        type=int,
        default=6,
        help="models whose first step is timed, from 2 on: that of the first one does not count",
    )
    parser.add_argument("--results", type=Path, help="replace this benchmark's sections there")
    args = parser.parse_args()
    for keras in args.keras:
        busy, rows, judged, failures = report.load(), [], [], []
        for name in args.models:
            found, failed = measure(
                importlib.import_module(keras), name, args.rounds, args.variants, args.first_steps
            )
            rows += [cells(name, label, row) for label, row in found.items()]
            judged += verdicts(keras, name, found)
            failures += failed
            print(report.table(HEADER, rows[-len(found) :]), *failed, sep="\n", flush=True)
        fast = kernels.current() == "fast"
        text = [
            f"`{report.command()}`; at the start: {busy}.",
            "Ratios are medians of the ratios within a round; *CPU*: of processor seconds.",
            report.table(HEADER, rows),
        ]
        if fast:  # the plain kernels have no bar
            text.append(report.table(("model", "bar", "ratio", "at most", "met"), judged))
        if failures:
            text.append("Not built:\n\n" + "\n".join(f"- {line}" for line in failures))
        if args.results:
            kind = " by recipe" if set(args.variants) & set(RECIPES) else ""
            title = f"Training step{kind} ({keras}{'' if fast else ', plain kernels'})"
            report.replace_section(args.results, title, "\n\n".join(text))
        else:
            print("\n\n".join(text[2:]))


if __name__ == "__main__":
    main()
