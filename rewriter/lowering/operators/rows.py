"""What a row is, and the constants that several rows use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.grid import BITS, activation
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value
from rewriter.program import Quantization
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

Row = Callable[[ProgramBuilder, Call, Operation, Sequence[Value]], Any]


def constant(values: Any, bits: int = BITS) -> dict[str, Any]:
    """The attributes of a constant operand, on a symmetric grid of its own, ``bits`` wide.

    A single number is the largest on its grid, and so exact but for the scale's float32.
    """
    values = np.asarray(values, np.float64)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    scale = float(np.float32(largest / activation(bits).qmax))
    return {
        "constant": values.tolist(),
        "constant_quantization": grid_of(Quantization(scale, 0, bits)),
    }


def grid_of(quantization: Quantization) -> dict[str, Any]:
    """The attribute that says the grid of a constant operand."""
    found = {"scale": quantization.scale, "zero_point": quantization.zero_point}
    return found if quantization.bits == BITS else {**found, "bits": quantization.bits}


def scaled(grid: Quantization, factor: float) -> Quantization:
    """The grid whose integers stand for values ``factor`` times as large; ``factor > 0``."""
    return Quantization(float(np.float32(grid.scale * factor)), grid.zero_point, grid.bits)


def multiplied(low: ProgramBuilder, call: Call, x: Value, factor: float) -> Value:
    """``x * factor`` for a positive factor: the same integers on another grid."""
    grid = scaled(low.grid(x), factor)
    return low.apply("MUL", call, [x], x.shape, quantization=grid, **constant(factor, grid.bits))
