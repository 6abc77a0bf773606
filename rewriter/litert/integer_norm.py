"""Roots: L2_NORMALIZATION (values over the root of the sum of their squares), RSQRT and SQRT.

LiteRT's builtin kernels (``reference/integer_ops/l2normalization.h``, ``elementwise.cc``); XNNPACK
has none. A reciprocal root is found by five of Newton's steps in fixed point. SQRT is in float32,
and cuts off what is below a step.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import ACTIVATION
from rewriter.litert.integer_fixed_point import multiply, quantize_multiplier
from rewriter.program import Operator, Quantization

OUTPUT = Quantization(1 / (ACTIVATION.qmax + 1), 0)

_HALF_SQRT_2 = 1518500250  # sqrt(1/2) in Q0.31
_ONE, _THREE_HALVES = 2**28, 2**28 + 2**27  # in Q3.28
_INT32_MAX = 2**31 - 1
_FINE = 20  # bits behind the point of a reciprocal root


def l2_normalization(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``L2_NORMALIZATION`` over the last axis. Raises RewriterError for another output's grid."""
    source = operator.inputs[0]
    if source is None or operator.output != OUTPUT:
        raise RewriterError(
            f"L2_NORMALIZATION takes int8 tensors to the grid {OUTPUT}. Received: input {source}, "
            f"output {operator.output}."
        )
    centred = tf.cast(q - source.zero_point, tf.int64)
    total = tf.reduce_sum(centred * centred, axis=-1, keepdims=True)
    multiplier, right = _reciprocal_root(total)
    shift = 7 - right  # of 2**7 steps in 1
    high = _high_product(centred * _power(tf.maximum(shift, 0)), multiplier)
    rounded = _rounding_divide(high, _power(tf.maximum(-shift, 0)))
    return tf.cast(tf.clip_by_value(rounded, OUTPUT.qmin, OUTPUT.qmax), tf.int32)


def square_root(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``SQRT`` of 8 or 16 bits. LiteRT refuses to compute numbers below 0.

    Raises:
      RewriterError: a tensor is not quantized.
    """
    source, output = operator.inputs[0], operator.output
    if source is None or output is None:
        raise RewriterError(f"SQRT takes quantized tensors. Received: {source}, {output}.")
    # By NumPy: a graph makes a product with the reciprocal of a division by a constant.
    values = np.arange(source.lowest, source.qmax + 1, dtype=np.int64) - source.zero_point
    real = np.maximum(values, 0).astype(np.float32) * np.float32(source.scale)
    steps = np.trunc(np.sqrt(real) / np.float32(output.scale)).astype(np.int64)
    table = np.clip(steps + output.zero_point, output.lowest, output.qmax)
    return tf.gather(tf.constant(table, tf.int32), q - source.lowest)


def reciprocal_roots(
    operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
) -> np.ndarray:
    """``RSQRT`` of 8 bits, for a table: the highest for 0; LiteRT refuses to compute what is below.

    Args:
      operator: of the kind.
      x: the integers of the source, int64.
      source, output: the grids.
    """
    values = np.maximum(x - source.zero_point, 0)
    with tf.init_scope():
        found = _reciprocal_root(tf.constant(values, tf.int64))
        multipliers, shifts = (np.asarray(part) for part in found)
    root = np.sqrt(np.float32(source.scale)) * np.float32(output.scale)
    factor = quantize_multiplier(1.0 / float(root))
    results = []
    for value, multiplier, shift in zip(values, multipliers, shifts, strict=True):
        fine = multiply(np.ones(1, np.int64), int(multiplier), _FINE - int(shift))
        step = multiply(fine, factor[0], factor[1] - _FINE)[0] + output.zero_point
        results.append(output.qmax if value == 0 else int(step))
    return np.array(results, np.int64)


def _reciprocal_root(total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``total ** -1/2`` as an int32 multiplier in Q0.31 and a shift to the right.

    ``GetInvSqrtQuantizedMultiplierExp`` of LiteRT. 0 is taken for 1.
    """
    large = tf.cast(total >= 2**29, tf.int64)
    mantissa = tf.maximum(total // (1 + 3 * large), 2)
    powers = tf.constant([2**k for k in range(31)], tf.int64)
    bits = tf.reduce_sum(tf.cast(mantissa[..., None] >= powers, tf.int64), axis=-1)
    pairs = (31 - bits) // 2 - 1
    shift = 11 + large - pairs
    mantissa *= _power(2 * pairs)
    half = (mantissa // 2 + 1) // 2
    x = tf.fill(tf.shape(total), tf.constant(_ONE, tf.int64))
    for _ in range(5):
        cube = tf.minimum(_high_product(_high_product(x, x), x) * 2**6, _INT32_MAX)
        step = _high_product(x, _THREE_HALVES) - _high_product(half, cube)
        x = tf.minimum(step * 2**3, _INT32_MAX)
    x = _high_product(x, _HALF_SQRT_2) * _power(tf.maximum(-shift, 0))
    one = tf.cast(total <= 1, tf.int64)
    return one * _INT32_MAX + (1 - one) * x, (1 - one) * tf.maximum(shift, 0)


def _power(exponent: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.left_shift(tf.ones_like(exponent), exponent)


def _high_product(a: tf.Tensor, b: tf.Tensor | int) -> tf.Tensor:
    """gemmlowp's ``SaturatingRoundingDoublingHighMul``: halves up."""
    return tf.bitwise.right_shift(a * b + 2**30, tf.constant(31, tf.int64))


def _rounding_divide(x: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """gemmlowp's ``RoundingDivideByPOT``: halves away from zero."""
    return tf.sign(x) * ((tf.abs(x) + divisor // 2) // divisor)
