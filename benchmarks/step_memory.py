"""Peak memory of training: ours in phase ``quantize`` against the float model of the same Keras.

Every variant trains a few steps in a process of its own.

    python benchmarks/step_memory.py --keras tf_keras keras --results benchmarks/RESULTS.md

*Peak*: the most that was resident above what was before the model was built: weights, the graph,
the tracing of the first step, the activations that the backward pass needs. *Later*: in the steps
after the first, with what could be given back before them given back.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import statistics
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import meter, report
from benchmarks.step_models import SHAPES, batch, compiled, variants

STEPS = 4
VARIANTS = ("float", "ours", "tfmot")
BAR = 1.25
HEADER = ("model", "variant", "peak MB", "/ float", "later MB", "/ float")


def _child(keras: str, name: str, label: str, queue: Any) -> None:
    module = importlib.import_module(keras)
    data = batch(name)
    make = variants(module, name, data[0])[label]
    resident = meter.settle()
    step, _model = compiled(module, make, data)
    meter.settle()
    step()
    first = meter.memory("VmHWM") - resident
    meter.settle()
    for _ in range(STEPS):
        step()
    later = meter.memory("VmHWM") - resident
    queue.put((max(first, later), later))


def measure(keras: str, name: str, label: str, rounds: int) -> tuple[float, float] | None:
    """Medians in MB, of the peaks and of those in the later steps; None where it fails."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for _ in range(rounds):
        queue = context.Queue()
        process = context.Process(target=_child, args=(keras, name, label, queue))
        process.start()
        process.join()
        if process.exitcode:
            return None
        peaks.append(queue.get())
    whole, later = zip(*peaks, strict=True)
    return statistics.median(whole), statistics.median(later)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kerases = ["tf_keras", "keras"]
    parser.add_argument("--keras", nargs="+", choices=kerases, default=kerases)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="replace this benchmark's sections there")
    args = parser.parse_args()
    for keras in args.keras:
        rows = []
        for name in args.models:
            found: dict[str, tuple[float, float]] = {}
            for label in VARIANTS:
                if label == "tfmot" and keras != "tf_keras":
                    continue
                peaks = measure(keras, name, label, args.rounds)
                if peaks is None:
                    rows.append((name, label, "failed", "", "", ""))
                    continue
                found[label] = peaks
                whole, later = (a / b for a, b in zip(peaks, found["float"], strict=True))
                rows.append(
                    (
                        name,
                        label,
                        f"{peaks[0]:.0f}",
                        f"{whole:.2f}",
                        f"{peaks[1]:.0f}",
                        f"{later:.2f}",
                    )
                )
                print(*rows[-1], flush=True)
        text = (
            f"`{report.command()}`\n\nPeak resident memory above that before the model is built; "
            f"every variant in processes of its own, medians of {args.rounds}. "
            f"Bar: quantize at most {BAR} times float.\n\n{report.table(HEADER, rows)}"
        )
        if args.results:
            report.replace_section(args.results, f"Memory of training ({keras})", text)


if __name__ == "__main__":
    main()
