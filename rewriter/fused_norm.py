"""TensorFlow's fused batch-norm kernel with a switch for its statistics.

Whether the batch's or the moving statistics are used is an attribute of the kernel. The
condition on a variable therefore chooses between two kernels (:mod:`rewriter.switch`), with
gradients by hand.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from rewriter import onednn
from rewriter.switch import Switch, connect


@functools.cache
def _make(dtype: tf.DType, epsilon: float, momentum: float, bessel: bool) -> Any:
    image = tf.TensorSpec([None] * 4, dtype)
    vector = tf.TensorSpec([None], tf.float32)
    rest = tf.TensorSpec(None, tf.float32)
    rate = 1.0 - momentum

    def kernel(
        training: bool, factor: float, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any
    ) -> Any:
        given = factor < 1.0 or not training
        return tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=gamma,
            offset=beta,
            mean=mean if given else tf.zeros([0]),
            variance=variance if given else tf.zeros([0]),
            epsilon=epsilon,
            exponential_avg_factor=factor,
            is_training=training,
        )

    def by_batch(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        mean, variance = statistics[2:]
        if bessel:  # the kernel averages by itself, with the corrected variance
            return tuple(kernel(True, rate, x, gamma, beta, mean, variance))
        y, batch_mean, batch_variance, *saved = kernel(True, 1.0, x, gamma, beta, mean, variance)
        n = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
        uncorrected = batch_variance * (n - 1.0) / n
        new_mean = mean + rate * (batch_mean - mean)
        new_variance = variance + rate * (uncorrected - variance)
        return y, new_mean, new_variance, *saved

    def by_moving(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        y, _, _, *saved = kernel(False, 1.0, x, gamma, beta, *statistics[:2])
        return y, *statistics[2:], *saved

    def kernel_gradient(training: bool, dy: Any, x: Any, gamma: Any, *saved: Any) -> Any:
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy,
            x=x,
            scale=gamma,
            reserve_space_1=saved[0],
            reserve_space_2=saved[1],
            reserve_space_3=saved[2],
            epsilon=epsilon,
            is_training=training,
        )[:3]

    def batch_gradient(
        dy: Any, x: Any, gamma: Any, mean: Any, variance: Any, a: Any, b: Any, c: Any
    ) -> Any:
        none = tf.zeros_like(mean), tf.zeros_like(variance)
        return (*kernel_gradient(True, dy, x, gamma, a, b, c), *none)

    def moving_gradient(
        dy: Any, x: Any, gamma: Any, mean: Any, variance: Any, a: Any, b: Any, c: Any
    ) -> Any:
        dx, dgamma, dbeta = kernel_gradient(False, dy, x, gamma, mean, variance, c)
        inverse = tf.math.rsqrt(variance + epsilon)
        dmean = -gamma * inverse * dbeta
        dvariance = -0.5 * gamma * tf.square(inverse) * dgamma
        return dx, dgamma, dbeta, dmean, dvariance

    saved = [vector] * 3 + [rest] * 3
    lowered = onednn.in_use()
    forward = Switch([image, *[vector] * 6], by_batch, by_moving, lowered=lowered)
    backward = Switch([image, image, *saved], batch_gradient, moving_gradient, lowered=lowered)

    def apply(
        x: Any,
        gamma: Any,
        beta: Any,
        mean: Any,
        variance: Any,
        frozen: Any,
        averages: Any,
        bias: Any,
    ) -> Any:
        variables = gamma, beta, mean, variance
        shapes = (x.shape, gamma.shape, gamma.shape, None, None, None)
        arguments = (x, *variables, *(averages or (mean, variance)))
        y, new_mean, new_variance, *saved = forward(frozen, arguments, shapes)
        wanted = (x, *variables) if averages else (x, gamma, beta)
        others = () if bias is None else (bias,)

        def gradient(dy: Any) -> Any:
            shapes = (x.shape, *[gamma.shape] * 4)
            found = backward(frozen, (dy, x, gamma, mean, variance, *saved), shapes)
            dbias = [tf.cast(-found[3], bias.dtype) for bias in others]
            return (*found[: len(wanted)], *dbias)

        return connect(y, gradient, *wanted, *others), new_mean, new_variance

    return apply


def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    frozen: Any,
    *,
    epsilon: float,
    momentum: float,
    bessel: bool,
    averages: tuple[Any, Any] | None = None,
    bias: Any = None,
) -> tuple[Any, Any, Any]:
    """``gamma * (x - m) / sqrt(v + epsilon) + beta`` on the fused kernel.

    Args:
      x: (N, H, W, C), float16, bfloat16 or float32.
      gamma, beta, mean, variance: float32, (C,).
      frozen: int32 scalar. 1: normalize by ``mean`` and ``variance`` and keep the averages; 0:
        by the batch's statistics, and move the averages towards those.
      epsilon, momentum: Python floats.
      bessel: move the variance's average towards the batch's times n/(n-1).
      averages: the moving mean and variance, float32, (C,), where ``mean`` and ``variance`` are
        something made of them; these then get gradients too, where they are used.
      bias: (C,), what has been added to ``x`` behind a ``stop_gradient``. Its gradient is known
        here without a sum over ``x``: 0 where the batch's mean takes it out again, and minus
        the mean's where the moving one is used.

    Returns:
      The output, and the moving mean and variance as they are from now on.
    """
    function = _make(x.dtype, epsilon, momentum, bessel)
    return function(x, gamma, beta, mean, variance, frozen, averages, bias)
