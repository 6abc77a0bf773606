"""The fixed-point arithmetic of LiteRT's builtin kernels.

The formulas are those of ``tflite/kernels/internal/quantization_util.cc`` and ``common.h``, and
of gemmlowp's ``fixedpoint.h``. NumPy functions take and return int64 arrays of int32 values.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import BITS, FUSED_ACTIVATIONS
from rewriter.program import Quantization


def activation_range(activation: str) -> tuple[float, float]:
    """The real bounds of a fused activation; raises ``RewriterError`` for an unknown one."""
    if activation not in FUSED_ACTIVATIONS:
        raise RewriterError(
            f"The fused activation must be one of {sorted(FUSED_ACTIVATIONS)}. "
            f"Received: {activation!r}."
        )
    return FUSED_ACTIVATIONS[activation]


def activation_limits(activation: str, output: Quantization) -> tuple[int, int]:
    """The integers a fused activation clamps to (XNNPACK's ``xnn_qs8_quantize``, in float32).

    Of 16 bits: as LiteRT's ``CalculateActivationRangeQuantized``, which rounds halves away from 0.
    """
    if output.bits > BITS:
        return _wide_limits(activation, output)

    def quantized(value: float) -> int:
        scaled = np.float32(value) / np.float32(output.scale) + np.float32(output.zero_point)
        return int(np.rint(np.clip(scaled, np.float32(output.qmin), np.float32(output.qmax))))

    low, high = activation_range(activation)
    return quantized(low), quantized(high)


def _wide_limits(activation: str, output: Quantization) -> tuple[int, int]:
    def quantized(value: float) -> int:
        scaled = float(np.clip(np.float32(value) / np.float32(output.scale), -(2.0**24), 2.0**24))
        return min(max(_round_half_away(scaled), output.lowest), output.qmax)

    low, high = activation_range(activation)
    return quantized(low), quantized(high)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """``(multiplier, shift)`` with ``real = multiplier * 2**(shift - 31)``, multiplier in Q0.31."""
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = _round_half_away(fraction * 2**31)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def multiply(x: np.ndarray, multiplier: int, shift: int) -> np.ndarray:
    """``x * multiplier * 2**(shift - 31)``, rounded twice as LiteRT's kernels do."""
    high = doubling_high_multiply(x << max(shift, 0), multiplier)
    return rounding_shift(high, max(-shift, 0))


def doubling_high_multiply(a: np.ndarray, b: int) -> np.ndarray:
    """gemmlowp's ``SaturatingRoundingDoublingHighMul``: its truncated quotient takes halves up."""
    product = np.asarray(a, np.int64) * b
    nudge = np.where(product >= 0, 2**30, 1 - 2**30)
    return _truncated_division(product + nudge, 2**31)


def rounding_shift(x: np.ndarray, exponent: int) -> np.ndarray:
    """gemmlowp's ``RoundingDivideByPOT`` (rounds half away from zero)."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def _truncated_division(x: np.ndarray, divisor: int) -> np.ndarray:
    return np.where(x >= 0, x // divisor, -((-x) // divisor))


def _round_half_away(value: float) -> int:
    return math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1)


def multiply_tensor(
    x: tf.Tensor, real: float | np.ndarray, upward: bool | np.ndarray = False
) -> tf.Tensor:
    """An int32 tensor times :func:`quantize_multiplier` of ``real``, as :func:`multiply` does.

    Args:
      real: may hold one factor for each element of the last axis.
      upward: whether the second rounding takes halves up, as LiteRT's vectorized kernels do, and
        not away from zero; one answer, or one for each factor.
    """
    pairs = np.array([quantize_multiplier(float(value)) for value in np.ravel(real)], np.int64)
    multiplier, shift = pairs.T.reshape(2, *np.shape(real))
    divisor = tf.constant(1 << np.maximum(-shift, 0), tf.int64)
    product = tf.cast(x, tf.int64) * tf.constant(multiplier << np.maximum(shift, 0), tf.int64)
    high = _half_up(product, tf.constant(2**31, tf.int64))
    rounded = tf.where(upward, _half_up(high, divisor), _half_away(high, divisor))
    return tf.cast(rounded, tf.int32)


def multiply_by(x: tf.Tensor, multiplier: int, shift: int) -> tf.Tensor:
    """An int32 tensor times ``multiplier * 2**(shift - 31)``, as :func:`multiply` does."""
    product = tf.cast(x, tf.int64) * tf.constant(multiplier << max(shift, 0), tf.int64)
    high = _half_up(product, tf.constant(2**31, tf.int64))
    return tf.cast(_half_away(high, tf.constant(1 << max(-shift, 0), tf.int64)), tf.int32)


def multiply_sums(sums: tf.Tensor, real: float | np.ndarray) -> tf.Tensor:
    """An int64 tensor times ``real``, int32: LiteRT's ``MultiplyByQuantizedMultiplier(int64_t)``.

    Sums of products with 16-bit activations take a multiplier of 15 bits, and halves up.

    Args:
      real: may hold one factor for each element of the last axis.
    """
    pairs = [quantize_multiplier(float(value)) for value in np.ravel(real)]
    reduced = [(m + 2**15) >> 16 if m < 0x7FFF0000 else 0x7FFF for m, _ in pairs]
    right = np.array([15 - shift for _, shift in pairs], np.int64).reshape(np.shape(real))
    product = sums * tf.constant(np.array(reduced, np.int64).reshape(np.shape(real)))
    half = tf.constant(np.int64(1) << (right - 1))
    return tf.cast(tf.bitwise.right_shift(product + half, tf.constant(right)), tf.int32)


def _half_up(x: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """``x / divisor`` in int64, halves upwards."""
    return tf.math.floordiv(x + divisor // 2, divisor)


def _half_away(x: tf.Tensor, divisor: tf.Tensor) -> tf.Tensor:
    """``x / divisor`` in int64, halves away from zero; ``divisor`` is a power of two."""
    return tf.sign(x) * ((tf.abs(x) + divisor // 2) // divisor)
