"""Activation functions: fused into the operator before, or operators of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter import grid as grids
from rewriter.lowering import folding
from rewriter.lowering.linear import channel_affine
from rewriter.lowering.operators.rows import Row, constant
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation


def activate(low: ProgramBuilder, call: Call, operation: Operation, x: Value) -> Value:
    """The activation that a host applies."""
    made: Value = ROWS[operation.name](low, call, operation, [x])
    return made


def _identity(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return x[0]


def _clamp(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return low.clamp(x[0], operation.options["low"], operation.options["high"], call.path)


def _fixed(kind: str, limits: tuple[float, float]) -> Row:
    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        grid = folding.activation_quantization(*limits)
        return low.apply(kind, call, x, x[0].shape, quantization=grid)

    return row


def _along(kind: str, ends: tuple[float, float]) -> Row:
    """Over the last axis, on a prescribed grid; another axis is brought there and back."""

    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        (value,) = x
        rank, axis = len(value.shape), operation.options["axis"]
        grid = folding.activation_quantization(*ends)
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
    slopes = constant(np.asarray(operation.options["layer"].alpha))
    return low.free("PRELU", call, x, x[0].shape, **slopes)


def _silu(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """``x * sigmoid(x)``."""
    grid = folding.activation_quantization(*grids.UNIT_RANGE)
    gate = low.apply("LOGISTIC", call, x, x[0].shape, quantization=grid)
    return low.free("MUL", call, [x[0], gate], x[0].shape, fusable=True)


def _hard_sigmoid(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> Value:
    """``slope * x + 1/2``; the ends of the output's grid clip it to 0 and 1."""
    slope = np.asarray(operation.options["slope"])
    value = channel_affine(low, call, x[0], slope, np.asarray(0.5))
    return low.finish(value, folding.activation_quantization(*grids.HARD_RANGE), call.path)


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
    "hard_silu": _table("HARD_SWISH"),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "silu": _silu,
    "hard_sigmoid": _hard_sigmoid,
}
