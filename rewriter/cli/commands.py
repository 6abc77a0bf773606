"""What the commands do; their arguments are in :mod:`rewriter_parser`."""

from __future__ import annotations

import json
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.checking import targets
from rewriter.checking.verify import verify
from rewriter.cli import arguments, data, reporting, requirements, saving
from rewriter.errors import LoadError, RewriterError, RewriterWarning, VerificationError
from rewriter.export import export_tflite
from rewriter.files import boundaries, outputs
from rewriter.files.replacing import replacing, write_bytes
from rewriter.lifting import lift
from rewriter.rewriting.plan import plan
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate
from rewriter.workflow.finetune import finetune
from rewriter.workflow.quantize import quantize
from rewriter.workflow.sensitivity import sensitivity


def _inspect(args: Namespace) -> None:
    model = arguments.model(args)
    result = plan(model)
    how = lift.of(model)
    text = f"{result}\n{how}" if how is not None else str(result)
    values = {} if how is None else {"lifted": how.to_dict()}
    _show(args, text, result.to_dict() | values)


def _convert(args: Namespace) -> None:
    recipe, file = arguments.recipe(args.recipe)
    arguments.refuse_output(args, saving.MODELS, "A Keras model", file, args.calibrate)
    # Entered first: an output that cannot be written is known before the work is done.
    with replacing(args.output) as path:
        model = arguments.model(args)
        source = (
            arguments.source(args, args.calibrate, data.FOR_CALIBRATION) if args.calibrate else None
        )
        planned = plan(model, recipe, input_shape=arguments.input_shape(args))
        qat = rewrite(model, recipe, input_shape=arguments.input_shape(args))
        if source is not None:
            values = data.read(source, data.input_shapes(qat)).inputs
            calibrate(qat, values, progress=arguments.progress(args), method=args.method)
        saving.save(qat, path, args.output)
    state = "calibrated" if args.calibrate else "not calibrated yet (--calibrate DATA)"
    text = f"{planned}\n\n{args.output}: quantization-aware, {state}"
    _show(
        args,
        text,
        {"path": str(args.output), "calibrated": args.calibrate is not None}
        | {"plan": planned.to_dict()},
    )


def _export(args: Namespace) -> None:
    arguments.refuse_output(args, (".tflite",), "A LiteRT file")
    report = export_tflite(
        arguments.model(args),
        args.output,
        float_io=args.float_io,
        input_type=args.input_type,
        output_type=args.output_type,
        allow_float=args.allow_float,
        batch_size=args.batch,
        c_array=args.c_array,
        target=args.target,
        input_shape=arguments.input_shape(args),
    )
    _show(args, report, report.to_dict())


def _check(args: Namespace) -> None:
    result = targets.check(args.file, args.target)
    _show(args, result, result.to_dict())
    if result.findings:
        raise VerificationError(f"{args.target} would not run it: {result.findings[0]}.")


def _verify(args: Namespace) -> None:
    reporting.check(args)
    model = arguments.model(args)
    source = arguments.source(args, args.data, data.FOR_VERIFICATION, args.labels)
    read = data.read(source, data.input_shapes(model))
    result = verify(
        model, args.file, read.inputs, kernels=args.kernels, progress=arguments.progress(args)
    )
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
    values |= reporting.write(args, result, read.labels)
    _show(args, text + reporting.shown(args), values)
    if args.min_snr is not None:
        requirements.snr(result.training, args.min_snr)
    if args.min_identical is not None:
        requirements.identical(result.comparison, args.min_identical)
    different = result.comparison.differences
    if different:
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        warnings.warn(
            f"{str(args.file)!r} is not what {str(args.model)!r} exports: {different[0]}{more}. "
            "Verify it with the model that it was exported from, or export it again.",
            RewriterWarning,
            stacklevel=1,
        )


