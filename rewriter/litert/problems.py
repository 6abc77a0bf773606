"""Why LiteRT would refuse an operator of a program: what its row of the file says of it."""

from __future__ import annotations

import numpy as np

from rewriter.grid import BITS
from rewriter.litert import integer_wide_limits
from rewriter.litert.fields import FUSED_ACTIVATIONS
from rewriter.litert.rows import ROWS, Layout
from rewriter.program import Operator


def problem(operator: Operator) -> str | None:
    """Why LiteRT would refuse an operator, or compute something else than is meant; or None.

    What depends on shapes is found out when LiteRT loads the file.
    """
    row, output, inputs = ROWS.get(operator.kind), operator.output, operator.inputs
    grids = [grid for grid in (*inputs, output) if grid is not None]
    converts = operator.kind in ("QUANTIZE", "DEQUANTIZE", "CAST")
    if row is None:
        return f"there is no such operator here. Known: {sorted(ROWS)}"
    if operator.activation not in FUSED_ACTIVATIONS:
        return f"it has no fused activation {operator.activation!r}"
    if not converts and len(grids) <= len(inputs):
        return f"it takes quantized tensors only. Received: {inputs} and {output}"
    if any(not 0 < grid.scale < np.inf for grid in grids):
        return f"a scale is not positive. Received: {inputs} and {output}"
    if any(not grid.qmin <= grid.zero_point <= grid.qmax for grid in grids):
        return f"a zero point is out of range. Received: {inputs} and {output}"
    if row.same_grid and len({*grids}) > 1:
        return f"inputs and output must have one scale. Received: {inputs} and {output}"
    if row.grid is not None and output not in (None, row.grid) and output.bits == BITS:
        return f"its output must be on {row.grid}. Received: {output}"
    if (found := integer_wide_limits.problem(operator)) is not None:
        return found
    if (row.layout is None) != (operator.kernel is None):
        return "it has a kernel where it takes none, or none where it takes one"
    return None if row.layout is None else _kernel_problem(operator, row.layout)


def _kernel_problem(operator: Operator, layout: Layout) -> str | None:
    """Whether kernel, scales and bias fit each other."""
    kernel = np.asarray(operator.kernel)
    if kernel.ndim != len(layout.axes or (0, 1, 2, 3)):
        return f"its kernel has the wrong rank. Received: {kernel.shape}"
    channels = layout.to_file(kernel).shape[layout.channels]
    scale, bias = np.asarray(operator.kernel_scale), operator.bias
    if scale.shape != (channels,) or np.shape(scale if bias is None else bias) != scale.shape:
        return f"{channels} channels need as many scales and biases"
    if not ((scale > 0) & (scale < np.inf)).all():
        return "a scale of the kernel is not positive"
    grid = operator.kernel_grid
    if grid is not None and not grid.qmin <= kernel.min() <= kernel.max() <= grid.qmax:
        return f"integers from {kernel.min()} to {kernel.max()} are not of {grid.bits} bits"
    return None
