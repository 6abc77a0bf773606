"""Sums, products, extremes and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.lowering import folding, widths
from rewriter.lowering.linear import channel_affine
from rewriter.lowering.operators.rows import Row, constant, multiplied, scaled
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Shape, Value, batched
from rewriter.program import Operator, Quantization
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

Range = tuple[float, float]


def _broadcast(a: Value, b: Value) -> Shape:
    """The shape of an element-by-element result; the batch stays unknown."""
    rank = max(len(a.shape), len(b.shape))
    first, second = ((1,) * (rank - len(v.shape)) + v.shape for v in (a, b))
    return (
        None,
        *(m if n == 1 else n for n, m in zip(first[1:], second[1:], strict=True)),
    )


def _chain(
    low: ProgramBuilder,
    call: Call,
    x: Sequence[Value],
    kind: str,
    combine: Callable[[Range, Range], Range],
) -> Value:
    """All but the last operand: partial results get the range that cannot overflow."""
    first = x[0]
    for other in x[1:-1]:
        ends = combine(low.grid(first).range, low.grid(other).range)
        grid = folding.activation_quantization(*ends, low.grid(first).grid)
        first = low.apply(kind, call, [first, other], _broadcast(first, other), quantization=grid)
    return first


def _sums(a: Range, b: Range) -> Range:
    return a[0] + b[0], a[1] + b[1]


def _products(a: Range, b: Range) -> Range:
    corners = [p * q for p in a for q in b]
    return min(corners), max(corners)


def _add(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    scales = operation.options.get("scales", [1.0] * len(x))
    x = [
        value if scale == 1 else _scaled_operand(low, call, value, scale)
        for value, scale in zip(x, scales, strict=True)
        if scale
    ]
    if len(x) == 1:
        return x[0]
    first = _chain(low, call, x, "ADD", _sums)
    return low.free("ADD", call, [first, x[-1]], fusable=True)


def _scaled_operand(low: ProgramBuilder, call: Call, x: Value, scale: float) -> Value:
    if scale > 0:
        return multiplied(low, call, x, scale)
    least, most = sorted(scale * end for end in low.grid(x).range)
    source = low.grid(x)
    grid = folding.activation_quantization(least, most, source.grid)
    numbers = constant(scale, source.bits)
    return low.apply("MUL", call, [x], x.shape, quantization=grid, **numbers)


def _average(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """The sum on a grid n times as coarse has the integers of the mean; a MUL renames them."""
    count = len(x)
    if count == 1:
        return x[0]
    first = _chain(low, call, x, "ADD", _sums)
    return _rescaled(low, call, low.free("ADD", call, [first, x[-1]]), count)


def _rescaled(low: ProgramBuilder, call: Call, value: Value, factor: float) -> Value:
    """A pending operator whose output is to be divided by ``factor``."""
    value.grid = lambda grid: scaled(grid, factor)

    def after(done: Value, quantization: Quantization) -> Value:
        return low.apply(
            "MUL",
            call,
            [done],
            done.shape,
            quantization=quantization,
            **constant(1 / factor, quantization.bits),
        )

    value.after = after
    return value


def _subtract(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return low.free("SUB", call, x, fusable=True)


def _multiply(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    first = _chain(low, call, x, "MUL", _products)
    return low.free("MUL", call, [first, x[-1]], fusable=True)


def _extreme(kind: str) -> Row:
    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        first = x[0]
        for other in x[1:]:
            first = low.apply(kind, call, [first, other], _broadcast(first, other))
        return first

    return row


def _affine(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """One number: MUL or ADD. Numbers for the channels: a depthwise convolution, exact for each."""
    (value,) = x
    scale, offset = operation.options["scale"], operation.options["offset"]
    grows = batched(call.shapes[0]) != value.shape
    single = scale.size == 1 and offset.size == 1
    if not grows and (_per_channel(value, scale) and _per_channel(value, offset)):
        plain = single and (np.all(scale == 1) or np.all(offset == 0))
        if not plain:
            return channel_affine(low, call, value, scale, offset)
    bits = low.grid(value).bits
    if np.all(offset == 0):
        return low.free("MUL", call, [value], fusable=True, **constant(scale, bits))
    if np.all(scale == 1):
        return _shifted(low, call, value, offset)
    raise ExportError(
        f"Layer {call.path!r} scales and shifts by constants of shapes {scale.shape} and "
        f"{offset.shape}, which are not one number for each channel. Use one number, or one for "
        "each channel."
    )


def _shifted(low: ProgramBuilder, call: Call, value: Value, offset: np.ndarray) -> Value:
    """A sum with constants, of which a mask's are as large as it takes to reach the grid's end.

    Larger ones give the same, and leave the constants' own grid no step for the others.
    """
    source = low.grid(value)
    made = low.free("ADD", call, [value], fusable=True, **constant(offset, source.bits))

    def finish(output: Quantization, activation: str) -> Operator:
        least, most = source.range
        enough = np.clip(offset, output.range[0] - most, output.range[1] - least)
        return Operator("ADD", (source,), output, constant(enough, source.bits), activation)

    made.finish = finish
    return made


def _concatenate_constants(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> Value:
    """Zeros around the tensor, and a sum with the constants: for a batch of any size."""
    (value,) = x
    axis = operation.options["axis"]
    before, after = operation.options["before"], operation.options["after"]
    widths = [0 if part is None else part.shape[axis] for part in (before, after)]
    sizes = low.static(value.shape, call)
    paddings = [[0, 0] for _ in value.shape]
    paddings[axis] = widths
    shape = (None, *(s + sum(p) for s, p in zip(sizes, paddings[1:], strict=True)))
    padded = low.apply("PAD", call, [value], shape, paddings=paddings)
    middle = np.zeros((1, *sizes))
    table = np.concatenate([p for p in (before, middle, after) if p is not None], axis)
    return low.free("ADD", call, [padded], fusable=True, **constant(table))


def _per_channel(x: Value, numbers: np.ndarray) -> bool:
    """Whether ``numbers`` is a single one or one for each index of the last axis."""
    if numbers.size == 1:
        return x.shape[-1] is not None
    return numbers.size == numbers.shape[-1] == x.shape[-1]


def _collapsed(
    low: ProgramBuilder, call: Call, operation: Operation, x: Value
) -> tuple[Value, list[int]]:
    """Of ranks over 4: neighbours that are all reduced, or all kept, as one axis.

    LiteRT's kernels reduce up to rank 4.
    """
    axes = list(operation.options["axes"])
    if len(x.shape) <= 4:
        return x, axes
    merged: list[int] = []
    reduced: list[bool] = []
    for axis, size in enumerate(low.static(x.shape, call), 1):
        if reduced and reduced[-1] == (axis in axes):
            merged[-1] *= size
        else:
            merged.append(size)
            reduced.append(axis in axes)
    if len(merged) > 3:
        raise ExportError(
            f"Layer {call.path!r} reduces the axes {axes} of a tensor of rank {len(x.shape)}, "
            "which lie too far apart for LiteRT's kernels. Reduce them one after the other."
        )
    places = [axis for axis, inside in enumerate(reduced, 1) if inside]
    return low.reshape(call, x, (None, *merged)), places


def _reduce(
    low: ProgramBuilder, call: Call, operation: Operation, x: Value, kind: str
) -> tuple[Value, Shape]:
    x, axes = _collapsed(low, call, operation, x)
    keepdims = operation.options["keepdims"] and len(call.input_shapes[0]) <= 4
    shape = tuple(
        1 if axis in axes else size
        for axis, size in enumerate(x.shape)
        if keepdims or axis not in axes
    )
    make = low.free if kind == "MEAN" else low.apply
    if kind == "MEAN":
        count = math.prod(int(x.shape[axis] or 1) for axis in axes)
        widths.require_count(call.path, low.grid(x).bits, count)
    made = make(kind, call, [x], shape, axes=axes, keepdims=keepdims)
    return made, batched(call.shapes[0])


def _mean(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    made, shape = _reduce(low, call, operation, x[0], "MEAN")
    return low.reshaped(call, made, shape)


def _sum(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """The mean on a grid ``1 / n`` as fine, and then ``n`` times that."""
    sizes = low.static(x[0].shape, call)
    count = int(np.prod([sizes[axis - 1] for axis in operation.options["axes"]]))
    made, shape = _reduce(low, call, operation, x[0], "MEAN")
    return low.reshaped(call, _rescaled(low, call, made, 1 / count), shape)


def _most(kind: str) -> Row:
    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        made, shape = _reduce(low, call, operation, x[0], kind)
        return low.reshape(call, made, shape)

    return row


def _squared_difference(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> Value:
    """LiteRT has it in 8 bits only: otherwise a difference, multiplied by itself."""
    first, second = (low.grid(value) for value in x)
    if first.bits == grids.BITS:
        return low.free("SQUARED_DIFFERENCE", call, x)
    reach = max(abs(end) for grid in (first, second) for end in grid.range)
    grid = folding.activation_quantization(-2 * reach, 2 * reach, first.grid)
    difference = low.apply("SUB", call, x, quantization=grid)
    return low.free("MUL", call, [difference, difference], fusable=True)


ROWS: dict[str, Row] = {
    "add": _add,
    "average": _average,
    "subtract": _subtract,
    "multiply": _multiply,
    "maximum": _extreme("MAXIMUM"),
    "minimum": _extreme("MINIMUM"),
    "affine": _affine,
    "concatenate_constants": _concatenate_constants,
    "mean": _mean,
    "sum": _sum,
    "max": _most("REDUCE_MAX"),
    "min": _most("REDUCE_MIN"),
    "squared_difference": _squared_difference,
}
