"""Pooling over one or two axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewriter.lowering import widths
from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation


def _pool(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """Over (1, length) where there is one axis: LiteRT has no other."""
    options = operation.options
    size, strides = list(options["pool_size"]), list(options["strides"])
    value, shape = x[0], (None, *call.shapes[0][1:])
    if options["kind"] == "AVERAGE_POOL_2D":
        widths.require_count(call.path, low.grid(value).bits, math.prod(size))
    if len(size) == 2:
        wide = shape
    else:
        value = low.reshape(call, value, (None, 1, *low.static(value.shape, call)))
        size, strides, wide = [1, *size], [1, *strides], (None, 1, *shape[1:])
    pooled = low.apply(
        options["kind"],
        call,
        [value],
        wide,
        pool_size=size,
        strides=strides,
        padding=options["padding"],
    )
    return low.reshape(call, pooled, shape)


ROWS: dict[str, Row] = {"pool": _pool, "rounded_pool": _pool}
