"""Convolutions, and the batch normalization after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.plain.tensors import chosen


def convolution(
    x: Any, kernel: Any, strides: Sequence[int], padding: str, dilations: Sequence[int]
) -> Any:
    """``y[n, i, d] = sum over k, c of x[n, i * stride + k * dilation, c] * kernel[k, c, d]``.

    Args:
      x: (N, W, C) or (N, H, W, C), floating point.
      kernel: (w, C, D) or (h, w, C, D), the dtype of ``x``; may be pending.
      strides, dilations: one for each spatial axis.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      (N, W', D) or (N, H', W', D); may be pending.
    """
    # Without a data format, TensorFlow has no second gradient outside of a function.
    options = {"dilations": list(dilations), "data_format": "NWC" if len(x.shape) == 3 else "NHWC"}
    return tf.nn.convolution(x, kernel, list(strides), padding, **options)


def depthwise_convolution(x: Any, kernel: Any, stride: int, padding: str) -> Any:
    """``y[n, i, c * M + m] = sum over k of x[n, i * stride + k, c] * kernel[k, c, m]``.

    Args:
      x: (N, H, W, C), floating point.
      kernel: (h, w, C, M), the dtype of ``x``; may be pending.
      stride: along both axes.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      (N, H', W', C * M); may be pending.
    """
    strides = [1, stride, stride, 1]
    return tf.nn.depthwise_conv2d(x, kernel, strides, padding, data_format="NHWC")


def moved(y: Any, add: Callable[[Any, Any], Any], bias: Any) -> Any:
    """``add(y, bias)``, connected to ``y`` but not to the bias: :func:`batch_norm` is given that.

    Args:
      y: floating point; may be pending.
      add: adds the bias to every pixel.
      bias: (C,).

    Returns:
      The shape of ``y``; may be pending.
    """
    return add(y, tf.stop_gradient(bias))


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
    """``gamma * (x - m) / sqrt(v + epsilon) + beta`` (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Args:
      x: (N, H, W, C), float16, bfloat16 or float32; may be pending.
      gamma, beta, mean, variance: float32, (C,).
      frozen: int32 scalar. 1: m and v are ``mean`` and ``variance``, and the averages are kept;
        0: they are the batch's, and the averages move: ``a + (1 - momentum) * (batch's - a)``.
      epsilon, momentum: Python floats.
      bessel: move the variance's average towards the batch's times n/(n-1), n elements a channel.
      averages: the moving mean and variance, float32, (C,), where ``mean`` and ``variance`` are
        something made of them; these then get gradients too, where they are used.
      bias: (C,), what :func:`moved` has added to ``x``. Its gradient is 0 with the batch's mean,
        which takes it out again, and ``gamma / sqrt(v + epsilon)`` times beta's with a given one.

    Returns:
      The output, which may be pending, and the moving mean and variance as they are from now on.
    """
    old = (mean, variance) if averages is None else averages
    options = {"x": x, "scale": gamma, "epsilon": epsilon}

    def by_batch() -> tuple[Any, Any, Any]:
        none, offset = tf.zeros([0]), beta
        if bias is not None:  # a gradient of 0, where eager execution would have none
            offset += 0.0 * tf.cast(bias - tf.stop_gradient(bias), tf.float32)
        y, m, v, *_ = tf.raw_ops.FusedBatchNormV3(
            offset=offset, mean=none, variance=none, **options
        )
        if not bessel:  # the kernel has multiplied it
            n = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
            v = v * (n - 1.0) / n
        new = (a + (1.0 - momentum) * (b - a) for a, b in zip(old, (m, v), strict=True))
        return y, *map(tf.stop_gradient, new)

    def by_given() -> tuple[Any, Any, Any]:
        offset = beta
        if bias is not None:  # adds nothing but a gradient
            nothing = tf.cast(bias - tf.stop_gradient(bias), tf.float32)
            offset += gamma * tf.math.rsqrt(variance + epsilon) * nothing
        if averages is not None:  # TensorFlow's kernel has no gradients for its statistics
            wide = tf.cast(x, tf.float32)
            y = tf.nn.batch_normalization(wide, mean, variance, offset, gamma, epsilon)
            return tf.cast(y, x.dtype), *map(tf.stop_gradient, old)
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            offset=offset, mean=mean, variance=variance, is_training=False, **options
        )
        return y, *map(tf.stop_gradient, old)

    y, *new = chosen(frozen, by_batch, by_given)
    y.set_shape(x.shape)
    return y, new[0], new[1]
