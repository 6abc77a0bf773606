"""Pooling, reductions, softmax, and operators that only move int8 values about."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import BITS
from rewriter.litert.integer_elementwise import require_same
from rewriter.litert.integer_fixed_point import activation_limits
from rewriter.program import Operator, Quantization


def average_pool_2d(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``AVERAGE_POOL_2D``, builtin kernel: the mean of the raw integers, half away from zero.

    The zero point takes part in the mean; padding does not.
    """
    require_same(operator.kind, operator.output, *operator.inputs)
    window = _window(operator)
    # TensorFlow's average counts the same elements; scaled back up it is the integer sum, off by
    # far less than a half for any window below 2**22 / 128 elements (2**51 / 32768 in 16 bits).
    dtype = tf.float32 if _output(operator).bits == BITS else tf.float64
    ones = tf.ones_like(q[:1, :, :, :1], dtype)
    height, width = window["ksize"]
    counts = tf.round(
        tf.nn.conv2d(
            ones,
            tf.ones([height, width, 1, 1], dtype),
            window["strides"],
            padding=window["padding"],
        )
    )
    means = tf.nn.avg_pool2d(tf.cast(q, dtype), **window)
    sums = tf.cast(tf.round(means * counts), tf.int32)
    counts = tf.cast(counts, tf.int32)
    rounded = tf.sign(sums) * ((tf.abs(sums) + counts // 2) // counts)
    return _activated(operator, rounded)


def max_pool_2d(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``MAX_POOL_2D``."""
    require_same(operator.kind, operator.output, *operator.inputs)
    pooled = tf.nn.max_pool2d(tf.cast(q, tf.float32), **_window(operator))
    return _activated(operator, tf.cast(pooled, tf.int32))


def _window(operator: Operator) -> dict:
    return {
        "ksize": list(operator.attributes["pool_size"]),
        "strides": list(operator.attributes["strides"]),
        "padding": operator.attributes["padding"],
    }


def _activated(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    if operator.activation == "none":
        return q
    low, high = activation_limits(operator.activation, _output(operator))
    return tf.clip_by_value(q, low, high)


def mean(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``MEAN``, XNNPACK: an integer sum, then one float32 multiplication and one addition.

    ``y = sum * scale + (y_zero - count * x_zero * scale)``, with the bracket computed in float32
    beforehand and ``scale = (x_scale / y_scale) * (1 / count)``.

    Raises:
      RewriterError: the input is not quantized.
    """
    source, output = operator.inputs[0], _output(operator)
    if source is None:
        raise RewriterError("MEAN is computed on int8 tensors only. Received: a float tensor.")
    axes = [axis % q.shape.rank for axis in operator.attributes["axes"]]
    count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(q), axes)), tf.float32)
    sums = tf.reduce_sum(q, axis=axes, keepdims=operator.attributes.get("keepdims", False))
    scale = np.float32(source.scale) / np.float32(output.scale) * (1.0 / count)
    zero = float(output.zero_point) - (count * float(source.zero_point)) * scale
    real = tf.round(tf.cast(sums, tf.float32) * scale + zero)
    return tf.cast(tf.clip_by_value(real, float(output.qmin), float(output.qmax)), tf.int32)


def reduce_max(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``REDUCE_MAX``."""
    require_same(operator.kind, operator.output, *operator.inputs)
    attributes = operator.attributes
    return tf.reduce_max(
        q, axis=list(attributes["axes"]), keepdims=attributes.get("keepdims", False)
    )


def reduce_min(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``REDUCE_MIN``."""
    require_same(operator.kind, operator.output, *operator.inputs)
    attributes = operator.attributes
    return tf.reduce_min(
        q, axis=list(attributes["axes"]), keepdims=attributes.get("keepdims", False)
    )


def depth_to_space(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``DEPTH_TO_SPACE``: channels as blocks of ``block_size`` by ``block_size`` pixels."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.nn.depth_to_space(q, operator.attributes["block_size"])


def space_to_depth(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``SPACE_TO_DEPTH``: blocks of ``block_size`` by ``block_size`` pixels as channels."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.nn.space_to_depth(q, operator.attributes["block_size"])


def softmax(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``SOFTMAX`` over the last axis, builtin kernel: float32, from a table of exponentials.

    The sum runs from left to right in float32, as a cumulative sum does and ``reduce_sum`` does
    not; ``std::round`` takes halves away from zero, and all values are positive.

    Raises:
      RewriterError: the input is not quantized.
    """
    source, output = operator.inputs[0], _output(operator)
    if source is None:
        raise RewriterError("SOFTMAX is computed on int8 tensors only. Received: a float tensor.")
    steps = np.arange(source.grid.steps + 1, dtype=np.float32) * -np.float32(source.scale)
    table = tf.constant(np.exp(steps.astype(np.float64)), tf.float32)
    exponentials = tf.gather(table, tf.reduce_max(q, axis=-1, keepdims=True) - q)
    total = tf.cumsum(exponentials, axis=-1)[..., -1:]
    probabilities = exponentials * (1.0 / (total * np.float32(output.scale)))
    whole = tf.floor(probabilities)
    rounded = whole + tf.cast(probabilities - whole >= 0.5, tf.float32)
    result = tf.cast(rounded, tf.int32) + output.zero_point
    return tf.clip_by_value(result, output.qmin, output.qmax)


def reshape(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``RESHAPE``; ``shape`` leaves out the batch."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.reshape(q, [-1, *operator.attributes["shape"]])


def concatenation(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``CONCATENATION``."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.concat(q, axis=operator.attributes["axis"])


def pad(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``PAD``: with the zero point."""
    require_same(operator.kind, operator.output, *operator.inputs)
    zero = _output(operator).zero_point
    return tf.pad(q, operator.attributes["paddings"], constant_values=zero)


def pad_lowest(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``PADV2``: with the lowest integer, which a max pooling ignores."""
    require_same(operator.kind, operator.output, *operator.inputs)
    lowest = _output(operator).qmin
    return tf.pad(q, operator.attributes["paddings"], constant_values=lowest)


def mirror_pad(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``MIRROR_PAD``: with the pixels before the border, in reverse."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.pad(q, operator.attributes["paddings"], mode=operator.attributes["mode"].upper())


def transpose(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``TRANSPOSE``; ``perm`` includes the batch."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.transpose(q, operator.attributes["perm"])


def strided_slice(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``STRIDED_SLICE``; all lists include the batch."""
    require_same(operator.kind, operator.output, *operator.inputs)
    return tf.strided_slice(q, **slice_arguments(operator))


def slice_arguments(operator: Operator) -> dict:
    """The arguments of ``tf.strided_slice``; masks that are not given are 0."""
    attributes = operator.attributes
    masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    return {
        "begin": list(attributes["begin"]),
        "end": list(attributes["end"]),
        "strides": list(attributes["strides"]),
        **{mask: int(attributes.get(mask, 0)) for mask in masks},
    }


def _output(operator: Operator) -> Quantization:
    if operator.output is None:
        raise RewriterError(f"{operator.kind} needs an output quantization. Received: None.")
    return operator.output
