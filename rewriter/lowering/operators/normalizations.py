"""Layer, group and root-mean-square normalization: 16 bits inside, 8 or 16 at both ends.

Squares, a variance and its reciprocal root of 256 levels each would lose every row whose deviations
are small beside the largest; L2_NORMALIZATION keeps them, but returns values on a step of 1/128.
With ``n`` the elements of a row, ``s`` the step of the int8 input, and int16 in between::

    d = x - mean(x);  v = sum(d * d) + n * epsilon;  r = v ** -1/2
    y = gamma * sqrt(n) * d * r + beta

``d`` is exact but for the mean, on steps of ``s / 128``. LiteRT's RSQRT of int16 reads a table of
256 segments, which follows the function over a factor of some 64. A variance may be anywhere
between that of a rounding, ``s * s / 12``, and that of the grid's two ends, so the root is put
together from several stretches of that length: each clamps ``v`` to its own, and their sum less the
constants that the others contribute is ``r``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.grid import BITS
from rewriter.litert.integer_wide import root_of
from rewriter.lowering.finite import require_finite
from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Shape, Value, batched
from rewriter.program import Operator, Quantization
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

WIDE = 16
_MOST = 2**15 - 1
_FINER = 128  # int16 steps to a step of the input: 255 of those fit
_STRETCH = 64.0  # the table's lines are off by 0.3 % at most from its fourth segment on


def _normalize(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    options, sizes = operation.options, low.static(x[0].shape, call)
    groups, outer = options["groups"], options["outer"]
    scale, shift = options["scale"], options["shift"]
    rest = math.prod(sizes[:-1])
    wide = _widened(low, call, x[0])
    if groups is None:
        count = math.prod(sizes[outer:])
        rows: Shape = (None, *([math.prod(sizes[:outer])] if outer else []), count)
        layout = rows
    else:
        layout = (None, rest, sizes[-1])
        rows = (None, groups, rest * sizes[-1] // groups)
    regrouped = groups is not None and groups > 1
    width = sizes[-1] // (groups or 1)
    if regrouped:
        wide = low.reshape(call, wide, (None, rest, groups, width))
        shape: Shape = (None, groups, rest, width)
        wide = low.apply("TRANSPOSE", call, [wide], shape, perm=[0, 2, 1, 3])
    wide = low.reshape(call, wide, rows)
    unit = _unit(low, call, wide, low.grid(x[0]), options["centred"], options["epsilon"])
    if regrouped:
        unit = low.reshape(call, unit, (None, groups, rest, width))
        shape = (None, rest, groups, width)
        unit = low.apply("TRANSPOSE", call, [unit], shape, perm=[0, 2, 1, 3])
    unit = low.reshape(call, unit, layout)
    gamma = (np.ones(1) if scale is None else scale) * math.sqrt(int(rows[-1] or 0))
    return _affine(low, call, unit, gamma, None if shift is None else shift)


def _widened(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """The same values in 16 bits, less the zero point: exact.

    Of 16 bits already: on twice the step, for the deviations from a mean reach twice as far.
    """
    source = low.grid(x)
    step = float(np.float32(source.scale / _FINER if source.bits < WIDE else source.scale * 2))
    return low.apply("QUANTIZE", call, [x], x.shape, Quantization(step, 0, WIDE))


def _unit(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    source: Quantization,
    centred: bool,
    epsilon: float,
) -> Value:
    """``d / sqrt(sum(d * d) + n * epsilon)`` over the last axis, on a grid from -1 to 1."""
    count = int(x.shape[-1] or 0)
    single: Shape = (*x.shape[:-1], 1)
    reach = max(abs(end) for end in source.range)
    # As of 8 bits, whatever the input has: int16 holds no more roots than those.
    step = source.scale * 2 ** (source.bits - BITS)
    rounding = step**2 / 3
    if centred:
        last = len(x.shape) - 1
        mean = low.apply("MEAN", call, [x], single, axes=[last], keepdims=True)
        x = low.apply("SUB", call, [x, mean], x.shape)
        reach, rounding = (source.range[1] - source.range[0]) / 2, step**2 / 12
    most, least = (count * (square + epsilon) for square in (reach**2, rounding))
    root = _root(low, call, x, count * epsilon, most, least)
    unit = Quantization(float(np.float32(1 / _MOST)), 0, WIDE)
    return low.apply("MUL", call, [x, low.reshape(call, root, single)], x.shape, unit)


def _root(
    low: ProgramBuilder, call: Call, d: Value, added: float, most: float, least: float
) -> Value:
    """``(sum(d * d) + added) ** -1/2`` of each row, where the sum is from ``least`` to ``most``."""
    count = max(1, math.ceil(math.log(most / least, _STRETCH)))
    factor = (most / least) ** (1 / count)
    output = Quantization(float(np.float32(1 / (math.sqrt(least) * _MOST))), 0, WIDE)
    row: Shape = (*d.shape[:-1], 1, d.shape[-1])
    row_of = low.reshape(call, d, row)
    shape: Shape = (*d.shape[:-1], 1, 1)
    parts, constants = [], 0
    for place in range(count):
        high = most / factor**place
        grid = Quantization(float(np.float32(high / _MOST)), 0, WIDE)
        part = low.apply("BATCH_MATMUL", call, [row_of, row_of], shape, grid, transposed=True)
        if added > grid.scale / 2:
            part = low.apply("ADD", call, [part], shape, **_constant(added))
        bound = _constant(high / factor, grid.scale)
        part = low.apply("MAXIMUM", call, [part], shape, **bound)
        parts.append(low.apply("RSQRT", call, [part], shape, output))
        constants += root_of(_MOST, grid.scale, output.scale) if place else 0
    total = parts.pop()
    if constants:
        taken_off = _constant(-constants * output.scale, output.scale)
        total = low.apply("ADD", call, [total], shape, **taken_off)
    for part in reversed(parts):
        total = low.apply("ADD", call, [total, part], shape)
    return total


def _constant(values: Any, scale: float | None = None) -> dict[str, Any]:
    """The attributes of a constant operand of 16 bits, on a grid of its own or a given one."""
    values = np.asarray(values, np.float64)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    step = float(np.float32(largest / _MOST)) if scale is None else scale
    return {
        "constant": values.tolist(),
        "constant_quantization": {"scale": step, "zero_point": 0, "bits": WIDE},
    }


def _affine(
    low: ProgramBuilder, call: Call, x: Value, factor: np.ndarray, offset: np.ndarray | None
) -> Value:
    """``x * factor + offset`` along the last axis in 16 bits, pending, and then in 8."""
    for weights in (factor, 0 if offset is None else offset):
        require_finite(call.path, weights)
    largest = 0.0 if offset is None else float(np.abs(offset).max(initial=0.0))

    def reach(output: Quantization) -> float:
        return max(abs(end) for end in output.range)

    def product(output: Quantization) -> Quantization:
        """What the offset brings into the output's range; what is beyond saturates there too."""
        return Quantization(float(np.float32((reach(output) + largest) / _MOST)), 0, WIDE)

    def finish(output: Quantization, activation: str) -> Operator:
        return Operator("MUL", (low.grid(x),), output, _constant(factor))

    def after(done: Value, output: Quantization) -> Value:
        if largest:
            grid = Quantization(float(np.float32(reach(output) / _MOST)), 0, WIDE)
            done = low.apply("ADD", call, [done], done.shape, grid, **_constant(offset))
        done = low.apply("QUANTIZE", call, [done], done.shape, output)
        return low.reshape(call, done, batched(call.shapes[0]))

    value = low.pending(call.path, [x], x.shape, finish, fusable=False)
    value.shape, value.after, value.grid = batched(call.shapes[0]), after, product
    return value


ROWS: dict[str, Row] = {"normalize": _normalize}
