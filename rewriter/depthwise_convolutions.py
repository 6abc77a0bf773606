"""Depthwise convolutions on the CPU, with oneDNN, whose gradients take the fastest way there is.

The output is TensorFlow's own. Of its gradients two are not oneDNN's:

- That for the input, with stride 1, is the convolution of the upstream gradient with the kernel
  turned around (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.1). oneDNN's own takes up to
  twice as long where images are large or kernels wide.
- That of a kernel wider than 3 pixels: oneDNN's takes up to six times as long as TensorFlow's.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from rewriter import devices, onednn, paddings
from rewriter.convolutions import input_gradient, kernel_gradient
from rewriter.gradients import Pending, connected, tensor

# oneDNN generates code for the gradients of narrower kernels, and is faster where TensorFlow's own
# kernel has too few channels for its vectors.
_WIDEST_FOR_ONEDNN = 3
_FEWEST_FOR_TENSORFLOW = 16
# With a narrow kernel, smaller images take as long either way; with a wide one, very small ones.
_TURNED_ELEMENTS = 2**15
_TURNED_PIXELS = 16

_KIND = "DepthwiseConv2dNative"


def depthwise_convolution(
    x: Any, kernel: Any, stride: int, padding: str, *, training: bool = False
) -> Any:
    """``tf.nn.depthwise_conv2d``, channels last.

    Args:
      x: (N, H, W, C), floating point.
      kernel: (h, w, C, M), the dtype of ``x``; may be pending.
      stride: along both axes.
      padding: ``"VALID"`` or ``"SAME"``.
      training: whether the output may be the same sums in another order.

    Returns:
      (N, H', W', C * M); may be pending.
    """
    strides = [1, stride, stride, 1]
    if devices.on_gpu():
        return tf.nn.depthwise_conv2d(x, connected(kernel), strides, padding)
    values = tensor(kernel)
    if training:
        x, padding = paddings.absorbed(x, values.shape[:2], (stride, stride), padding)
    options = {"strides": strides, "padding": padding}
    y = tf.nn.depthwise_conv2d(x, values, **options)
    replaced = x.dtype == tf.float32 and onednn.in_use()

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
    wide = max(size) > _WIDEST_FOR_ONEDNN
    return pixels > _TURNED_PIXELS if wide else pixels * channels >= _TURNED_ELEMENTS


def _away_from_onednn(x: Any, kernel: Any, options: dict) -> dict:
    """The options of the kernel's gradient, so that the faster implementation takes it."""
    _, width, channels, _ = kernel.shape
    if width <= _WIDEST_FOR_ONEDNN or channels < _FEWEST_FOR_TENSORFLOW:
        return options
    strides = options["strides"][1:3]
    added = paddings.explicit(x.shape[1:3], kernel.shape[:2], strides, options["padding"])
    if added is None:
        return options
    # oneDNN's has no explicit padding, which makes the same sums TensorFlow's.
    return {**options, "padding": "EXPLICIT", "explicit_paddings": [0, 0, *added, 0, 0]}
