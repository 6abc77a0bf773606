"""The coverage matrix: what becomes of every architecture of both application modules.

    python benchmarks/coverage.py run --results coverage.jsonl --table benchmarks/COVERAGE.md
    python benchmarks/coverage.py run --kinds export tfmot --keras tf_keras --names MobileNetV2
    python benchmarks/coverage.py table --results coverage.jsonl --table benchmarks/COVERAGE.md

Every architecture runs in a process of its own and adds one line to the results; what is there
already is skipped. Three kinds of line: ``rewrite`` (plan, float phase, time and memory, for all),
``export`` (int8 file against its twin, for the smallest of each family) and ``tfmot``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import gc
import importlib
import json
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm.auto import tqdm

from benchmarks import architectures, coverage_table, meter

KERASES = ("tf_keras", "keras")
HOSTS = re.compile(r"^(Depthwise|Separable)?(Conv[123]D(Transpose)?|Dense)$")
REPEAT_ABOVE = 1.5  # times clone_model: may be noise, so both are timed again
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tensorflow", "tf_keras", "keras", "rewriter", __name__])


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, so that other programs do not count."""
    gc.collect()
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _expected_fused(keras: Any, model: Any) -> int:
    """How many normalizations follow a linear host with no other consumer, by Keras's own graph."""
    count = 0
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        host = layer.input._keras_history[0]
        linear = getattr(getattr(host, "activation", None), "__name__", "") == "linear"
        count += bool(
            HOSTS.match(type(host).__name__) and linear and len(host._outbound_nodes) == 1
        )
    return count


def measure_rewrite(keras: Any, name: str, *, smallest: bool = False) -> dict[str, Any]:
    """Plan, counts, float-phase difference, time and memory of one architecture."""
    import rewriter

    empty = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3),
                              keras.layers.BatchNormalization()])  # fmt: skip
    rewriter.rewrite(empty)  # imports and first uses are not this architecture's
    before = meter.settle()
    build_seconds, model = _seconds(
        lambda: architectures.build(keras, name, smallest=smallest, classifier_activation=None)
    )
    build_peak = meter.memory("VmHWM") - before
    size = meter.settle() - before
    data = architectures.images(name, 8, 0, smallest=smallest)
    architectures.set_statistics(model, data)
    resident = meter.settle()
    rewrite_seconds, rewritten = _seconds(lambda: rewriter.rewrite(model))
    peak = meter.memory("VmHWM") - resident
    clone_seconds, clone = _seconds(lambda: keras.models.clone_model(model))
    del clone
    if rewrite_seconds > REPEAT_ABOVE * clone_seconds:
        clone_seconds = min(clone_seconds, _seconds(lambda: keras.models.clone_model(model))[0])
        rewrite_seconds = min(rewrite_seconds, _seconds(lambda: rewriter.rewrite(model))[0])
    return {
        "side": architectures.side(name, smallest=smallest),
        "layers": len(model.layers),
        "parameters": int(model.count_params()),
        **compare(keras, model, rewritten, data),
        "build_seconds": build_seconds,
        "rewrite_seconds": rewrite_seconds,
        "clone_seconds": clone_seconds,
        "time_ratio": rewrite_seconds / clone_seconds,
        "model_mb": size,
        "model_peak_mb": build_peak,
        "peak_mb": size + peak,
        "memory_ratio": (size + peak) / build_peak,
    }


def compare(keras: Any, model: Any, rewritten: Any, data: np.ndarray) -> dict[str, Any]:
    """What became of the normalizations, and the largest difference in phase ``float``."""
    import rewriter

    expected = np.asarray(model(data, training=False))
    actual = np.asarray(rewritten(data, training=False))
    actions = [entry.action for entry in rewriter.plan(model).entries]
    norms = keras.layers.BatchNormalization
    return {
        "batch_norms": sum(isinstance(x, norms) for x in model._flatten_layers()),
        "left": sum(isinstance(x, norms) for x in rewritten._flatten_layers()),
        "expected_fused": _expected_fused(keras, model),
        **{action: actions.count(action) for action in ("fused", "standalone", "refused")},
        "difference": float(np.abs(actual - expected).max() / np.abs(expected).max()),
        "signal": architectures.signal(expected),
    }


