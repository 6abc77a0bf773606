"""Our int8 file against those of TensorFlow and TFMOT: operators, size, and latency.

Every file of one model is loaded in the same process by the same interpreter (XNNPACK), and all
take turns, round by round, on the same input. *Ours / it* is the median of the ratios in a round,
with its quartiles. The bars: no more operators than TensorFlow's own post-training quantization
of the folded float model has, and at most 1.03 times the latency of any int8 peer.

    python benchmarks/tflite.py --quick
    python benchmarks/tflite.py --keras tf_keras --rounds 630 --results benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm.auto import tqdm

from benchmarks import architectures, peers, report, step_models
from rewriter.checking import reading
from rewriter.checking.worker import Interpreter
from tests.support import real_models

REAL = ("kws01", "ic01")
RANDOM = ("mobilenet_v2", "resnet50_64", "efficientnet_b0", "densenet121")
QUICK = ("ic01",)
LATENCY_BAR = 1.03
MINIMUM = 0.005  # seconds that one measurement takes at least
ROUNDS_A_LOAD = 21  # coprime to 4 and 5 files, so that every order comes up


def load(keras: Any, name: str, samples: int) -> tuple[Any, np.ndarray]:
    """A model with meaningful statistics, and data for its ranges."""
    if name in REAL:
        default = Path(__file__).resolve().parents[2] / "shared"
        shared = Path(os.environ.get("REWRITER_SHARED", default))
        data = real_models.MODELS[name].data(shared, samples)
        return real_models.load(shared, name, keras.__name__), data
    keras.utils.set_random_seed(1)
    model = step_models.build(keras, name)
    data = architectures.smooth_images(samples, step_models.SHAPES[name][0][0], 0)
    architectures.set_statistics(model, data[:8])
    return model, data


def operators(content: bytes) -> dict[str, int]:
    """How many of each operator a file has."""
    return reading.census(content).operators


def difference(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """How many more of each operator ``a`` has than ``b``; without those that are equal."""
    gaps = {kind: a.get(kind, 0) - b.get(kind, 0) for kind in sorted({*a, *b})}
    return {kind: gap for kind, gap in gaps.items() if gap}


def spelled(gaps: Mapping[str, int]) -> str:
    """``+2 MUL, -1 ADD``; ``same`` if there is none."""
    return ", ".join(f"{gap:+d} {kind}" for kind, gap in gaps.items()) or "same"


def turns(labels: list[str], index: int) -> list[str]:
    """The order in one round: nobody always comes first, or after the same other one."""
    shift = index % len(labels)
    order = labels[shift:] + labels[:shift]
    return order if index // len(labels) % 2 else order[::-1]


def latencies(files: Mapping[str, bytes], threads: int, rounds: int) -> dict[str, list[float]]:
    """Seconds for one sample of every file, round by round.

    The files are loaded anew every few rounds, in another order: where a file's weights happen to
    lie in memory makes a difference of several percent for the large ones.
    """
    times: dict[str, list[float]] = {label: [] for label in files}
    order, done = list(files), 0
    while done < rounds:
        runners = {label: _runner(files[label], threads) for label in turns(order, done)}
        repeats = {label: _repeats(runner) for label, runner in runners.items()}
        for index in range(done, min(done + ROUNDS_A_LOAD, rounds)):
            for label in turns(order, index):
                start = time.perf_counter()
                for _ in range(repeats[label]):
                    runners[label].invoke()
                times[label].append((time.perf_counter() - start) / repeats[label])
        done += ROUNDS_A_LOAD
    return times


def _runner(content: bytes, threads: int) -> Any:
    """The file in the interpreter, with an input."""
    runner = Interpreter(model_content=content, num_threads=threads)
    runner.allocate_tensors()
    (entry,) = runner.get_input_details()
    values = np.random.default_rng(0).normal(0, 40, entry["shape"])
    runner.set_tensor(entry["index"], values.clip(-128, 127).astype(entry["dtype"]))
    return runner


def _repeats(runner: Any) -> int:
    """How often to run a file in one measurement; also runs it for the first times."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        runner.invoke()
        seconds.append(time.perf_counter() - start)
    return max(1, round(MINIMUM / min(seconds)))


