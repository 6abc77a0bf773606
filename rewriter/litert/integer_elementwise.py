"""Operators on two quantized tensors, or on a tensor and a constant, element by element.

ADD and SUB mirror XNNPACK's ``qs8-vadd`` (fixed point, one rounding), MUL its ``qs8-vmul``
(float32); their fused activation is a clamp afterwards. Scales too far apart for XNNPACK, and
MAXIMUM, MINIMUM and PRELU altogether, are left to LiteRT's builtin kernels.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.litert.integer_conv import requantize
from rewriter.litert.integer_fixed_point import (
    activation_limits,
    multiply,
    multiply_tensor,
    quantize_multiplier,
)
from rewriter.program import Operator, Quantization


def add(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``ADD``; of whole numbers in int32."""
    if operator.output is not None and operator.output.whole:
        values, _, _ = operands(operator, *q)
        return values[0] + values[1]
    return _add(operator, 1, *q)


def subtract(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``SUB``: an addition with a negative second multiplier."""
    return _add(operator, -1, *q)


def _add(operator: Operator, sign: int, *q: tf.Tensor) -> tf.Tensor:
    (a, b), (first, second), output = operands(operator, *q)
    ratios = [np.float32(s.scale) / np.float32(output.scale) for s in (first, second)]
    if not all(2.0**-10 <= ratio < 2.0**8 for ratio in ratios):
        return _builtin_add(operator, sign, *q)
    shift = 20 - (math.frexp(float(max(ratios)))[1] - 1)
    multipliers = [int(np.rint(np.ldexp(ratio, shift))) for ratio in ratios]
    multipliers[1] *= sign
    bias = (1 << (shift - 1)) - (
        multipliers[0] * first.zero_point + multipliers[1] * second.zero_point
    )
    sums = a * multipliers[0] + (b * multipliers[1] + bias)
    result = tf.bitwise.right_shift(sums, tf.constant(shift, tf.int32)) + output.zero_point
    low, high = activation_limits(operator.activation, output)
    return tf.clip_by_value(result, low, high)


def _builtin_add(operator: Operator, sign: int, *q: tf.Tensor) -> tf.Tensor:
    """LiteRT's builtin ADD and SUB: both inputs on half the coarser scale, in Q20, then summed."""
    values, quantizations, output = operands(operator, *q)
    coarsest = float(2 * max(np.float32(s.scale) for s in quantizations))
    terms = []
    for x, source in zip(values, quantizations, strict=True):
        # A table per input: int8 has but 256 values.
        levels = np.arange(source.qmin, source.qmax + 1, dtype=np.int64) - source.zero_point
        ratio = float(np.float32(source.scale)) / coarsest
        table = multiply(levels << 20, *quantize_multiplier(ratio))
        terms.append(tf.gather(tf.constant(table, tf.int32), x - source.qmin))
    step = float(np.float32(2**20) * np.float32(output.scale))
    result = multiply_tensor(terms[0] + sign * terms[1], coarsest / step)
    low, high = activation_limits(operator.activation, output)
    return tf.clip_by_value(result + output.zero_point, low, high)


def product(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``MUL``. Raises RewriterError where LiteRT's kernels differ: see below."""
    (a, b), (first, second), output = operands(operator, *q)
    scale = np.float32(first.scale) * np.float32(second.scale) / np.float32(output.scale)
    products = (a - first.zero_point) * (b - second.zero_point)
    if scale >= 2.0**8:
        raise RewriterError(
            "MUL: one step of the product would be 256 steps of the output or more, which LiteRT's "
            f"kernels do not compute alike. Received: {float(scale)}. Widen the output's range."
        )
    if scale < 2.0**-16:  # The builtin kernel.
        result = multiply_tensor(products, float(scale))
        low, high = activation_limits(operator.activation, output)
        return tf.clip_by_value(result + output.zero_point, low, high)
    return requantize(products, scale, output, operator.activation)


def squared_difference(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``SQUARED_DIFFERENCE``, builtin kernel: on twice the coarser scale, in 7 more bits."""
    values, quantizations, output = operands(operator, *q)
    twice = 2 * max(np.float32(s.scale) for s in quantizations)
    terms = [
        multiply_tensor((x - s.zero_point) * 2**7, float(np.float32(s.scale)) / float(twice))
        for x, s in zip(values, quantizations, strict=True)
    ]
    difference = terms[0] - terms[1]
    factor = float(twice) * float(twice) / (2**14 * float(np.float32(output.scale)))
    result = multiply_tensor(difference * difference, factor) + output.zero_point
    return tf.clip_by_value(result, output.qmin, output.qmax)


def maximum(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``MAXIMUM``: all three tensors share one quantization."""
    return tf.maximum(*_on_one_grid(operator, *q))


def minimum(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``MINIMUM``: all three tensors share one quantization."""
    return tf.minimum(*_on_one_grid(operator, *q))


def _on_one_grid(operator: Operator, *q: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    values, quantizations, output = operands(operator, *q)
    require_same(operator.kind, output, *quantizations)
    return values


def require_same(kind: str, output: Quantization | None, *inputs: Quantization | None) -> None:
    """Raises ``RewriterError`` unless all inputs are quantized as the output is."""
    if any(source != output for source in inputs):
        raise RewriterError(
            f"{kind} moves integers as they are, so its inputs and its output must share one "
            f"quantization. Received: inputs {inputs}, output {output}. "
            "Put a QUANTIZE operator before it."
        )


def prelu(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``PRELU`` with a constant slope: a table of 256 outputs for every slope that occurs."""
    source, output = _quantized(operator, operator.inputs[0]), _quantized(operator, operator.output)
    slopes, grid = constant(operator)
    levels, which = np.unique(slopes, return_inverse=True)
    x = np.arange(source.qmin, source.qmax + 1, dtype=np.int64) - source.zero_point
    ratio = float(np.float32(source.scale) / np.float32(output.scale))
    slope_ratio = float(
        np.float32(source.scale) * np.float32(grid.scale) / np.float32(output.scale)
    )
    positive = multiply(x, *quantize_multiplier(ratio))
    rows = []
    for level in levels:
        factor = int(level) - grid.zero_point
        negative = multiply(x * factor, *quantize_multiplier(slope_ratio))
        rows.append(np.where(x >= 0, positive, negative))
    table = np.clip(np.stack(rows) + output.zero_point, output.qmin, output.qmax)
    offsets = which.reshape(slopes.shape) * len(x) - source.qmin
    return tf.gather(tf.constant(table.ravel(), tf.int32), q + tf.constant(offsets, tf.int32))


def operands(
    operator: Operator, *q: tf.Tensor
) -> tuple[tuple[tf.Tensor, tf.Tensor], tuple[Quantization, Quantization], Quantization]:
    """Both operands, their quantizations and the output's; a constant is the second operand."""
    output = _quantized(operator, operator.output)
    first = _quantized(operator, operator.inputs[0])
    if "constant" in operator.attributes:
        values, grid = constant(operator)
        return (q[0], tf.constant(values, tf.int32)), (first, grid), output
    return (q[0], q[1]), (first, _quantized(operator, operator.inputs[1])), output


def constant(operator: Operator) -> tuple[np.ndarray, Quantization]:
    """The integers of the constant operand and their quantization.

    ``attributes["constant"]`` holds real values (a nested list), ``"constant_quantization"``
    their ``scale`` and ``zero_point``.
    """
    grid = Quantization(**operator.attributes["constant_quantization"])
    real = np.asarray(operator.attributes["constant"], np.float64)
    integers = np.rint(real / grid.scale) + grid.zero_point
    return np.clip(integers, grid.qmin, grid.qmax).astype(np.int64), grid


def _quantized(operator: Operator, quantization: Quantization | None) -> Quantization:
    if quantization is None:
        raise RewriterError(
            f"{operator.kind} is computed on int8 tensors only. Received: a float tensor. "
            "Quantize it."
        )
    return quantization