def measure_export(
    keras: Any, name: str, *, smallest: bool = False, samples: int = 2
) -> dict[str, Any]:
    """The int8 file: float tensors, agreement with the twin, and the kernels' own disagreement."""
    import rewriter
    from rewriter.errors import ExportError

    model = architectures.build(keras, name, smallest=smallest)
    data = architectures.images(name, 16, 0, smallest=smallest)
    architectures.set_statistics(model, data)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    probe = architectures.images(name, samples, 1, smallest=smallest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        seconds, report = _seconds(lambda: _export(rewriter, ExportError, qat, path))
        if isinstance(report, str):
            return {"side": architectures.side(name, smallest=smallest), "refusal": report}
        found = rewriter.verify(qat, path, probe, progress=False).comparison
        noise = _kernel_noise(path.read_bytes(), probe, [a.name for a in found.end_to_end])
    steps, ends = found.operator_by_operator, found.end_to_end
    floating = np.asarray(model(probe, training=False))
    return {
        "side": architectures.side(name, smallest=smallest),
        "export_seconds": seconds,
        "bytes": report.bytes,
        "operators": sum(report.ops.values()),
        "float_tensors": len(report.float_tensors),
        "float_names": list(report.float_tensors)[:20],
        "tensors": len(steps),
        "worst_identical": min(a.identical for a in steps),
        "worst_tensor": min(steps, key=lambda a: a.identical).name,
        "worst_within_one": min(a.within_one for a in steps),
        "identical": _share(steps),
        "below_bar": [[a.name, a.identical, a.maximum] for a in steps if a.identical < 0.999],
        "end_to_end": _share(ends),
        "end_to_end_output": ends[-1].identical,
        "kernels_agree": noise[0],
        "kernels_agree_output": noise[1],
        "top1": found.top1,
        "differences": len(found.differences),
        "skipped": len(found.skipped),
        "missing": len(found.missing),
        "signal": architectures.signal(floating),
    }


def _export(rewriter: Any, error: type[Exception], qat: Any, path: Path) -> Any:
    """The report, or the text of a refusal."""
    try:
        return rewriter.export_tflite(qat, path)
    except error as refusal:
        return str(refusal)


def _share(agreements: Any) -> float:
    """The identical share of all elements of all tensors."""
    total = sum(a.elements for a in agreements)
    return sum(a.identical * a.elements for a in agreements) / max(total, 1)


def _kernel_noise(content: bytes, data: np.ndarray, names: list[str]) -> tuple[float, float]:
    """Share of elements that XNNPACK and the builtin kernels compute alike: all, and the outputs.

    The noise floor of an end-to-end comparison: the same file on the same inputs.
    """
    from rewriter.litert import flatbuffer, interpreter

    file = flatbuffer.read(content)
    made = [
        index
        for index in file.producers()
        if "INT8" in file.tensors[index].dtype or "INT16" in file.tensors[index].dtype
    ]
    runs = {}
    for kernels in ("xnnpack", "builtin"):
        runner = interpreter.Runner(content, kernels=kernels, all_tensors=True)
        runs[kernels] = runner.run([data], tensors=made)
    pairs = [(runs["xnnpack"].tensors[i], runs["builtin"].tensors[i]) for i in made]
    same = sum(int(np.count_nonzero(a == b)) for a, b in pairs)
    outputs = zip(runs["xnnpack"].outputs, runs["builtin"].outputs, strict=True)
    output = [float((a == b).mean()) for a, b in outputs]
    return same / sum(a.size for a, _ in pairs), min(output)


def measure_tfmot(keras: Any, name: str, *, smallest: bool = False) -> dict[str, Any]:
    """Whether TFMOT takes the architecture, or why not."""
    import tensorflow_model_optimization as tfmot

    model = architectures.build(keras, name, smallest=smallest)
    start = time.perf_counter()
    try:
        quantized = tfmot.quantization.keras.quantize_model(model)
    except Exception as error:  # whatever it raises is its answer
        return {"takes": False, "reason": f"{type(error).__name__}: {str(error)[:160]}"}
    norms = keras.layers.BatchNormalization
    left = sum(isinstance(layer, norms) for layer in quantized._flatten_layers())
    return {"takes": True, "left": left, "seconds": time.perf_counter() - start}


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "rewrite": measure_rewrite,
    "export": measure_export,
    "tfmot": measure_tfmot,
}


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
                wanted = name in names if names else kind != "export" or name in smallest
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
