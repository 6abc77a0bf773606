"""One step of a program, computed: on integers where tensors are quantized."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rewriter.litert import integer
from rewriter.program import Quantization, Step


def evaluate(step: Step, values: list[tf.Tensor]) -> tf.Tensor:
    """One step on raw values: int32 where quantized, float32 where not."""
    operator = step.operator
    if operator.function is None:
        return integer.compute(operator, *values)
    reals = [
        value if q is None else dequantized(value, q)
        for value, q in zip(values, operator.inputs, strict=True)
    ]
    result = operator.function(*reals)
    return result if operator.output is None else quantized(result, operator.output)


def dequantized(value: tf.Tensor, quantization: Quantization) -> tf.Tensor:
    """Real values of stored integers, float32."""
    steps = tf.cast(value - quantization.zero_point, tf.float32)
    return steps * np.float32(quantization.scale)


def quantized(value: tf.Tensor, quantization: Quantization) -> tf.Tensor:
    """Stored integers of real values, int32, as LiteRT's QUANTIZE makes them."""
    steps = tf.round(value * (np.float32(1.0) / np.float32(quantization.scale)))
    low = quantization.qmin - quantization.zero_point
    high = quantization.qmax - quantization.zero_point
    return tf.cast(tf.clip_by_value(steps, low, high), tf.int32) + quantization.zero_point
