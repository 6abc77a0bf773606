"""The constants of operators in a file: kernels, biases, operands, shapes and places."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.grid import BITS
from rewriter.litert.file_builder import FileBuilder
from rewriter.litert.integer_elementwise import constant
from rewriter.litert.rows import ROWS, Layout
from rewriter.program import Step


def beside(
    file: FileBuilder, step: Step, inputs: list[int], made: tuple[int, ...], open_batch: bool
) -> list[int]:
    """The inputs of a step's operator, with its constants in their places.

    Args:
      file: to add them to.
      step: whose operator it is.
      inputs: the file's tensors that the step reads.
      made: the shape of its output in the file.
      open_batch: whether the first size of that may be changed by the application.
    """
    operator, row = step.operator, ROWS[step.operator.kind]
    if row.layout is not None:
        inputs = _kernel(file, step, row.layout, inputs, made)
    if "table" in operator.attributes and operator.output is not None:
        grid = operator.output
        rows = np.asarray(operator.attributes["table"], _type(grid.bits))
        table = file.constant(f"{step.name}/table", rows, grid.scale, zero_point=grid.zero_point)
        inputs = [table, *inputs]
    if "constant" in operator.attributes:
        numbers, grid = constant(operator)
        stored = np.atleast_1d(numbers.astype(_type(grid.bits)))
        name, scale = f"{step.name}/constant", None if grid.whole else grid.scale
        inputs.append(file.constant(name, stored, scale, zero_point=grid.zero_point))
    rest = row.constants(operator)
    if operator.kind == "RESHAPE":
        first, *sizes = made
        rest = {"shape": np.asarray([-1 if open_batch else first, *sizes], np.int32)}
    found = [*inputs, *(file.constant(f"{step.name}/{n}", v) for n, v in rest.items())]
    if operator.output is None:
        return found
    grid, more = operator.output, {"value": operator.output.qmin} if row.padded else {}
    more |= {key: operator.attributes[key] for key in ("on", "off") if key in operator.attributes}
    for key, number in more.items():
        stored, name = np.asarray(number, _type(grid.bits)), f"{step.name}/{key}"
        found.append(file.constant(name, stored, grid.scale, zero_point=grid.zero_point))
    return found


def _type(bits: int) -> np.dtype[Any]:
    return np.dtype(f"int{bits}")


def _kernel(
    file: FileBuilder, step: Step, layout: Layout, inputs: list[int], made: tuple[int, ...]
) -> list[int]:
    """Input, kernel and bias; a TRANSPOSE_CONV has the shape of its output in front."""
    operator, source = step.operator, step.operator.inputs[0]
    scale = np.asarray(operator.kernel_scale, np.float32)
    channels = len(scale)
    if operator.kind == "FULLY_CONNECTED" and (scale == scale[0]).all():
        scale = scale[:1]  # one for the whole kernel, which is all that some devices take
    kernel = file.constant(
        f"{step.name}/kernel",
        layout.to_file(np.asarray(operator.kernel, np.int8)),
        scale,
        axis=layout.channels,
        bits=operator.kernel_storage_bits or BITS,
    )
    # 16-bit activations accumulate in 64 bits, and their kernels read a 64-bit bias. There is
    # always one: TRANSPOSE_CONV fuses an activation only beside a bias.
    wide = np.int64 if source is not None and source.bits > BITS else np.int32
    numbers = np.zeros(channels) if operator.bias is None else operator.bias
    step_size = np.float32(source.scale if source is not None else 1) * scale
    bias = file.constant(f"{step.name}/bias", np.asarray(numbers, wide), step_size)
    if operator.kind != "TRANSPOSE_CONV":
        return [*inputs, kernel, bias]
    shape = np.asarray(made, np.int32)
    return [file.constant(f"{step.name}/output_shape", shape), kernel, *inputs, bias]
