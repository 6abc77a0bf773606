"""Real values to stored integers and back, as LiteRT's QUANTIZE and DEQUANTIZE compute it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.program import Quantization


def quantize(real: Any, quantization: Quantization) -> Any:
    """``clip(round(real * (1 / scale)) + zero_point)`` in float32, halves to even.

    Whole numbers are their own integers; of a float the fraction is cut off, as CAST does.

    Multiplying by the rounded reciprocal, not dividing: at ties the two can differ by one step.
    What is not a number becomes the highest integer, as in XNNPACK.

    Args:
      real: floating point, any shape.
      quantization: the grid.

    Returns:
      int32, in the shape of ``real``.
    """
    if quantization.whole:
        return tf.cast(real, tf.int32)
    inverse = np.float32(1.0) / np.float32(quantization.scale)
    steps = tf.round(tf.cast(real, tf.float32) * inverse)
    low = quantization.lowest - quantization.zero_point
    high = quantization.qmax - quantization.zero_point
    steps = tf.where(tf.math.is_nan(steps), tf.cast(high, tf.float32), steps)
    return tf.cast(tf.clip_by_value(steps, low, high), tf.int32) + quantization.zero_point


def dequantize(stored: Any, quantization: Quantization) -> Any:
    """``scale * (stored - zero_point)``.

    Args:
      stored: integers, any shape.
      quantization: their grid.

    Returns:
      float32, in the shape of ``stored``.
    """
    steps = tf.cast(stored, tf.int32) - quantization.zero_point
    return tf.cast(steps, tf.float32) * np.float32(quantization.scale)