def _quantize(args: Namespace) -> None:
    recipe, file = arguments.recipe(args.recipe)
    arguments.refuse_output(args, (".tflite",), "A LiteRT file", file, args.data, args.test)
    reporting.check(args)
    if args.save_model is not None:
        refusal = outputs.refusal(args.save_model, saving.MODELS, "A Keras model", (args.model,))
        if refusal is not None:
            raise RewriterError(refusal)
    model = arguments.model(args)
    shapes = data.input_shapes(model)
    source = arguments.source(args, args.data, data.FOR_CALIBRATION, args.labels)
    read = data.read(source, shapes, lazy=True)
    test = None
    if args.test is not None:
        source = arguments.source(args, args.test, data.FOR_VERIFICATION, args.labels)
        found = data.read(source, shapes, lazy=True)
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
        loss=arguments.function("loss", args.loss),
        metric=arguments.function("metric", args.metric),
        seed=args.seed,
        float_io=args.float_io,
        allow_float=args.allow_float,
        resume=args.resume,
        progress=arguments.progress(args),
        say=arguments.say(args),
    )
    if args.save_model is not None:
        with replacing(args.save_model) as path:
            saving.save(result.model, path, args.save_model)
    values = result.to_dict() | reporting.write(args, result)
    _show(args, f"{result}{reporting.shown(args)}", values)


def _finetune(args: Namespace) -> None:
    arguments.refuse_output(args, saving.MODELS, "A Keras model", args.data, args.teacher)
    with replacing(args.output) as path:
        model = arguments.model(args)
        source = arguments.source(args, args.data, data.FOR_CALIBRATION, args.labels)
        read = data.read(source, data.input_shapes(model), lazy=True)
        result = finetune(
            model,
            read.inputs,
            read.labels,
            teacher=None if args.teacher is None else arguments.model(args, args.teacher),
            loss=arguments.function("loss", args.loss),
            metric=arguments.function("metric", args.metric),
            epochs=args.epochs,
            learning_rate=args.learning_rate,
            batch_size=args.batch_size,
            seed=args.seed,
            allow_float=args.allow_float,
            resume=args.resume,
            say=arguments.say(args),
        )
        saving.save(result.model, path, args.output)
    values = {"path": str(args.output)} | result.to_dict()
    _show(args, f"{result}\n{args.output}: the best epoch's model", values)


def _sensitivity(args: Namespace) -> None:
    recipe, file = arguments.recipe(args.recipe)
    budgeted = args.budget_bytes is not None or args.budget_share is not None
    if args.output is not None:
        if not budgeted:
            raise RewriterError("A recipe needs a budget: --budget-bytes N or --budget-share X.")
        arguments.refuse_output(args, (".json",), "A recipe", file, args.data)
    if args.plot is not None:
        given = (args.model, args.data, file, args.output)
        refusal = outputs.refusal(args.plot, (".png", ".pdf", ".svg"), "A plot", given)
        if refusal is not None:
            raise RewriterError(refusal)
    model = arguments.model(args)
    source = arguments.source(args, args.data, data.FOR_CALIBRATION, args.labels)
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
        progress=arguments.progress(args),
    )
    if args.output is not None and result.recipe is not None:
        write_bytes(args.output, f"{result.recipe.to_json()}\n".encode())
    if args.plot is not None:
        result.plot(args.plot)
    _show(args, result, result.to_dict())


def _demo(args: Namespace) -> None:
    from rewriter.cli import demo

    demo.run(args.output, epochs=args.epochs, say=arguments.say(args))


COMMANDS: dict[str, Callable[[Namespace], None]] = {
    "inspect": _inspect,
    "convert": _convert,
    "export": _export,
    "check": _check,
    "verify": _verify,
    "quantize": _quantize,
    "finetune": _finetune,
    "sensitivity": _sensitivity,
    "demo": _demo,
}


def _show(args: Namespace, text: Any, values: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(values, indent=2))
    elif not args.quiet:
        print(text)


def _accuracy(model: Any, file: Path, read: data.Data, kernels: str) -> dict[str, float]:
    """Shares of samples with the right class, for a model with one input and one output."""
    from rewriter.checking import interpreter

    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise RewriterError(
            "--labels needs a model with one input and one output. "
            f"Received: {len(model.inputs)} and {len(model.outputs)}."
        )
    given = next(iter(read.inputs.values())) if isinstance(read.inputs, dict) else read.inputs
    inputs = np.asarray(given)
    with boundaries.litert(f"The file {str(file)!r}"):
        (scores,) = interpreter.run(file.read_bytes(), [inputs], kernels=kernels, isolated=True)
    found = {"file": scores, "model": model.predict(inputs, verbose=0)}
    return {
        name: float(np.mean(np.argmax(value.reshape(len(inputs), -1), -1) == read.labels))
        for name, value in found.items()
    }
