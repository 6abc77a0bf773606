"""What the commands do; their arguments are in :mod:`rewriter_parser`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.checking import probe, targets
from rewriter.checking.verify import verify
from rewriter.cli import data, requirements, saving
from rewriter.errors import LoadError, RewriterError, VerificationError
from rewriter.export import export_tflite
from rewriter.files import boundaries, outputs
from rewriter.files.replacing import replacing, write_bytes
from rewriter.lifting import lift
from rewriter.reading.load import load_model
from rewriter.rewriting.plan import plan
from rewriter.rewriting.recipe import Recipe
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate
from rewriter.workflow.quantize import quantize
from rewriter.workflow.sensitivity import sensitivity


def _inspect(args: Namespace) -> None:
    model = _load(args)
    result = plan(model)
    how = lift.of(model)
    text = f"{result}\n{how}" if how is not None else str(result)
    values = {} if how is None else {"lifted": how.to_dict()}
    _show(args, text, result.to_dict() | values)


def _convert(args: Namespace) -> None:
    recipe, file = _recipe(args.recipe)
    _refuse_output(args, saving.MODELS, "A Keras model", file, args.calibrate)
    # Entered first: an output that cannot be written is known before the work is done.
    with replacing(args.output) as path:
        model = _load(args)
        source = _source(args, args.calibrate, data.FOR_CALIBRATION) if args.calibrate else None
        planned = plan(model, recipe, input_shape=_input_shape(args))
        qat = rewrite(model, recipe, input_shape=_input_shape(args))
        if source is not None:
            values = data.read(source, data.input_shapes(qat)).inputs
            calibrate(qat, values, progress=_progress(), method=args.method)
        saving.save(qat, path, args.output)
    state = "calibrated" if args.calibrate else "not calibrated yet (--calibrate DATA)"
    text = f"{planned}\n\n{args.output}: quantization-aware, {state}"
    _show(
        args,
        text,
        {"path": str(args.output), "calibrated": args.calibrate is not None}
        | {"plan": planned.to_dict()},
    )


def _recipe(given: str | None) -> tuple[Recipe | None, Path | None]:
    """The recipe of that name or in that file, and the file."""
    if given is None:
        return None, None
    file = Path(given)
    if file.exists() or file.suffix:
        return Recipe.load(file), file
    return Recipe.named(given), None


def _export(args: Namespace) -> None:
    _refuse_output(args, (".tflite",), "A LiteRT file")
    report = export_tflite(
        _load(args),
        args.output,
        float_io=args.float_io,
        input_type=args.input_type,
        output_type=args.output_type,
        allow_float=args.allow_float,
        batch_size=args.batch,
        c_array=args.c_array,
        target=args.target,
        input_shape=_input_shape(args),
    )
    _show(args, report, report.to_dict())


def _check(args: Namespace) -> None:
    result = targets.check(args.file, args.target)
    _show(args, result, result.to_dict())
    if result.findings:
        raise VerificationError(f"{args.target} would not run it: {result.findings[0]}.")


def _verify(args: Namespace) -> None:
    model = _load(args)
    source = _source(args, args.data, data.FOR_VERIFICATION, args.labels)
    read = data.read(source, data.input_shapes(model))
    result = verify(model, args.file, read.inputs, kernels=args.kernels, progress=_progress())
    text, values = str(result), result.to_dict()
    if read.labels is not None:
        if read.labels.ndim != 1 or read.labels.dtype.kind not in "iu":
            raise LoadError(
                f"verify takes classes as labels, integers (N,). Received: {args.labels!r} "
                f"of shape {read.labels.shape} and type {read.labels.dtype}."
            )
        values["accuracy"] = _accuracy(model, args.file, read, args.kernels)
        text += "".join(
            f"\naccuracy of the {name}: {100 * share:.2f} %"
            for name, share in values["accuracy"].items()
        )
    _show(args, text, values)
    if args.min_snr is not None:
        requirements.snr(result.training, args.min_snr)
    if args.min_identical is not None:
        requirements.identical(result.comparison, args.min_identical)


def _quantize(args: Namespace) -> None:
    recipe, file = _recipe(args.recipe)
    _refuse_output(args, (".tflite",), "A LiteRT file", file, args.data, args.test)
    if args.save_model is not None:
        refusal = outputs.refusal(args.save_model, saving.MODELS, "A Keras model", (args.model,))
        if refusal is not None:
            raise RewriterError(refusal)
    model = _load(args)
    shapes = data.input_shapes(model)
    read = data.read(_source(args, args.data, data.FOR_CALIBRATION, args.labels), shapes)
    test = None
    if args.test is not None:
        found = data.read(_source(args, args.test, data.FOR_VERIFICATION, args.labels), shapes)
        test = (found.inputs, found.labels)
    result = quantize(
        model,
        read.inputs,
        read.labels,
        output=args.output,
        test=test,
        recipe=recipe,
        method=args.method,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        batch_size=args.batch_size,
        distill=args.distill,
        seed=args.seed,
        float_io=args.float_io,
        allow_float=args.allow_float,
        resume=args.resume,
        progress=_progress(),
        say=(lambda text: None) if args.json else lambda text: print(text, flush=True),
    )
    if args.save_model is not None:
        with replacing(args.save_model) as path:
            saving.save(result.model, path, args.save_model)
    _show(args, result, result.to_dict())


def _sensitivity(args: Namespace) -> None:
    recipe, file = _recipe(args.recipe)
    budgeted = args.budget_bytes is not None or args.budget_share is not None
    if args.output is not None:
        if not budgeted:
            raise RewriterError("A recipe needs a budget: --budget-bytes N or --budget-share X.")
        _refuse_output(args, (".json",), "A recipe", file, args.data)
    if args.plot is not None:
        given = (args.model, args.data, file, args.output)
        refusal = outputs.refusal(args.plot, (".png", ".pdf", ".svg"), "A plot", given)
        if refusal is not None:
            raise RewriterError(refusal)
    model = _load(args)
    source = _source(args, args.data, data.FOR_CALIBRATION, args.labels)
    read = data.read(source, data.input_shapes(model))
    result = sensitivity(
        model,
        read.inputs,
        read.labels,
        widths=args.widths,
        budget_bytes=args.budget_bytes,
        budget_share=args.budget_share,
        recipe=recipe,
        allow_float=args.allow_float,
        progress=_progress(),
    )
    if args.output is not None and result.recipe is not None:
        write_bytes(args.output, f"{result.recipe.to_json()}\n".encode())
    if args.plot is not None:
        result.plot(args.plot)
    _show(args, result, result.to_dict())


def _demo(args: Namespace) -> None:
    from rewriter.cli import demo

    demo.run(args.output, epochs=args.epochs, say=lambda text: print(text, flush=True))


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "inspect": _inspect,
    "convert": _convert,
    "export": _export,
    "check": _check,
    "verify": _verify,
    "quantize": _quantize,
    "sensitivity": _sensitivity,
    "demo": _demo,
}


def _show(args: Namespace, text: Any, values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2) if args.json else text)


def _input_shape(args: Namespace) -> Any:
    """Of the only input, or by name; None if none was given."""
    if not args.input_shape:
        return None
    named = dict(args.input_shape)
    if len(args.input_shape) == 1 and None in named:
        return named[None]
    if None in named or len(named) < len(args.input_shape):
        raise RewriterError("--input-shape of several inputs: give each once, as NAME=SIZES.")
    return named


def _progress() -> bool:
    return sys.stderr.isatty()


def _load(args: Namespace) -> Any:
    if args.imports and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where console scripts, unlike python -m, do not look
    for name in args.imports:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module of the user's may raise anything
            raise LoadError(f"--import {name}: {type(error).__name__}: {error}.") from error
    probe.check(args.model)
    return load_model(
        args.model,
        flavour=args.keras,
        allow_lambda=args.allow_lambda,
        signature=args.signature,
    )


def _source(
    args: Namespace, path: Path, preferred: tuple[str, ...], labels: str | None = None
) -> data.Source:
    return data.Source(
        path,
        array=args.array,
        labels=labels,
        scale=args.scale,
        offset=args.offset,
        samples=args.samples,
        preferred=preferred,
    )


def _refuse_output(args: Namespace, suffixes: tuple[str, ...], what: str, *more: Any) -> None:
    """Before the work is done: outputs that would take the place of something else."""
    refusal = outputs.refusal(args.output, suffixes, what, (args.model, *more))
    if refusal is not None:
        raise RewriterError(refusal)


def _accuracy(model: Any, file: Path, read: data.Data, kernels: str) -> dict[str, float]:
    """Shares of samples with the right class, for a model with one input and one output."""
    from rewriter.checking import interpreter

    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise RewriterError(
            "--labels needs a model with one input and one output. "
            f"Received: {len(model.inputs)} and {len(model.outputs)}."
        )
    inputs = next(iter(read.inputs.values())) if isinstance(read.inputs, dict) else read.inputs
    with boundaries.litert(f"The file {str(file)!r}"):
        (scores,) = interpreter.run(file.read_bytes(), [inputs], kernels=kernels, isolated=True)
    found = {"file": scores, "model": model.predict(inputs, verbose=0)}
    return {
        name: float(np.mean(np.argmax(value.reshape(len(inputs), -1), -1) == read.labels))
        for name, value in found.items()
    }
