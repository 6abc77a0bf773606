"""Moments without the fused kernel, and any tensor as the four axes that the fused kernel takes."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.kernels import codes


def replicas() -> int:
    """How many replicas of a strategy compute together; 1 outside of one."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context is not None else 1


def weights(mask: Any, inputs: Any, x: Any) -> Any:
    """1 where an element of ``x`` counts and 0 where it is masked; the mask has no channels."""
    weights = tf.broadcast_to(tf.expand_dims(mask, -1), tf.shape(inputs))
    return tf.reshape(tf.cast(weights, x.dtype), tf.shape(x))


def moments(x: Any, weights: Any, shared: bool) -> tuple[Any, Any]:
    """Mean and variance for each channel, of the elements that count and over all replicas."""
    weights = tf.ones_like(x) if weights is None else tf.cast(weights, x.dtype)

    def total(values: Any) -> Any:
        summed = tf.reduce_sum(values, [0, 1, 2])
        if shared:
            context = tf.distribute.get_replica_context()
            summed = context.all_reduce(tf.distribute.ReduceOp.SUM, summed)
        return summed

    count = total(weights)
    mean = tf.math.divide_no_nan(total(x * weights), count)
    squares = total(tf.math.squared_difference(x, mean) * weights)
    return mean, tf.math.divide_no_nan(squares, count)


def channels_last_4d(inputs: Any, axis: int) -> tuple[Any, Any]:
    """``inputs`` as (N, H, W, C) for the fused kernel, and the way back."""
    rank = len(inputs.shape)
    axis %= rank
    order = [i for i in range(rank) if i != axis] + [axis]
    x = tf.transpose(inputs, order) if axis != rank - 1 else inputs
    shape = tf.shape(x) if rank != 4 else None
    if shape is not None:
        # One long row per image: the kernel only sees N*H*W rows of C channels.
        x = tf.reshape(x, tf.stack([shape[0], 1, -1, shape[rank - 1]]) if rank > 2 else
                       tf.stack([shape[0], 1, 1, shape[1]]))  # fmt: skip

    def restore(y: Any) -> Any:
        if shape is not None:
            y = tf.reshape(y, shape)
        if axis != rank - 1:
            inverse = [order.index(i) for i in range(rank)]
            y = tf.transpose(y, inverse)
        y.set_shape(inputs.shape)
        return y

    return x, restore


def still(mean: Any, variance: Any, epsilon: float, phase: Any) -> Any:
    """Where nothing varies, from phase ``quantize`` on.

    A normalization multiplies gradients by ``1 / sqrt(variance + epsilon)``, 1,000 where epsilon
    is 1e-6 and the variance 0. Rounding and clipping make values constant that are not in float, in
    layer after layer, and gradients that mean nothing grow beyond all bounds. Within the bound here
    the normalized values deviate by less than 1/1000, which a grid of 8 bits does not show.

    Args:
      mean, variance: float32, of one shape.
      epsilon: that of the normalization, a Python float.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.

    Returns:
      bool, the shape of ``variance``.
    """
    bound = 2.0**-20 * epsilon + 2.0**-40 * tf.square(mean)  # the second: float32's rounding
    return tf.logical_and(phase >= codes.QUANTIZE, variance <= bound)
