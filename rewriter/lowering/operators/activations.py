"""Activation functions: fused into the operator before, or operators of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter import grid as grids
from rewriter.lowering import widths
from rewriter.lowering.linear import channel_affine
from rewriter.lowering.operators.rows import Row, constant, grid_of, scaled
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation


def _identity(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return x[0]


def _clamp(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return low.clamp(x[0], operation.options["low"], operation.options["high"], call.path)


def _fixed(kind: str, limits: tuple[float, float]) -> Row:
    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        grid = low.prescribed(limits, x[0])
        return low.apply(kind, call, x, x[0].shape, quantization=grid)

    return row


def _along(kind: str, ends: tuple[float, float]) -> Row:
    """Over the last axis, on a prescribed grid; another axis is brought there and back."""

    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        (value,) = x
        rank, axis = len(value.shape), operation.options["axis"]
        grid = low.prescribed(ends, value)
        if kind == "SOFTMAX":
            widths.require_count(call.path, low.grid(value).bits, int(value.shape[axis] or 1))
        perm = list(range(rank))
        perm[axis], perm[-1] = perm[-1], perm[axis]
        if axis != rank - 1:
            value = _transposed(low, call, value, perm)
        value = low.apply(kind, call, [value], value.shape, quantization=grid)
        return value if axis == rank - 1 else _transposed(low, call, value, perm)

    return row


def _transposed(low: ProgramBuilder, call: Call, x: Value, perm: list[int]) -> Value:
    shape = tuple(x.shape[axis] for axis in perm)
    return low.apply("TRANSPOSE", call, [x], shape, perm=perm)


def _table(kind: str, *names: str) -> Row:
    """An operator on each element with a range of its own; ``names``: its options."""

    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        attributes: dict[str, Any] = {name: operation.options[name] for name in names}
        return low.free(kind, call, x, x[0].shape, **attributes)

    return row


def _leaky_relu(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    alpha = float(np.asarray(operation.options["alpha"]))
    value = low.free("LEAKY_RELU", call, x, x[0].shape, alpha=alpha)
    value.high = operation.options.get("high", value.high)
    return value


def _prelu(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    alpha = np.asarray(operation.options["layer"].alpha, np.float64)
    if low.grid(x[0]).bits > grids.BITS:
        return _wide_prelu(low, call, x[0], alpha)
    return low.free("PRELU", call, x, x[0].shape, **constant(alpha))


def _wide_prelu(low: ProgramBuilder, call: Call, x: Value, alpha: np.ndarray) -> Value:
    """``max(x, 0) + alpha * min(x, 0)``: LiteRT computes PRELU of 16 bits wrongly."""
    source = low.grid(x)
    zero: dict[str, Any] = {"constant": 0.0, "constant_quantization": grid_of(source)}
    above = low.apply("MAXIMUM", call, [x], x.shape, **zero)
    below = low.apply("MINIMUM", call, [x], x.shape, **zero)
    steepest = float(np.abs(alpha).max(initial=0.0)) or 1.0
    slopes = constant(alpha, source.bits)
    below = low.apply("MUL", call, [below], x.shape, scaled(source, steepest), **slopes)
    return low.free("ADD", call, [above, below], x.shape, fusable=True)


def _hard_silu(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """LiteRT's operator; it has none of 16 bits, which is ``x * min(max(x / 6 + 1/2, 0), 1)``."""
    if low.grid(x[0]).bits == grids.BITS:
        return low.free("HARD_SWISH", call, x, x[0].shape)
    gate = channel_affine(low, call, x[0], np.asarray(1 / 6), np.asarray(0.5))
    gate.clamp(0.0, math.inf)
    gate = low.finish(gate, low.prescribed(grids.HARD_RANGE, x[0]), call.path)
    return low.free("MUL", call, [x[0], gate], x[0].shape, fusable=True)


def _silu(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """``x * sigmoid(x)``."""
    grid = low.prescribed(grids.UNIT_RANGE, x[0])
    gate = low.apply("LOGISTIC", call, x, x[0].shape, quantization=grid)
    return low.free("MUL", call, [x[0], gate], x[0].shape, fusable=True)


def _hard_sigmoid(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> Value:
    """``slope * x + 1/2``; the ends of the output's grid, or an activation, clip it to 0 and 1."""
    slope = np.asarray(operation.options["slope"])
    value = channel_affine(low, call, x[0], slope, np.asarray(0.5))
    if low.grid(x[0]).bits > grids.BITS:
        value.clamp(0.0, math.inf)
    return low.finish(value, low.prescribed(grids.HARD_RANGE, x[0]), call.path)


ROWS: dict[str, Row] = {
    "identity": _identity,
    "cast": _identity,
    "bytes": _identity,
    "clamp": _clamp,
    "sigmoid": _fixed("LOGISTIC", grids.UNIT_RANGE),
    "tanh": _fixed("TANH", grids.TANH_RANGE),
    "softmax": _along("SOFTMAX", grids.UNIT_RANGE),
    "elu": _table("ELU"),
    "abs": _table("ABS"),
    "exp": _table("EXP"),
    "log": _table("LOG"),
    "unit": _along("L2_NORMALIZATION", grids.TANH_RANGE),
    "gelu": _table("GELU", "approximate"),
    "hard_silu": _hard_silu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "silu": _silu,
    "hard_sigmoid": _hard_sigmoid,
}
