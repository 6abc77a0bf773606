"""L2_NORMALIZATION: int8 values over the root of the sum of their squares.

LiteRT's builtin kernel (``reference/integer_ops/l2normalization.h``; XNNPACK has none): an int32
sum, its reciprocal root by five of Newton's steps in fixed point, and one product per element.
"""

from __future__ import annotations

import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import ACTIVATION
from rewriter.program import Operator, Quantization

OUTPUT = Quantization(1 / (ACTIVATION.qmax + 1), 0)

_HALF_SQRT_2 = 1518500250  # sqrt(1/2) in Q0.31
_ONE, _THREE_HALVES = 2**28, 2**28 + 2**27  # in Q3.28
_INT32_MAX = 2**31 - 1


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
