"""Seconds and memory of every stage from a saved model to a verified file.

Chains of blocks (see scaling.py) tell how the stages grow with the number of layers, large
applications what they cost in practice. Every case runs in a process of its own. Beside them:
Keras's ``load_model``, ``clone_model`` and ``predict``, and TFMOT's ``quantize_apply`` of the
models that it takes.

The bars: a sample takes ``calibrate``, once it is under way, at most 1.3 times as long as
``predict``. ``export_tflite`` of a calibrated model takes at most an eighth of the seconds and adds
at most a quarter of the memory of ``TFLiteConverter.from_concrete_functions``, and grows linearly
with the layers. That converter gets a float function of the same operators with fake-quant nodes,
traced beforehand (see usual_converter.py), and only its ``convert`` is measured, while an export is
measured from the Keras model to the file that LiteRT has loaded. The two take turns; their memory
is measured in processes of their own.

    python benchmarks/convert.py --quick
    python benchmarks/convert.py --keras tf_keras keras --results benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm.auto import tqdm

from benchmarks import architectures, report, scaling, stages
from benchmarks.stages import STAGES, Case

QUICK = (10, 20, 40)
PER_SAMPLE_BAR, SECONDS_BAR, MEMORY_BAR = 1.3, 1 / 8, 1 / 4
SIDES = {"ResNet50": 224}  # of the others: architectures.side
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = ["tensorflow", "tf_keras", "keras", "rewriter", "benchmarks.stages"]


def _cell(value: Any, digits: int = 2) -> str:
    if isinstance(value, str):
        return value
    return f"{value['cpu']:.{digits}f} ({value['wall']:.{digits}f})"


def _gaps(gaps: Mapping[str, int]) -> str:
    return ", ".join(f"{gap:+d} {kind}" for kind, gap in gaps.items()) or "same"


def ratios(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What the bars and the comparisons are about."""
    sample, clone = row["per sample"], row["clone"]["cpu"]
    peer = row["TFMOT"]
    return {
        "rewrite / clone": row["rewrite"]["cpu"] / clone,
        "TFMOT / clone": None if isinstance(peer, str) else peer["cpu"] / clone,
        "calibrate / predict": sample["calibrate wall"] / sample["predict wall"],
        "calibrate / predict, CPU": sample["calibrate cpu"] / sample["predict cpu"],
        "seconds": row["export"]["wall"] / row["usual converter"]["wall"],
        "memory": row["added memory"]["export"] / row["added memory"]["usual converter"],
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
    label = [str(Case(row["keras"], row["name"], row["blocks"], row["side"])) for row in rows]
    times, peaks, bars, beside = [], [], [], []
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
            ]
        )
        memory, theirs = row["added memory"], row["usual converter"]
        beside.append(
            [
                name,
                row["operators"],
                _gaps(row["other operators"]),
                f"{row['export']['wall']:.2f}",
                f"{theirs['wall']:.2f}",
                f"1/{1 / found['seconds']:.1f}",
                f"{memory['export']:.0f}",
                f"{memory['usual converter']:.0f}",
                f"1/{1 / found['memory']:.1f}",
            ]
        )
    parts = [
        "CPU seconds (those of the clock). *calibrate*: one batch of "
        f"{stages.BATCH}, with the tracing; *verify*: two samples.",
        report.table(["model", "layers", *STAGES], times),
        "Peak memory in MB, above what was resident before the stage.",
        report.table(["model", *STAGES], peaks),
        f"Bar: *calibrate / predict* for a sample, once under way, at most {PER_SAMPLE_BAR}.",
        report.table(
            ["model", "rewrite / clone", "TFMOT / clone", "calibrate ms", "predict ms",
             "calibrate / predict", "the same, CPU"],
            bars,
        ),
        f"Bars of the export beside `TFLiteConverter.from_concrete_functions(...).convert()`: at "
        f"most 1/{1 / SECONDS_BAR:.0f} of the seconds (of the clock), 1/{1 / MEMORY_BAR:.0f} of "
        "the added memory (MB, in processes of their own). *operators*: of our file; *theirs*: "
        "what the converter's has more or less.",
        report.table(
            ["model", "operators", "theirs", "export s", "converter s", "seconds",
             "export MB", "converter MB", "memory"],
            beside,
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
    sides = {name: SIDES.get(name, 0) for name in args.applications}
    return [*chains, *(Case(keras, name, side=side) for name, side in sides.items())]


def _in_process(function: Any, *arguments: Any) -> Any:
    """What the function returns, of a process that does nothing else."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=_CONTEXT) as pool:
        return pool.submit(function, *arguments).result()


def measured(case: Case, rounds: int) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = _in_process(stages.measure, case, rounds)
    row["added memory"] = {
        stage: _in_process(stages.added_memory, case, stage)
        for stage in ("export", "usual converter")
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keras", nargs="+", choices=("tf_keras", "keras"), default=["tf_keras"])
    parser.add_argument("--kinds", nargs="*", choices=list(scaling.KINDS), default=["chain"])
    parser.add_argument("--blocks", nargs="*", type=int)
    parser.add_argument("--applications", nargs="*", choices=list(architectures.FAMILY))
    parser.add_argument(
        "--rounds", type=int, default=3, help="of calibrate and predict, and of export"
    )
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
        row = measured(case, args.rounds)
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
