"""Depthwise convolutions on the CPU, with oneDNN, whose gradients take the fastest way there is.

The output is TensorFlow's own. Of its gradients two are not oneDNN's:

- That for the input, with stride 1, is the convolution of the upstream gradient with the kernel
  turned around (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.1). oneDNN's own takes up to
  twice as long where images are large or kernels wide.
- That of a kernel wider than 3 pixels: oneDNN's takes up to six times as long as TensorFlow's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.fast import machine, thresholds
from rewriter.kernels.fast.convolutions import input_gradient, kernel_gradient
from rewriter.kernels.fast.gradients import Pending, connected, tensor

_KIND = "DepthwiseConv2dNative"


def depthwise_convolution(x: Any, kernel: Any, stride: int, padding: str) -> Any:
    """As :func:`rewriter.kernels.plain.depthwise_convolution`; pending."""
    strides = [1, stride, stride, 1]
    if machine.on_gpu():
        return tf.nn.depthwise_conv2d(x, connected(kernel), strides, padding)
    values = tensor(kernel)
    options = {"strides": strides, "padding": padding}
    y = tf.nn.depthwise_conv2d(x, values, **options)
    replaced = x.dtype == tf.float32 and machine.onednn()

    def gradients(dy: Any) -> Any:
        if replaced and _turns(x, values, stride, padding):
            turned = tf.reverse(values, [0, 1])
            dx = tf.nn.depthwise_conv2d(dy, turned, **options)
        else:
            dx = input_gradient(_KIND, dy, x, values, options)
        away = _away_from_onednn(x, values, options) if replaced else options
        return dx, kernel_gradient(_KIND, dy, x, values, away)

    return Pending(y, gradients, (x, kernel))


def _turns(x: Any, kernel: Any, stride: int, padding: str) -> bool:
    """Whether the gradient for the input is better had from the kernel turned around."""
    *size, channels, multiplier = kernel.shape
    same = padding == "SAME" and all(n % 2 for n in size)  # the same padding both ways
    if stride > 1 or multiplier > 1 or not same:
        return False
    pixels = math.prod(n or 0 for n in x.shape[1:3])
    if max(size) > thresholds.NARROW:
        return pixels > thresholds.TURNED_PIXELS
    return pixels * channels >= thresholds.TURNED_ELEMENTS


def _away_from_onednn(x: Any, kernel: Any, options: dict) -> dict:
    """The options of the kernel's gradient, so that the faster implementation takes it."""
    _, width, channels, _ = kernel.shape
    if width <= thresholds.NARROW or channels < thresholds.FILLED_CHANNELS:
        return options
    added = added_zeros(x.shape[1:3], kernel.shape[:2], options["strides"][1], options["padding"])
    if added is None:
        return options
    # oneDNN's has no explicit padding, which makes the same sums TensorFlow's.
    return {**options, "padding": "EXPLICIT", "explicit_paddings": [0, 0, *added, 0, 0]}


def added_zeros(
    lengths: Sequence[int | None], sizes: Sequence[int], stride: int, padding: str
) -> list[int] | None:
    """The zeros that a convolution puts around an image, undilated (``tf.nn.convolution``).

    Args:
      lengths, sizes: of the image, of the kernel, one for each axis.
      stride: along all axes.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      Before and after the first axis, before and after the second; None where it depends on a
      length that is not known.
    """
    if padding == "VALID":
        return [0] * 2 * len(sizes)
    found = []
    for length, size in zip(lengths, sizes, strict=True):
        if length is None and stride > 1:
            return None
        last = 0 if length is None else (-(-length // stride) - 1) * stride - (length - 1)
        total = max(size - 1 + last, 0)
        found += [total // 2, total - total // 2]
    return found
