"""What LiteRT would refuse, found before the file is written and named by its Keras layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.litert.layouts import LAYOUTS
from rewriter.litert.rows import FUSED_ACTIVATIONS, ROWS, Row
from rewriter.program import Operator, Step, Tensor

if TYPE_CHECKING:
    from rewriter.partition import Island

Shape = tuple[int, ...]


def input_shape(name: str, shape: Sequence[int | None], batch: int) -> Shape:
    """The shape of an input in the file.

    Raises:
      ExportError: a size other than the batch is unknown.
    """
    sizes = tuple(int(size or 0) for size in shape[1:])
    if None in shape[1:]:
        raise ExportError(
            f"Input '{name}' has no fixed size, which integer operators "
            f"need. Received shape: {tuple(shape)}. Rebuild the model with a fixed input shape."
        )
    return (batch, *sizes)


def check(step: Step, shapes: list[Shape], wanted: Tensor) -> Shape:
    """The shape of a step's output, batch first.

    Args:
      step: what is computed.
      shapes: of its inputs in the file.
      wanted: the program's output tensor.

    Raises:
      ExportError: LiteRT would refuse the operator, or compute something else than is meant.
    """
    operator = step.operator
    row = ROWS.get(operator.kind)
    if row is None:
        raise _refusal(step, f"there is no such operator here. Known: {sorted(ROWS)}")
    problem = _grids(row, operator, wanted)
    if problem is None and operator.kernel is not None:
        problem = _constants(operator)
    if problem is not None:
        raise _refusal(step, problem)
    try:
        shape = row.shape(operator, shapes)
    except ValueError as error:
        raise _refusal(step, str(error)) from error
    if not _fits(shape, wanted):
        raise _refusal(step, f"it makes a tensor of shape {shape}, not of {wanted.shape}")
    return shape


def check_island(island: Island, wanted: Tensor, shape: Shape) -> None:
    """Raises ``ExportError`` if the converter has given a float tensor another shape."""
    if not _fits(shape, wanted):
        raise ExportError(
            f"{island.where}: the TensorFlow Lite converter makes a tensor of shape {shape} of "
            f"'{wanted.name}', not of {wanted.shape}. Give the model's Input a full static shape."
        )


def _fits(shape: Shape, wanted: Tensor) -> bool:
    """All sizes but the first: of a sample there may be several rows."""
    if len(shape) != len(wanted.shape):
        return False
    return all(b in (None, a) for a, b in zip(shape[1:], wanted.shape[1:], strict=True))


def _refusal(step: Step, problem: str) -> ExportError:
    return ExportError(
        f"Layer '{step.layer}': LiteRT would refuse step '{step.name}' ({step.operator.kind}): "
        f"{problem}. Please report this model."
    )


def _grids(row: Row, operator: Operator, wanted: Tensor) -> str | None:
    """Whether the quantizations of inputs and output agree with what LiteRT computes."""
    output, inputs = operator.output, operator.inputs
    if operator.activation not in FUSED_ACTIVATIONS:
        return f"it has no fused activation {operator.activation!r}"
    if output != wanted.quantization:
        return f"its output is on {output}, its tensor on {wanted.quantization}"
    if operator.kind == "DEQUANTIZE":
        return None if output is None else "its output must be float"
    if output is None:
        return "its output has no quantization"
    if any(grid is None for grid in inputs) and operator.kind != "QUANTIZE":
        return "it reads a float tensor"
    given = [*(grid for grid in inputs if grid is not None), output]
    widths = {grid.bits for grid in given}
    carried = set(grids.ACTIVATION_WIDTHS) if operator.kind != "QUANTIZE" else widths
    if not widths <= {*carried, 16} or (len(widths) > 1 and operator.kind != "QUANTIZE"):
        return f"it takes activations of one width. Received: {sorted(widths)} bits"
    if any(not np.isfinite(grid.scale) or grid.scale <= 0 for grid in given):
        return f"a scale is not positive. Received: {[grid.scale for grid in given]}"
    if any(not grid.qmin <= grid.zero_point <= grid.qmax for grid in given):
        return f"a zero point is out of range. Received: {[grid.zero_point for grid in given]}"
    if row.same_grid and any(grid != output for grid in inputs):
        return f"inputs and output must have one scale. Received: {inputs} and {output}"
    if row.grid is not None and output.bits == row.grid.bits and output != row.grid:
        return f"its output must be on {row.grid}. Received: {output}"
    return None


def _constants(operator: Operator) -> str | None:
    """Whether kernel, scales and bias fit each other."""
    if operator.kind not in LAYOUTS:
        return "it takes no kernel"
    kernel = np.asarray(operator.kernel)
    rank = 2 if operator.kind == "FULLY_CONNECTED" else 4
    if kernel.ndim != rank:
        return f"its kernel's rank must be {rank}. Received: {kernel.shape}"
    channels = LAYOUTS[operator.kind].channels(kernel)
    scale = np.asarray(operator.kernel_scale)
    if scale.shape != (channels,):
        return f"{channels} channels need as many scales. Received: {scale.shape}"
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        return "a scale of the kernel is not positive"
    if operator.bias is not None and np.shape(operator.bias) != (channels,):
        return f"{channels} channels need as many biases. Received: {np.shape(operator.bias)}"
    grid = operator.kernel_grid or grids.kernel()
    low, high = kernel.min(initial=0), kernel.max(initial=0)
    if low < grid.qmin or high > grid.qmax:
        return f"integers from {low} to {high} are not of {grid.bits} bits"
    return None
