"""Convolutions on the CPU whose gradients take the fastest way that TensorFlow has.

The output is TensorFlow's own ``conv2d``, bit by bit. Its gradients are the same sums in another
order:

- A kernel of size 1 is a matrix: both gradients are matrix products. TensorFlow's kernels for
  them copy every image into the columns of a product of its own.
- The gradient for the input, with stride 1, is the convolution of the upstream gradient with the
  kernel turned around (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.1). TensorFlow's
  kernel computes an image at a time, which takes ten times as long where images are small and
  channels many. oneDNN's does not: it is left alone.

On a GPU all is left to cuDNN.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter import onednn
from rewriter.switch import connect

# With fewer input channels the convolution that computes the gradient is a slow one.
_FEWEST_CHANNELS = 8


def convolution(
    x: Any, kernel: Any, strides: Sequence[int], padding: str, dilations: Sequence[int]
) -> Any:
    """``tf.nn.convolution`` over one or two spatial axes, channels last, one group.

    Args:
      x: (N, W, C) or (N, H, W, C), floating point.
      kernel: (w, C, D) or (h, w, C, D), the dtype of ``x``.
      strides, dilations: one for each spatial axis.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      (N, W', D) or (N, H', W', D).
    """
    if len(x.shape) == 3:
        y = _convolution(
            tf.expand_dims(x, 1),
            tf.expand_dims(kernel, 0),
            (1, *strides),
            padding,
            (1, *dilations),
        )
        return tf.squeeze(y, 1)
    return _convolution(x, kernel, tuple(strides), padding, tuple(dilations))


def _convolution(x: Any, kernel: Any, strides: tuple, padding: str, dilations: tuple) -> Any:
    y = tf.nn.convolution(x, kernel, strides=strides, padding=padding, dilations=dilations)
    size = tuple(kernel.shape[:2])
    if _on_gpu():
        return y
    if size == (1, 1):
        return connect(y, lambda dy: _pointwise_gradients(dy, x, kernel, strides), x, kernel)
    if (
        max(strides + dilations) == 1
        and kernel.shape[2] >= _FEWEST_CHANNELS
        and not onednn.in_use()
    ):
        return connect(y, lambda dy: _turned_gradients(dy, x, kernel, padding), x, kernel)
    return y


@functools.cache
def _on_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def _pointwise_gradients(dy: Any, x: Any, kernel: Any, strides: tuple[int, ...]) -> Any:
    channels, filters = kernel.shape[2:]
    strided = max(strides) > 1
    every = {
        "begin": [0] * 4,
        "end": [0] * 4,
        "strides": [1, *strides, 1],
        "begin_mask": 0b1111,
        "end_mask": 0b1111,
    }
    seen = tf.raw_ops.StridedSlice(input=x, **every) if strided else x
    rows = tf.reshape(dy, [-1, filters])
    dkernel = tf.matmul(tf.reshape(seen, [-1, channels]), rows, transpose_a=True)
    dx = tf.matmul(rows, tf.reshape(kernel, [channels, filters]), transpose_b=True)
    dx = tf.reshape(dx, _sizes(dy, channels))
    if strided:
        dx = tf.raw_ops.StridedSliceGrad(shape=tf.shape(x), dy=dx, **every)
    return dx, tf.reshape(dkernel, kernel.shape)


def _turned_gradients(dy: Any, x: Any, kernel: Any, padding: str) -> Any:
    turned = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
    # What the convolution has cut off or padded on one side comes back on the other.
    around = [[0, 0]]
    for size in kernel.shape[:2]:
        before = (size - 1) // 2 if padding == "SAME" else 0
        after = (size - 1) - before if padding == "SAME" else 0
        around.append([size - 1 - before, size - 1 - after])
    dx = tf.nn.conv2d(dy, turned, 1, [*around, [0, 0]])
    dkernel = tf.compat.v1.nn.conv2d_backprop_filter(x, kernel.shape, dy, [1] * 4, padding)
    return dx, dkernel


def _sizes(like: Any, channels: int) -> Any:
    """The shape of ``like`` with other channels; static but for at most one axis where known."""
    static = like.shape[:3].as_list()
    if static.count(None) <= 1:
        return [-1 if size is None else size for size in static] + [channels]
    return tf.concat([tf.shape(like)[:3], [channels]], axis=0)
