"""Ready-made operations for the pipeline of a batch normalization: fixed point and clipping."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import kernels
from rewriter.errors import RecipeError


class FixedPoint:
    """Signed fixed point: ``clip(round(x / step), -2**(b-1), 2**(b-1)-1) * step``.

    Rounding is half to even. Without ``fraction_bits`` the step is the smallest power of two
    with which the variable's largest magnitude still fits. Gradient: straight through.

    Args:
      num_bits: width with the sign, 2 to 32.
      fraction_bits: the step is ``2**-fraction_bits``; None: chosen from the values.
    """

    def __init__(self, num_bits: int = 8, fraction_bits: int | None = None):
        if not isinstance(num_bits, int) or not 2 <= num_bits <= 32:
            raise RecipeError(f"FixedPoint: num_bits must be in 2..32. Received: {num_bits!r}.")
        if fraction_bits is not None and not isinstance(fraction_bits, int):
            raise RecipeError(
                f"FixedPoint: fraction_bits must be a whole number or None. "
                f"Received: {fraction_bits!r}."
            )
        self.num_bits = num_bits
        self.fraction_bits = fraction_bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        value = self.straight_through_rows(tf.stop_gradient(inputs))
        return kernels.connect(value, lambda upstream: (upstream,), inputs)

    def straight_through_rows(self, x: Any) -> Any:
        """The values alone: of a vector, or of every row of a matrix as of a vector."""
        top = 2.0 ** (self.num_bits - 1)
        if self.fraction_bits is None:
            largest = tf.maximum(tf.reduce_max(tf.abs(x), axis=-1, keepdims=True), 2.0**-90)
            step = _step(largest, top - 1.0)
        else:
            step = tf.constant(2.0**-self.fraction_bits, x.dtype)
        # Wider than a float32's digits, top - 1 would be rounded to top.
        high = min(top - 1.0, float(np.nextafter(np.float32(top), np.float32(0))))
        value = tf.round(x / step)
        if self.fraction_bits is not None or high < top - 1.0:  # otherwise it fits
            value = tf.clip_by_value(value, -top, high)
        return value * step

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits, "fraction_bits": self.fraction_bits}


class PowerOfTwo:
    """Signed powers of two: ``sign(x) * 2**clip(round(log2|x|), low, high)``; 0 stays 0.

    ``high`` is the exponent of the largest magnitude, ``low`` follows from the width: one bit of
    sign, the others count exponents, and one code is 0. Values that would round below the
    smallest power become 0. Rounding is half to even in the exponent. Gradient: straight through.

    Args:
      num_bits: width with the sign, 2 to 8.
    """

    def __init__(self, num_bits: int = 4):
        if not isinstance(num_bits, int) or not 2 <= num_bits <= 8:
            raise RecipeError(f"PowerOfTwo: num_bits must be in 2..8. Received: {num_bits!r}.")
        self.num_bits = num_bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        value = self.straight_through_rows(tf.stop_gradient(inputs))
        return kernels.connect(value, lambda upstream: (upstream,), inputs)

    def straight_through_rows(self, x: Any) -> Any:
        """The values alone: of a vector, or of every row of a matrix as of a vector."""
        magnitude = tf.abs(x)
        exponent = tf.round(_log2(tf.maximum(magnitude, 2.0**-120)))
        high = tf.reduce_max(exponent, axis=-1, keepdims=True)
        low = high - float(2 ** (self.num_bits - 1) - 2)
        power = tf.sign(x) * _power_of_two(tf.cast(exponent, tf.int32), x.dtype)
        return tf.where(exponent < low, tf.zeros_like(power), power)

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits}


class Clip:
    """``clip(x, minimum, maximum)``; the gradient is 0 where it clips.

    Args:
      minimum, maximum: the bounds; None for none.
    """

    def __init__(self, minimum: float | None = None, maximum: float | None = None):
        if minimum is not None and maximum is not None and not minimum <= maximum:
            raise RecipeError(
                f"Clip: minimum must not exceed maximum. Received: {minimum!r} and {maximum!r}."
            )
        self.minimum = minimum
        self.maximum = maximum

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        low = inputs.dtype.min if self.minimum is None else self.minimum
        high = inputs.dtype.max if self.maximum is None else self.maximum
        return tf.clip_by_value(inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        return {"minimum": self.minimum, "maximum": self.maximum}


def _log2(x: Any) -> Any:
    return tf.math.log(x) / tf.math.log(tf.constant(2.0, x.dtype))


# The exponent field of a float is exact where logarithms and powers are a rounding off.


def _step(largest: Any, top: float) -> Any:
    """The smallest power of two of which ``top`` times is not below ``largest``.

    Args:
      largest: positive and normal, any shape.
      top: at least 1.
    """
    one, below = 127 << 23, 2**23 - 1  # 1.0, and the digits after the exponent
    offset = one - int(np.float32(top).view(np.int32)) + below
    bits = tf.bitcast(tf.cast(largest, tf.float32), tf.int32)
    power = tf.bitwise.bitwise_and(bits + offset, ~below)
    return tf.cast(tf.bitcast(power, tf.float32), largest.dtype)


def _power_of_two(exponent: Any, dtype: tf.DType) -> Any:
    """``2**exponent`` for int32 from -126 to 127."""
    return tf.cast(tf.bitcast((exponent + 127) * 2**23, tf.float32), dtype)
