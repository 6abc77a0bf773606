"""Roots, and reciprocal ones: LiteRT returns an error for an input below 0, so there is never one.

Its SQRT cuts off what is below a step of the output, which in 8 bits is half a step on the average;
so it is computed in 16 bits, and rounded to 8 behind it. Its RSQRT of 8 bits rounds to the nearest;
that of 16 reads a table that is far off where the root is steep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.grid import BITS, WIDE, activation
from rewriter.lowering.operators.rows import Row, grid_of
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value
from rewriter.program import Quantization
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

_MOST = activation(WIDE).qmax
_FINER = 128  # int16 steps to a step of the input: 255 of those fit


def _positive(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """``max(x, 0)``, where its grid has anything below."""
    grid = low.grid(x)
    if grid.zero_point == grid.qmin:
        return x
    zero: dict[str, Any] = {"constant": 0.0, "constant_quantization": grid_of(grid)}
    return low.apply("MAXIMUM", call, [x], x.shape, **zero)


def _sqrt(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    value, shape = _positive(low, call, x[0]), x[0].shape
    source = low.grid(value)
    if source.bits == WIDE:
        return low.free("SQRT", call, [value], shape)
    fine = Quantization(float(np.float32(source.scale / _FINER)), 0, WIDE)
    value = low.apply("QUANTIZE", call, [value], shape, fine)
    largest = math.sqrt(max(source.range[1], source.scale))
    root = Quantization(float(np.float32(largest / _MOST)), 0, WIDE)
    return low.free("QUANTIZE", call, [low.apply("SQRT", call, [value], shape, root)], shape)


def _rsqrt(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    if low.grid(x[0]).bits != BITS:
        raise ExportError(
            f"Layer {call.path!r} computes reciprocal roots of {WIDE} bits, which LiteRT reads "
            'from a table that is far off for small ones. Use the recipe "int8", or another layer.'
        )
    return low.free("RSQRT", call, [_positive(low, call, x[0])], x[0].shape)


ROWS: dict[str, Row] = {"sqrt": _sqrt, "rsqrt": _rsqrt}
