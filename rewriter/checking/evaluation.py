"""One step of a program, computed: on integers where tensors are quantized."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from rewriter.litert import integer
from rewriter.program import Quantization, Step


def evaluate(step: Step, values: list[tf.Tensor]) -> tf.Tensor:
    """One step on raw values: int32 where quantized, float32 where not."""
    op = step.operator
    if op.function is None:
        return integer.compute(op, *values)
    reals = [
        value if q is None else dequantized(value, q)
        for value, q in zip(values, op.inputs, strict=True)
    ]
    result = tf.cast(op.real(*reals), tf.float32)  # layers may return numbers of other types
    return result if op.output is None else quantized(result, op.output)


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


def same_order(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Whether tensors of these shapes have the same elements in the same order.

    So they do where neighbouring axes of one are a single axis of the other. That there are as
    many elements says nothing: the axes may be in another order.
    """
    if None in (*a, *b):
        return False
    ends = [set(itertools.accumulate((1, *shape), operator.mul)) for shape in (a, b)]
    return max(ends[0]) == max(ends[1]) and (ends[0] <= ends[1] or ends[1] <= ends[0])
