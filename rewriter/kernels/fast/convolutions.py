"""Convolutions on the CPU whose gradients take the fastest way that TensorFlow has.

The output is TensorFlow's own ``conv2d``, bit by bit. Its gradients are TensorFlow's own, given by
hand (:mod:`.gradients`), or the same sums in another order:

- A kernel of size 1 is a matrix: both gradients are matrix products. TensorFlow's kernels for
  them copy every image into the columns of a product of its own; oneDNN's write past their
  workspace where such a convolution is strided (https://github.com/uxlfoundation/oneDNN/issues/6035).
- The gradient for the input, with stride 1, is the convolution of the upstream gradient with the
  kernel turned around (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.1). TensorFlow's
  kernel computes an image at a time, which takes ten times as long where images are small and
  channels many. oneDNN's does not: it is left alone.
- Images of very few pixels with very many channels are copied into patches, and both gradients
  are matrix products again: the convolutions, oneDNN's too, spend themselves on the borders.

On a GPU all is left to cuDNN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.fast import machine, nodes, thresholds
from rewriter.kernels.fast.gradients import Pending, connected, tensor


def convolution(
    x: Any, kernel: Any, strides: Sequence[int], padding: str, dilations: Sequence[int]
) -> Any:
    """As :func:`rewriter.kernels.plain.convolution`; pending."""
    if len(x.shape) == 3:
        row, kernel = tf.expand_dims(x, 1), tf.expand_dims(connected(kernel), 0)
        y = _convolution(row, kernel, (1, *strides), padding, (1, *dilations))
        return tf.squeeze(connected(y), 1)
    return _convolution(x, kernel, tuple(strides), padding, tuple(dilations))


def _convolution(x: Any, kernel: Any, strides: tuple, padding: str, dilations: tuple) -> Any:
    values = tensor(kernel)
    pointwise = tuple(values.shape[:2]) == (1, 1)
    if machine.on_gpu() or (max(dilations) > 1 and not pointwise):
        options = {"strides": strides, "padding": padding, "dilations": dilations}
        return tf.nn.convolution(x, connected(kernel), **options)
    options = {"strides": (1, *strides, 1), "padding": padding}
    inputs = {"input": x, "filter": values}
    (y,) = nodes.operator("Conv2D", inputs, [x.dtype], {"T": x.dtype}, **options)
    turns = max(strides) == 1 and values.shape[2] >= thresholds.TURNED_CHANNELS
    patched = turns and _patchable(x, values, padding)

    def gradients(dy: Any) -> Any:
        if pointwise:
            return _pointwise_gradients(dy, x, values, strides)
        if patched:
            return _patched_gradients(dy, x, values)
        if turns and not machine.onednn():
            dx = _turned_gradient(dy, values, padding)
        else:
            dx = input_gradient("Conv2D", dy, x, values, options)
        return dx, kernel_gradient("Conv2D", dy, x, values, options)

    return Pending(y, gradients, (x, kernel))


def input_gradient(kind: str, dy: Any, x: Any, kernel: Any, options: dict) -> Any:
    """TensorFlow's own, of a ``kind`` of convolution."""
    for_input = getattr(tf.raw_ops, f"{kind}BackpropInput")
    return for_input(input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, **options)


def kernel_gradient(kind: str, dy: Any, x: Any, kernel: Any, options: dict) -> Any:
    """TensorFlow's own, of a ``kind`` of convolution."""
    for_kernel = getattr(tf.raw_ops, f"{kind}BackpropFilter")
    return for_kernel(input=x, filter_sizes=kernel.shape, out_backprop=dy, **options)


def _pointwise_gradients(dy: Any, x: Any, kernel: Any, strides: tuple) -> Any:
    """Those of a kernel of size 1, by the pixels that it sees."""
    channels, filters = kernel.shape[2:]
    strided = max(strides) > 1
    begin = nodes.integers(0, 0, 0)
    every = {"begin": begin, "end": begin, "strides": nodes.integers(1, *strides)}
    every |= {"begin_mask": 7, "end_mask": 7}  # from the first to the last
    seen = tf.raw_ops.StridedSlice(input=x, **every) if strided else x
    flat, matrix = _reshaped(dy, -1, filters), tf.raw_ops.Squeeze(input=kernel, axis=[0, 1])
    dkernel = tf.raw_ops.MatMul(a=_reshaped(seen, -1, channels), b=flat, transpose_a=True)
    dx = tf.raw_ops.MatMul(a=flat, b=matrix, transpose_b=True)
    dx = tf.raw_ops.Reshape(tensor=dx, shape=_sizes(dy, channels))
    if strided:
        dx = tf.raw_ops.StridedSliceGrad(shape=tf.shape(x), dy=dx, **every)
    return dx, _reshaped(dkernel, *kernel.shape)


def _reshaped(x: Any, *shape: int) -> Any:
    return tf.raw_ops.Reshape(tensor=x, shape=nodes.integers(*shape))


def _turned(kernel: Any, dy: Any) -> Any:
    axes, order = nodes.integers(0, 1), nodes.integers(0, 1, 3, 2)
    with tf.control_dependencies([dy]):  # or it is made, and kept, from the start of a step on
        return tf.transpose(tf.raw_ops.ReverseV2(tensor=kernel, axis=axes), order)


def _turned_gradient(dy: Any, kernel: Any, padding: str) -> Any:
    # What the convolution has cut off or padded on one side comes back on the other.
    around = [[0, 0]]
    for size in kernel.shape[:2]:
        before = (size - 1) // 2 if padding == "SAME" else 0
        after = (size - 1) - before if padding == "SAME" else 0
        around.append([size - 1 - before, size - 1 - after])
    return tf.nn.conv2d(dy, _turned(kernel, dy), 1, [*around, [0, 0]])


def _patchable(x: Any, kernel: Any, padding: str) -> bool:
    odd = padding == "SAME" and all(size % 2 for size in kernel.shape[:2])  # the same both ways
    few = 0 < math.prod(size or 0 for size in x.shape[1:3]) <= thresholds.PATCHED_PIXELS
    return odd and few and min(kernel.shape[2:]) >= thresholds.PATCHED_CHANNELS


def _patched_gradients(dy: Any, x: Any, kernel: Any) -> Any:
    *size, channels, filters = kernel.shape
    dkernel = tf.raw_ops.MatMul(a=_patches(x, size), b=_reshaped(dy, -1, filters), transpose_a=True)
    if machine.onednn():
        turned = _reshaped(_turned(kernel, dy), size[0] * size[1] * filters, channels)
        dx = tf.raw_ops.MatMul(a=_patches(dy, size), b=turned)
        dx = tf.raw_ops.Reshape(tensor=dx, shape=_sizes(dy, channels))
    else:  # the convolution is as fast
        dx = _turned_gradient(dy, kernel, "SAME")
    return dx, _reshaped(dkernel, *kernel.shape)


def _patches(x: Any, size: Sequence[int]) -> Any:
    """What the kernel sees at each pixel, as a row."""
    ones = [1] * 4
    options = {"ksizes": [1, *size, 1], "strides": ones, "rates": ones, "padding": "SAME"}
    patches = tf.raw_ops.ExtractImagePatches(images=x, **options)
    return _reshaped(patches, -1, size[0] * size[1] * x.shape[-1])


def _sizes(like: Any, channels: int) -> Any:
    """The shape of ``like`` with other channels; static but for at most one axis where known."""
    static = like.shape[:3].as_list()
    if static.count(None) <= 1:
        return nodes.integers(*[-1 if size is None else size for size in static], channels)
    return tf.concat([tf.shape(like)[:3], [channels]], axis=0)
