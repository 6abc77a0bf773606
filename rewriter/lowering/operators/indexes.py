"""Operations that find places, or look something up by them: whole numbers, which have no range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.grid import BITS
from rewriter.litert import affine
from rewriter.lowering.finite import require_finite
from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value, batched
from rewriter.program import Operator, Quantization, whole
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation


def _place(kind: str) -> Row:
    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        axis, grid = operation.options["axis"], whole(operation.options["dtype"])
        shape = tuple(size for place, size in enumerate(x[0].shape) if place != axis)
        found = low.apply(kind, call, x, shape, grid, axis=axis)
        return low.reshape(call, found, batched(call.shapes[0]))  # keepdims

    return row


def _convert(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    grid = whole(operation.options["dtype"])
    return x[0] if low.grid(x[0]) == grid else low.apply("CAST", call, x, x[0].shape, grid)


def _look_up(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """The rows of a table that is stored on the grid of what is made of them."""
    layer, table = operation.options.get("layer"), operation.options.get("table")
    real = np.asarray(table if layer is None else layer.embeddings, np.float32)
    require_finite(call.path, real)

    def finish(output: Quantization, activation: str) -> Operator:
        stored = affine.quantize(real, output).numpy().clip(output.qmin, output.qmax)
        numbers = stored.astype(np.int8 if output.bits == BITS else np.int16)
        return Operator("GATHER", (low.grid(x[0]),), output, {"table": numbers})

    return low.pending(call.path, x, batched(call.shapes[0]), finish, fusable=False)


def _one_hot(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    depth, ends = operation.options["depth"], np.asarray(operation.options["ends"], np.float32)

    def finish(output: Quantization, activation: str) -> Operator:
        stored = affine.quantize(ends, output).numpy().clip(output.qmin, output.qmax)
        on, off = map(int, stored)
        return Operator(
            "ONE_HOT", (low.grid(x[0]),), output, {"depth": depth, "on": on, "off": off}
        )

    return low.pending(call.path, x, batched(call.shapes[0]), finish, fusable=False)


ROWS: dict[str, Row] = {
    "argmax": _place("ARG_MAX"),
    "argmin": _place("ARG_MIN"),
    "convert": _convert,
    "look_up": _look_up,
    "one_hot": _one_hot,
}
