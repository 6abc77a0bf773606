"""A written file is loaded once before anybody gets it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rewriter.checking import interpreter
from rewriter.checking.worker import KERNELS, Interpreter
from rewriter.errors import ExportError, VerificationError
from rewriter.litert.file_model import FileModel
from rewriter.litert.islands import quiet
from rewriter.program import Program

_FAR = 256  # XNNPACK takes ratios of scales up to here


def load(path: Path, file: FileModel, program: Program, *, open_batch: bool = False) -> None:
    """Let LiteRT prepare a file: with its builtin kernels, and with those that it uses by default.

    The builtin kernels work out every shape from those of the inputs, which must come out as the
    file says.

    Args:
      path: the file.
      file: what it consists of.
      program: what it was written from, to name the Keras layer in an error.
      open_batch: whether the application sets the first size of all tensors; of layers in float the
        file does not say how many rows a sample has there.

    Raises:
      ExportError: LiteRT refuses the file, or makes tensors of other shapes.
    """
    extreme = _extreme(program)
    if extreme is not None:
        _load_elsewhere(path, file, extreme)
    details = _prepared(path, "builtin", file, program).get_tensor_details()
    shapes = {detail["index"]: tuple(detail["shape"].tolist()) for detail in details}
    first = 1 if open_batch else 0
    for index, tensor in enumerate(file.tensors):
        found = shapes.get(index, tensor.shape)
        if len(found) != len(tensor.shape) or found[first:] != tensor.shape[first:]:
            raise ExportError(
                f"{_layer(program, tensor.name)}: LiteRT makes a tensor of shape {found} "
                f"of '{tensor.name}', not of {tensor.shape}, which is what the model says. If a "
                "layer there declares a shape (output_shape of a Lambda, compute_output_shape), "
                "declare that of what it returns, with the batch first; otherwise please report "
                "this model."
            )
    _prepared(path, "xnnpack", file, program)


def _extreme(program: Program) -> str | None:
    """The layer of the first operator with scales so far apart that LiteRT may end the process."""
    for step in program.steps:
        grids = [*step.operator.inputs, step.operator.output]
        scales = [grid.scale for grid in grids if grid is not None and not grid.whole]
        if scales and max(scales) > _FAR * min(scales):
            return step.layer
    return None


def _load_elsewhere(path: Path, file: FileModel, layer: str) -> None:
    """Have a child process load the file, which may crash over the scales of a layer.

    Raises:
      ExportError: it does; the message names the operator.
    """
    content = path.read_bytes()
    try:
        for kernels in ("builtin", "xnnpack"):
            interpreter.Runner(content, kernels=kernels, isolated=True, file=file).close()
    except VerificationError as error:
        raise ExportError(
            f"Layer {layer!r}: the scales of its input and output are more than {_FAR} times "
            f"apart, and LiteRT cannot load the file: {error} See to the data that the model was "
            "calibrated with: an outlier, or an input of zeros alone, makes such ranges."
        ) from error


def _prepared(path: Path, kernels: str, file: FileModel, program: Program) -> Any:
    """LiteRT's interpreter of a file, which it has prepared."""
    try:
        with quiet():
            # One thread: it computes nothing.
            loaded: Any = Interpreter(
                model_path=str(path),
                experimental_op_resolver_type=KERNELS[kernels],
                num_threads=1,
            )
            loaded.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        numbered, name = re.search(r"[Nn]ode number (\d+)", str(error)), ""
        if numbered is not None and int(numbered[1]) < len(file.operators):
            name = file.tensors[file.operators[int(numbered[1])].outputs[0]].name
        raise ExportError(f"{_layer(program, name)}: LiteRT refuses the file: {error}") from error
    return loaded


def _layer(program: Program, name: str) -> str:
    """The Keras layer that a tensor of the file comes from."""
    layers = {step.output: step.layer for step in program.steps}
    for own, given in zip(program.outputs, program.output_names, strict=True):
        layers.setdefault(given, layers.get(own, ""))
    found = layers.get(name)
    return f"Layer '{found}'" if found else "The model"
