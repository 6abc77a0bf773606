"""The coverage matrix: what becomes of every architecture of both application modules.

    python benchmarks/coverage.py run --results coverage.jsonl --table benchmarks/COVERAGE.md
    python benchmarks/coverage.py run --kinds export tfmot --keras tf_keras --names MobileNetV2
    python benchmarks/coverage.py table --results coverage.jsonl --table benchmarks/COVERAGE.md
    python benchmarks/coverage.py run --kinds lift lifted --results benchmarks/lifting.jsonl \
        --table benchmarks/LIFTING.md

Every architecture runs in a process of its own and adds one line to the results; what is there
already is skipped. The kinds of line: ``rewrite`` (plan, float phase, time and memory, for all),
``export`` (int8 file against its twin, for the smallest of each family) and ``tfmot``; ``lift``
(written as a graph and lifted, for all) and ``lifted`` (from there to a verified file, for the
smallest of each family).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm.auto import tqdm

from benchmarks import architectures, coverage_measures, coverage_table, lifting_measures

MEASURES = {
    **coverage_measures.MEASURES,
    "lift": lifting_measures.measure_lift,
    "lifted": lifting_measures.measure_lifted,
}
SMALLEST = ("export", "lifted")  # kinds that take the smallest of each family only
KERASES = ("tf_keras", "keras")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tensorflow", "tf_keras", "keras", "rewriter", __name__])


def tasks(kinds: list[str], kerases: list[str], names: list[str] | None) -> list[tuple]:
    """``(kind, keras, name)`` of everything to do, smallest first."""
    found = []
    for keras in kerases:
        every = architectures.available(importlib.import_module(keras))
        smallest = {members[0] for members in architectures.FAMILIES.values()}
        for kind in kinds:
            if kind == "tfmot" and keras != "tf_keras":
                continue
            for rank, name in enumerate(every):
                wanted = name in names if names else kind not in SMALLEST or name in smallest
                if wanted:
                    found.append((rank, kind, keras, name))
    return [task[1:] for task in sorted(found, key=lambda task: task[0])]


def _child(task: tuple, out: Path) -> None:
    """Measure, and write the result to ``out``; what goes wrong is a result too."""
    kind, keras, name = task
    try:
        result = MEASURES[kind](importlib.import_module(keras), name)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    out.write_text(json.dumps(result))


def _run_one(task: tuple, timeout: float) -> dict[str, Any]:
    """One task in a process of its own, which starts with everything imported."""
    kind, keras, name = task
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        process = _PROCESSES.Process(target=_child, args=(task, out))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            result = {"error": f"not done after {timeout:.0f} s"}
        elif out.exists():
            result = json.loads(out.read_text())
        else:
            result = {"error": f"exit code {process.exitcode}"}
    wall = time.perf_counter() - start
    return {"kind": kind, "keras": keras, "name": name, **result, "wall_seconds": wall}


def run(args: argparse.Namespace) -> None:
    """All tasks that have no result yet."""
    done = {
        (row["kind"], row["keras"], row["name"])
        for row in coverage_table.load(args.results)
        if not (args.retry and "error" in row)
    }
    todo = [task for task in tasks(args.kinds, args.keras, args.names) if task not in done]
    lock = threading.Lock()
    with (
        concurrent.futures.ThreadPoolExecutor(args.jobs) as pool,
        tqdm(total=len(todo), desc="architectures") as bar,
    ):
        futures = [pool.submit(_run_one, task, args.timeout) for task in todo]
        for future in concurrent.futures.as_completed(futures):
            row = future.result()
            with lock, args.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            bar.set_postfix_str(f"{row['keras']} {row['name']} {row['kind']}")
            bar.update()
            if args.table:
                coverage_table.write(args.results, args.table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="do what is not done yet")
    runs.add_argument("--results", type=Path, default=Path("coverage.jsonl"))
    runs.add_argument("--table", type=Path, help="write the table here after every result")
    runs.add_argument("--kinds", nargs="+", choices=list(MEASURES), default=["rewrite"])
    runs.add_argument("--export", action="store_true", help="the kind 'export' too")
    runs.add_argument("--tfmot", action="store_true", help="the kind 'tfmot' too")
    runs.add_argument("--keras", nargs="+", choices=KERASES, default=list(KERASES))
    runs.add_argument("--names", nargs="+", choices=list(architectures.FAMILY))
    runs.add_argument("--jobs", type=int, default=2)
    runs.add_argument("--timeout", type=float, default=1800, help="seconds for one task")
    runs.add_argument("--retry", action="store_true", help="what failed before")
    table = commands.add_parser("table", help="write the table only")
    table.add_argument("--results", type=Path, default=Path("coverage.jsonl"))
    table.add_argument("--table", type=Path, required=True)
    one = commands.add_parser("one", help="one architecture in this process")
    one.add_argument("kind", choices=list(MEASURES))
    one.add_argument("keras", choices=KERASES)
    one.add_argument("name", choices=list(architectures.FAMILY))
    one.add_argument("--out", type=Path, help="write the result here instead of printing it")
    args = parser.parse_args()
    if args.command == "one":
        result = MEASURES[args.kind](importlib.import_module(args.keras), args.name)
        text = json.dumps(result, indent=None if args.out else 1)
        if args.out:
            args.out.write_text(text)
        else:
            print(text)
        return
    if args.command == "run":
        extra = [kind for kind in ("export", "tfmot") if getattr(args, kind)]
        args.kinds = [*args.kinds, *(kind for kind in extra if kind not in args.kinds)]
        run(args)
    if args.table:
        coverage_table.write(args.results, args.table)


if __name__ == "__main__":
    main()