def ratio(ours: list[float], other: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios in a round: the median, the low and the high one."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, other, strict=True)], n=4)
    return middle, low, high


def measure(
    keras: Any, name: str, args: argparse.Namespace, progress: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """One row for every file of a model, and the reasons of the peers that made none."""
    files, reasons = {}, {}
    model, data = None, np.empty(0)
    for label, make in peers.FILES.items():
        progress.set_postfix_str(f"{name}: {label}")
        if label == peers.TFMOT and keras.__name__ != "tf_keras":
            continue
        kept = args.files and args.files / f"{keras.__name__}-{name}-{label}.tflite"
        if kept and kept.exists():
            files[label] = kept.read_bytes()
            continue
        if model is None:
            model, data = load(keras, name, args.samples)
        try:
            files[label] = make(model, data)
        except Exception as error:  # whatever a peer raises is its answer
            if label == peers.OURS:
                raise
            reasons[label] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            continue
        if kept:
            kept.write_bytes(files[label])
    rows: dict[str, Any] = {
        label: {"bytes": len(content), "operators": operators(content), "threads": {}}
        for label, content in files.items()
    }
    for threads in args.threads:
        progress.set_postfix_str(f"{name}: {threads} threads")
        times = latencies(files, threads, args.rounds)
        for label, values in times.items():
            middle, low, high = ratio(times[peers.OURS], values)
            rows[label]["threads"][threads] = {
                "milliseconds": 1e3 * statistics.median(values),
                "ratio": middle,
                "low": low,
                "high": high,
            }
    return rows, reasons


def verdict(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Both bars for one model: operators beyond the folded peer's, the largest latency ratio.

    ``met`` is ``"unclear"`` if a ratio is above its bar in the median, but below 1 in a quarter of
    the rounds: the machine was too busy to tell.
    """
    mine = sum(rows[peers.OURS]["operators"].values())
    found = [
        (timing["ratio"], timing["low"], label)
        for label, row in rows.items()
        if label not in (peers.OURS, peers.FLOAT)
        for timing in row["threads"].values()
    ]
    above = [low for ratio, low, _ in found if ratio > LATENCY_BAR]
    beyond = mine - sum(rows[peers.FOLDED]["operators"].values())
    met = "yes" if not above else "unclear" if max(above) < 1 else "no"
    largest, _, peer = max(found)
    return {
        "more_operators": beyond,
        "latency": largest,
        "peer": peer,
        "met": "no" if beyond > 0 else met,
    }


def rendered(results: Mapping[str, Any], args: argparse.Namespace) -> str:
    """The tables in Markdown."""
    header = ["model", "file", "bytes", "operators", "beside ours"]
    for threads in args.threads:
        header += [f"ms, {threads} thread{'s' * (threads > 1)}", "ours / it", "quartiles"]
    lines, bars, remarks = [], [], []
    for name, (rows, reasons) in results.items():
        for label, row in rows.items():
            gaps = difference(row["operators"], rows[peers.OURS]["operators"])
            line = [name, label, f"{row['bytes']:,}", sum(row["operators"].values()), spelled(gaps)]
            for threads in args.threads:
                timing = row["threads"][threads]
                line.append(f"{timing['milliseconds']:.3f}")
                line.append(f"{timing['ratio']:.3f}")
                line.append(f"{timing['low']:.3f}-{timing['high']:.3f}")
            lines.append(line)
        found = verdict(rows)
        listed = ", ".join(f"{n} {kind}" for kind, n in rows[peers.OURS]["operators"].items())
        bars.append([name, found["more_operators"], f"{found['latency']:.3f}", found["peer"],
                     found["met"], listed])  # fmt: skip
        remarks += [f"- {name}, {label}: {reason}" for label, reason in reasons.items()]
    parts = [
        f"Bars: operators beyond those of *{peers.FOLDED}*: at most 0; latency: at most "
        f"{LATENCY_BAR} times that of any int8 peer, with any number of threads (*unclear*: above "
        "in the median, below 1 in a quarter of the rounds).",
        report.table(
            ["model", "operators beyond", "largest ours / it", "peer", "met", "our operators"], bars
        ),
        report.table(header, lines),
    ]
    if remarks:
        parts.append("No file:\n\n" + "\n".join(remarks))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keras", choices=["tf_keras", "keras"], default="tf_keras")
    parser.add_argument("--models", nargs="+", choices=[*REAL, *RANDOM])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, help="default: 315; 5 with --quick")
    parser.add_argument("--samples", type=int, default=16, help="for the ranges")
    parser.add_argument("--quick", action="store_true", help=f"few rounds of {' '.join(QUICK)}")
    parser.add_argument("--files", type=Path, help="keep the files here, and use those there")
    parser.add_argument("--results", type=Path, help="replace this benchmark's section of the file")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    args.rounds = args.rounds or (5 if args.quick else 315)
    keras = importlib.import_module(args.keras)
    if args.files:
        args.files.mkdir(parents=True, exist_ok=True)
    names = args.models or (QUICK if args.quick else [*REAL, *RANDOM])
    if args.keras == "keras":
        names = [n for n in names if n not in REAL or "keras" in real_models.MODELS[n].kerases]
    before, results = report.load(), {}
    bar = tqdm(names, desc="models")
    for name in bar:
        results[name] = measure(keras, name, args, bar)
        if args.json:
            line = {"keras": args.keras, "model": name, **results[name][0]}
            with args.json.open("a") as file:
                file.write(json.dumps(line) + "\n")
    text = f"`{report.command()}`; at the start: {before}.\n\n{rendered(results, args)}"
    if args.results:
        report.replace_section(args.results, f"Files of LiteRT ({args.keras})", text)
    print(text)


if __name__ == "__main__":
    main()
