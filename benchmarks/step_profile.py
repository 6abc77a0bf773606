"""Where the time of a training step goes, by operator: ours in ``quantize`` beside float.

    python benchmarks/step_profile.py --keras tf_keras keras --results benchmarks/RESULTS.md

TensorFlow's profiler names every operator that ran; its time is summed over the threads, without
that of what runs inside it (a ``Case`` runs its branch), and divided by the steps. Profiling makes
every operator dearer: read the differences, not the sums.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks import report
from benchmarks.step_models import SHAPES, batch, compiled, variants

GROUPS = {
    "activation fake-quant": ("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs"),
    "ranges (min, max)": ("Min", "Max", "Minimum", "Maximum"),
    "kernel rounding": ("Round", "Rint", "Abs", "Div", "RealDiv"),
    "batch normalization": ("FusedBatchNormV3", "FusedBatchNormGradV3"),
    "activations": ("Relu", "Relu6", "ReluGrad", "Relu6Grad", "Sigmoid", "SigmoidGrad", "Softmax"),
    # Those that call a function are asynchronous: what is seen of them is that they start and end.
    "conditions": ("Switch", "_SwitchN", "Merge", "Start", "Done"),
}
_GROUP = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
_ARITHMETIC = ("Add", "AddV2", "AddN", "Sub", "Mul", "Select", "SelectV2", "Rsqrt", "Square")
_FUSED = ("_FusedConv2D", "_FusedMatMul", "_FusedBatchNormEx", "FusedConv2D", "FusedMatMul")
_ONEDNN = ("_MklNative", "_Mkl")  # what its kernels' names begin with
_CALLS = ("Run", "Process", "DoCompute")  # no operators: they contain or schedule them
LAYERS = "convolutions, products, pooling"
REST = "the rest (variables, shapes)"
ORDER = (LAYERS, *GROUPS, "arithmetic", REST)


def group(kind: str) -> str:
    """The row that an operator counts in."""
    for prefix in _ONEDNN:
        kind = kind.removeprefix(prefix)
    if kind in _GROUP:
        return _GROUP[kind]
    if kind in _FUSED or any(part in kind for part in ("Conv", "MatMul", "Pool", "BiasAdd")):
        return LAYERS
    return "arithmetic" if kind in _ARITHMETIC else REST


def own_times(events: Iterable[tuple[int, int, str]]) -> collections.Counter[str]:
    """Time by name, without that of the events inside, of one thread's (start, end, name)."""
    times: collections.Counter[str] = collections.Counter()
    open_: list[tuple[int, str]] = []  # end, name
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_ and open_[-1][0] <= start:
            open_.pop()
        if open_:
            times[open_[-1][1]] -= min(end, open_[-1][0]) - start
        times[name] += end - start
        open_.append((end, name))
    return times


def operators(folder: Path) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Seconds and runs by kind of operator, of the profile in a folder."""
    space = xplane_pb2.XSpace()
    (found,) = folder.rglob("*.xplane.pb")
    space.ParseFromString(found.read_bytes())
    seconds: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            events = []
            for event in line.events:
                node, colon, kind = names[event.metadata_id].rpartition(":")
                named = colon and node and kind.isidentifier()  # "node:Kind"
                if named and kind not in _CALLS:
                    events.append((event.offset_ps, event.offset_ps + event.duration_ps, kind))
            for kind, time in own_times(events).items():
                seconds[kind] += time / 1e12
            runs.update(kind for *_, kind in events)
    return seconds, runs


def profile(keras: Any, name: str, label: str, steps: int) -> dict[str, tuple[float, float]]:
    """Milliseconds and runs a step, by group."""
    data = batch(name)
    step, _model = compiled(keras, variants(keras, name, data[0])[label], data)
    for _ in range(3):
        step()
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
        with tf.profiler.experimental.Profile(folder, options=options):
            for _ in range(steps):
                step()
        seconds, runs = operators(Path(folder))
    found = {row: [0.0, 0.0] for row in ORDER}
    for kind, time in seconds.items():
        found[group(kind)][0] += 1e3 * time / steps
        found[group(kind)][1] += runs[kind] / steps
    return {row: (time, count) for row, (time, count) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kerases = ["tf_keras", "keras"]
    parser.add_argument("--keras", nargs="+", choices=kerases, default=kerases)
    parser.add_argument(
        "--models", nargs="+", choices=list(SHAPES), default=["mobilenet_v2", "resnet50_64"]
    )
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--results", type=Path, help="replace this benchmark's sections there")
    args = parser.parse_args()
    for keras in args.keras:
        text = [f"`{report.command()}`: milliseconds (and runs) of operators in one step."]
        for name in args.models:
            module = importlib.import_module(keras)
            before = profile(module, name, "float", args.steps)
            after = profile(module, name, "ours", args.steps)
            total = sum(time for time, _ in before.values())
            rows = [
                (
                    row,
                    f"{before[row][0]:.1f} ({before[row][1]:.0f})",
                    f"{after[row][0]:.1f} ({after[row][1]:.0f})",
                    f"{after[row][0] - before[row][0]:+.1f}",
                    f"{100 * (after[row][0] - before[row][0]) / total:+.1f} %",
                )
                for row in ORDER
            ]
            text.append(
                report.table((name, "float", "quantize", "difference", "of float's step"), rows)
            )
            print(text[-1], flush=True)
        if args.results:
            report.replace_section(
                args.results, f"Profile of the step ({keras})", "\n\n".join(text)
            )


if __name__ == "__main__":
    main()
