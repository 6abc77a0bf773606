"""Models of public packages, each the whole way: rewritten, trained, saved, exported, verified.

    pip install -e ".[zoo]"
    python benchmarks/zoo.py run --results benchmarks/zoo.jsonl --table benchmarks/ZOO.md
    python benchmarks/zoo.py run --packages kimm keras-tcn --names TCN ResNet18
    python benchmarks/zoo.py one kimm ResNet18 keras
    python benchmarks/zoo.py table --results benchmarks/zoo.jsonl --table benchmarks/ZOO.md

The models (:mod:`benchmarks.zoo_models`) are built without weights; their moving statistics are
those of images. Every model runs in a process of its own, which ends after ``--timeout`` seconds,
and adds one line to the results; what is there already is skipped, so that a run goes on where the
last one ended. A package that is not installed is left out, and said so.

Of each model: the normalizations that are left or refused; the largest difference in phase
``float``, in shares of the largest output; two steps of training; the difference after save and
load; the export in integers, or what it refuses; the twin against the file, operator by operator.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
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

from benchmarks import zoo_table
from benchmarks.zoo_models import KERASES, MODELS, Entry

MODULES = {
    "keras-cv-attention-models": "keras_cv_attention_models",
    "keras-hub": "keras_hub",
    "keras-unet-collection": "keras_unet_collection",
    "keras-tcn": "tcn",
}
SAMPLES, STEPS = 8, 2


def _images(model: Any, count: int, seed: int) -> list[np.ndarray]:
    """Inputs of a model: smooth, as images and recordings are; float32."""
    from benchmarks import architectures

    found = []
    for tensor in model.inputs:
        shape = tuple(int(n) for n in tensor.shape[1:])
        if len(shape) == 3 and shape[-1] == 3:
            found.append(architectures.smooth_images(count, shape[0], seed))
        else:
            noise = np.random.default_rng(seed).normal(size=(count, *shape))
            found.append(noise.astype(np.float32))
    return found


def _flat(outputs: Any) -> list[np.ndarray]:
    if isinstance(outputs, dict):
        outputs = [o for value in outputs.values() for o in _listed(value)]
    return [np.asarray(o) for o in _listed(outputs)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _difference(a: Any, b: Any) -> float:
    """The largest difference of two lists of outputs, in shares of the largest value."""
    pairs = list(zip(_flat(a), _flat(b), strict=True))
    return max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)) for x, y in pairs)


def measure(entry: Entry, keras: Any, say: Callable[[dict[str, Any]], None]) -> None:
    """Everything about one model; ``say`` gets each finding as soon as there is one.

    A stage that fails says so under its own name, and the ones that need it are left out.
    """
    import rewriter
    from benchmarks import architectures
    from rewriter.errors import RewriterError

    model = entry.build(keras)
    data = _images(model, SAMPLES, 0)
    given = data if len(data) > 1 else data[0]
    architectures.set_statistics(model, given)
    plan = rewriter.plan(model)
    actions = [e.action for e in plan.entries]
    say({"layers": len(model.layers), "norms": len(actions), "refused": actions.count("refused")})
    try:
        qat = rewriter.rewrite(model)
    except RewriterError as error:
        say({"rewrite": str(error)})
        return
    norms = keras.layers.BatchNormalization
    say({"left": sum(isinstance(layer, norms) for layer in qat._flatten_layers())})
    say({"float": _difference(model(given, training=False), qat(given, training=False))})
    rewriter.calibrate(qat, given, batch_size=4, progress=False)
    _exported(rewriter, qat, _images(model, 2, 1), say)
    # As a user loads it who has the package: with its layers, and its Lambdas trusted.
    stock = keras.layers.Layer.__module__.partition(".")[0]
    layers = [*model._flatten_layers(), *qat._flatten_layers()]
    known = [each for each in layers if type(each).__module__.partition(".")[0] != stock]
    with tempfile.TemporaryDirectory() as folder:
        try:
            qat.save(Path(folder) / "model.keras")
            loaded = rewriter.load_model(
                Path(folder) / "model.keras",
                allow_lambda=True,
                custom_objects={type(layer).__name__: type(layer) for layer in known},
            )
            say({"saved": _difference(qat(given, training=False), loaded(given, training=False))})
        except Exception as error:  # whatever is raised is the finding
            said = str(error).replace(f"{folder}/", "")
            say({"saved": f"{type(error).__name__}: {said[:300]}"})
    outputs = qat(given, training=False)
    if isinstance(outputs, dict) and not all(hasattr(o, "shape") for o in outputs.values()):
        outputs = [o for value in outputs.values() for o in _flat(value)]
        qat = keras.Model(qat.inputs, [t for value in qat.output.values() for t in _listed(value)])
    if isinstance(outputs, dict):
        targets: Any = {name: np.zeros(o.shape, np.float32) for name, o in outputs.items()}
        losses: Any = dict.fromkeys(outputs, "mse")
    else:
        each = [np.zeros(o.shape, np.float32) for o in _flat(outputs)]
        targets, losses = (each, ["mse"] * len(each)) if len(each) > 1 else (each[0], "mse")
    qat.compile(keras.optimizers.SGD(1e-4), losses)
    history = qat.fit(given, targets, batch_size=SAMPLES // STEPS, verbose=0)
    say({"loss": float(history.history["loss"][-1])})


def _exported(
    rewriter: Any, qat: Any, probe: list[np.ndarray], say: Callable[[dict[str, Any]], None]
) -> None:
    from rewriter.errors import ExportError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        try:
            report = rewriter.export_tflite(qat, path)
        except ExportError as error:
            say({"export": str(error)})
            try:
                report = rewriter.export_tflite(qat, path, allow_float=True)
            except ExportError as error:
                say({"with float": str(error)})
                return
        else:
            say({"export": "integers"})
        found = rewriter.verify(qat, path, probe if len(probe) > 1 else probe[0], progress=False)
        steps = found.comparison.operator_by_operator
        say(
            {
                "bytes": report.bytes,
                "operators": sum(report.ops.values()),
                "identical": min(step.identical for step in steps),
            }
        )


def one(package: str, name: str, keras: str, out: Path | None) -> None:
    """Measure one model in this process; what goes wrong is a finding too."""
    entry = next(e for e in MODELS if (e.package, e.name) == (package, name))
    found: dict[str, Any] = {}

    def say(more: dict[str, Any]) -> None:
        found.update(more)
        if out is not None:
            out.write_text(json.dumps(found))
        else:
            print(json.dumps(more), flush=True)

    try:
        measure(entry, importlib.import_module(keras), say)
    except Exception as error:
        traceback.print_exc()
        said = re.sub(rf"{re.escape(tempfile.gettempdir())}/\w+/", "", str(error))
        say({"error": f"{type(error).__name__}: {said[:500]}"})


def _run_one(entry: Entry, keras: str, timeout: float) -> dict[str, Any]:
    """One model in a process of its own, in which packages see the Keras that is asked for."""
    start = time.perf_counter()
    env = {**os.environ, "TF_USE_LEGACY_KERAS": str(int(keras == "tf_keras"))}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, __file__, "one", entry.package, entry.name, keras]
        ended: dict[str, Any] = {}
        try:
            done = subprocess.run(
                [*command, "--out", str(out)], env=env, timeout=timeout, capture_output=True
            )
            if done.returncode:
                ended = {"error": f"exit code {done.returncode}: {done.stderr[-300:].decode()}"}
        except subprocess.TimeoutExpired:
            ended = {"error": f"not done after {timeout:.0f} s"}
        found = json.loads(out.read_text()) if out.exists() else {}
    key = {"package": entry.package, "name": entry.name, "keras": keras}
    return {**key, **found, **ended, "seconds": time.perf_counter() - start}


def run(args: argparse.Namespace) -> None:
    """All models that have no result yet."""
    missing = {
        p
        for p in {e.package for e in MODELS}
        if importlib.util.find_spec(MODULES.get(p, p.replace("-", "_"))) is None
    }
    for package in sorted(missing):
        print(f"{package} is not installed; its models are left out.", file=sys.stderr)
    done = {
        (row["package"], row["name"], row["keras"])
        for row in zoo_table.load(args.results)
        if not (args.retry and zoo_table.unfinished(row))
    }
    todo = [
        (entry, keras)
        for entry in MODELS
        for keras in entry.kerases
        if keras in args.keras
        and entry.package not in missing
        and (not args.packages or entry.package in args.packages)
        and (not args.names or entry.name in args.names)
        and (entry.package, entry.name, keras) not in done
    ]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(todo, desc="models") as bar:
        for entry, keras in bar:
            bar.set_postfix_str(f"{entry.package} {entry.name} {keras}")
            row = _run_one(entry, keras, args.timeout)
            with args.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if args.table:
                zoo_table.write(args.results, args.table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="do what is not done yet")
    runs.add_argument("--results", type=Path, default=Path("benchmarks/zoo.jsonl"))
    runs.add_argument("--table", type=Path, help="write the table here after every result")
    runs.add_argument("--packages", nargs="+", choices=sorted({e.package for e in MODELS}))
    runs.add_argument("--names", nargs="+")
    runs.add_argument("--keras", nargs="+", choices=KERASES, default=list(KERASES))
    runs.add_argument("--timeout", type=float, default=1800, help="seconds for one model")
    runs.add_argument("--retry", action="store_true", help="what did not go the whole way before")
    table = commands.add_parser("table", help="write the table only")
    table.add_argument("--results", type=Path, default=Path("benchmarks/zoo.jsonl"))
    table.add_argument("--table", type=Path, required=True)
    single = commands.add_parser("one", help="one model in this process")
    single.add_argument("package")
    single.add_argument("name")
    single.add_argument("keras", choices=KERASES)
    single.add_argument("--out", type=Path, help="write the findings here instead of printing them")
    args = parser.parse_args()
    if args.command == "one":
        one(args.package, args.name, args.keras, args.out)
    elif args.command == "run":
        run(args)
    else:
        zoo_table.write(args.results, args.table)


if __name__ == "__main__":
    main()
