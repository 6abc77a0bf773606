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
from rewriter.gradients import Pending, tensor
from rewriter.switch import Switch

_VECTOR = tf.TensorSpec([None], tf.float32)
_REST = tf.TensorSpec(None, tf.float32)


def _kernel(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float, factor: float
) -> Any:
    """The forward kernel, by the batch's statistics; with ``factor`` 0 by those given."""
    training = factor > 0.0
    given = factor < 1.0
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean if given else tf.zeros([0]),
        variance=variance if given else tf.zeros([0]),
        epsilon=epsilon,
        exponential_avg_factor=factor if training else 1.0,
        is_training=training,
    )


@functools.cache
def _forward(
    dtype: tf.DType, epsilon: float, momentum: float, bessel: bool, averaged: bool
) -> Switch:
    """The output, the moving statistics from now on, and what the gradient needs.

    Arguments: x, gamma, beta, mean, variance, and where ``averaged`` the moving statistics that
    go on. Each is a node of every branch in every layer, where the switch is lowered.
    """
    rate = 1.0 - momentum

    def by_batch(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        mean, variance = statistics[-2:]
        kernel = functools.partial(_kernel, x, gamma, beta, mean, variance, epsilon=epsilon)
        if bessel:  # the kernel averages by itself, with the corrected variance
            return tuple(kernel(factor=rate))
        y, batch_mean, batch_variance, *saved = kernel(factor=1.0)
        n = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
        uncorrected = batch_variance * (n - 1.0) / n
        new_mean = mean + rate * (batch_mean - mean)
        new_variance = variance + rate * (uncorrected - variance)
        return y, new_mean, new_variance, *saved

    def by_moving(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        mean, variance = statistics[:2]
        y, _, _, _, _, rest = _kernel(x, gamma, beta, mean, variance, epsilon=epsilon, factor=0.0)
        return y, *statistics[-2:], mean, variance, rest

    vectors = [_VECTOR] * (6 if averaged else 4)
    image = tf.TensorSpec([None] * 4, dtype)
    return Switch([image, *vectors], by_batch, by_moving, lowered=onednn.in_use())


@functools.cache
def _backward(dtype: tf.DType, epsilon: float, statistics: bool) -> Switch:
    """Gradients for x, gamma and beta, and where ``statistics`` for mean and variance.

    Arguments: the upstream gradient, x, gamma, and what :func:`_forward` keeps.
    """

    def kernel(training: bool, dy: Any, x: Any, gamma: Any, a: Any, b: Any, c: Any) -> Any:
        return tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy,
            x=x,
            scale=gamma,
            reserve_space_1=a,
            reserve_space_2=b,
            reserve_space_3=c,
            epsilon=epsilon,
            is_training=training,
        )[:3]

    def by_batch(dy: Any, x: Any, gamma: Any, a: Any, b: Any, c: Any) -> Any:
        none = (tf.zeros_like(gamma), tf.zeros_like(gamma)) if statistics else ()
        return *kernel(True, dy, x, gamma, a, b, c), *none

    def by_moving(dy: Any, x: Any, gamma: Any, mean: Any, variance: Any, rest: Any) -> Any:
        dx, dgamma, dbeta = kernel(False, dy, x, gamma, mean, variance, rest)
        if not statistics:
            return dx, dgamma, dbeta
        inverse = tf.math.rsqrt(variance + epsilon)
        dmean = -gamma * inverse * dbeta
        dvariance = -0.5 * gamma * tf.square(inverse) * dgamma
        return dx, dgamma, dbeta, dmean, dvariance

    image = tf.TensorSpec([None] * 4, dtype)
    specs = [image, image, _VECTOR, _REST, _REST, _REST]
    return Switch(specs, by_batch, by_moving, lowered=onednn.in_use())


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
      x: (N, H, W, C), float16, bfloat16 or float32; may be pending.
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
      The output, pending, and the moving mean and variance as they are from now on.
    """
    given, x = x, tensor(x)
    variables = gamma, beta, mean, variance
    forward = _forward(x.dtype, epsilon, momentum, bessel, averages is not None)
    shapes = (x.shape, gamma.shape, gamma.shape, None, None, None)
    y, new_mean, new_variance, *saved = forward(frozen, (x, *variables, *(averages or ())), shapes)
    wanted = (given, gamma, beta) if averages is None else (given, *variables)
    others = () if bias is None else (bias,)

    def gradient(dy: Any) -> Any:
        statistics = bool(averages or others)
        backward = _backward(x.dtype, epsilon, statistics)
        shapes = (x.shape, *[gamma.shape] * (4 if statistics else 2))
        found = backward(frozen, (dy, x, gamma, *saved), shapes)
        dbias = [tf.cast(-found[3], bias.dtype) for bias in others]
        return (*found[: len(wanted)], *dbias)

    return Pending(y, gradient, (*wanted, *others)), new_mean, new_variance
