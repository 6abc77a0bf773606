"""Convolutions on the CPU whose gradients take the fastest way that TensorFlow has.

The output is TensorFlow's own ``conv2d``, bit by bit, but in training in the last two cases below.
Its gradients are TensorFlow's own, given by hand (:mod:`rewriter.gradients`), or the same
sums in another order:

- A kernel of size 1 is a matrix: both gradients are matrix products. TensorFlow's kernels for
  them copy every image into the columns of a product of its own.
- The gradient for the input, with stride 1, is the convolution of the upstream gradient with the
  kernel turned around (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.1). TensorFlow's
  kernel computes an image at a time, which takes ten times as long where images are small and
  channels many. oneDNN's does not: it is left alone.
- Images of very few pixels with very many channels are copied into patches, and both gradients
  are matrix products again: the convolutions, oneDNN's too, spend themselves on the borders.
- Where oneDNN is in use, a kernel of size 1 on a small image, and one on patches, is a matrix
  product forward, too: its convolution reorders the kernel at every step. In inference it is left
  alone, since TensorFlow fuses what comes after it, and the original model's bits are wanted.
- Zeros that a layer has put around the image are left out where ``"SAME"`` puts the same ones
  (:mod:`rewriter.paddings`).

Those of depthwise kernels are in :mod:`rewriter.depthwise_convolutions`. On a GPU all is left to
cuDNN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter import devices, nodes, onednn, paddings
from rewriter.gradients import Pending, connected, tensor

# With fewer input channels the convolution that computes the gradient is a slow one.
_FEWEST_CHANNELS = 8
# At 3x3 pixels, or with half the channels, patches take as long as what they replace, or longer.
_PATCHED_PIXELS = 4
_PATCHED_CHANNELS = 256
# On larger images, a matrix product gains nothing forward.
_MULTIPLIED_PIXELS = 49


def convolution(
    x: Any,
    kernel: Any,
    strides: Sequence[int],
    padding: str,
    dilations: Sequence[int],
    *,
    training: bool = False,
) -> Any:
    """``tf.nn.convolution`` over one or two spatial axes, channels last, one group.

    Args:
      x: (N, W, C) or (N, H, W, C), floating point.
      kernel: (w, C, D) or (h, w, C, D), the dtype of ``x``; may be pending.
      strides, dilations: one for each spatial axis.
      padding: ``"VALID"`` or ``"SAME"``.
      training: whether the output may be the same sums in another order.

    Returns:
      (N, W', D) or (N, H', W', D); may be pending.
    """
    if len(x.shape) == 3:
        y = _convolution(
            tf.expand_dims(x, 1),
            tf.expand_dims(connected(kernel), 0),
            (1, *strides),
            padding,
            (1, *dilations),
            training,
        )
        return tf.squeeze(connected(y), 1)
    return _convolution(x, kernel, tuple(strides), padding, tuple(dilations), training)


def _convolution(
    x: Any, kernel: Any, strides: tuple, padding: str, dilations: tuple, training: bool
) -> Any:
    values = tensor(kernel)
    pointwise = tuple(values.shape[:2]) == (1, 1)
    if devices.on_gpu() or (max(dilations) > 1 and not pointwise):
        options = {"strides": strides, "padding": padding, "dilations": dilations}
        return tf.nn.convolution(x, connected(kernel), **options)
    if pointwise:
        return _pointwise(x, kernel, strides, padding, training)
    if training:
        x, padding = paddings.absorbed(x, values.shape[:2], strides, padding)
    turns = max(strides) == 1 and values.shape[2] >= _FEWEST_CHANNELS
    patched = turns and _patchable(x, values, padding)
    if patched and _multiplies(x, training):
        y = _patched(x, values)
    else:
        y = _forward(x, values, strides, padding)

    def gradients(dy: Any) -> Any:
        options = {"strides": [1, *strides, 1], "padding": padding}
        if patched:
            return _patched_gradients(dy, x, values)
        if turns and not onednn.in_use():
            dx = _turned_gradient(dy, values, padding)
            return dx, kernel_gradient("Conv2D", dy, x, values, options)
        return _stock_gradients(dy, x, values, options)

    return Pending(y, gradients, (x, kernel))


def _multiplies(x: Any, training: bool) -> bool:
    """Whether a matrix product beats the convolution, where an image is small."""
    return training and x.dtype == tf.float32 and onednn.in_use()


def _forward(x: Any, kernel: Any, strides: tuple, padding: str) -> Any:
    (y,) = nodes.operator(
        "Conv2D",
        {"input": x, "filter": kernel},
        [x.dtype],
        {"T": x.dtype},
        strides=(1, *strides, 1),
        padding=padding,
    )
    return y


def _stock_gradients(dy: Any, x: Any, kernel: Any, options: dict) -> Any:
    dx = input_gradient("Conv2D", dy, x, kernel, options)
    return dx, kernel_gradient("Conv2D", dy, x, kernel, options)


def input_gradient(kind: str, dy: Any, x: Any, kernel: Any, options: dict) -> Any:
    """TensorFlow's own, of a ``kind`` of convolution."""
    for_input = getattr(tf.raw_ops, f"{kind}BackpropInput")
    return for_input(input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, **options)


def kernel_gradient(kind: str, dy: Any, x: Any, kernel: Any, options: dict) -> Any:
    """TensorFlow's own, of a ``kind`` of convolution."""
    for_kernel = getattr(tf.raw_ops, f"{kind}BackpropFilter")
    return for_kernel(input=x, filter_sizes=kernel.shape, out_backprop=dy, **options)


def _pointwise(x: Any, kernel: Any, strides: tuple, padding: str, training: bool) -> Any:
    """The convolution by a kernel of size 1, and its gradients as matrix products."""
    values = tensor(kernel)
    channels, filters = values.shape[2:]
    size = _size(x, strides)
    small = 0 < math.prod(size) <= _MULTIPLIED_PIXELS
    multiplied = small and _multiplies(x, training)
    strided = max(strides) > 1
    # Of windows of one pixel: what the convolution sees, in a fifth of StridedSlice's time.
    every = {"ksize": [1] * 4, "strides": [1, *strides, 1], "padding": "SAME"}

    def seen() -> Any:
        return _reshaped(tf.raw_ops.AvgPool(value=x, **every) if strided else x, -1, channels)

    def matrix() -> Any:
        return tf.raw_ops.Squeeze(input=values, axis=[0, 1])

    if multiplied:
        rows, weights = seen(), matrix()
        y = _reshaped(tf.raw_ops.MatMul(a=rows, b=weights), -1, *size, filters)
    else:
        rows = weights = None
        y = _forward(x, values, strides, padding)

    def gradients(dy: Any) -> Any:
        flat = _reshaped(dy, -1, filters)
        a, b = (seen(), matrix()) if rows is None else (rows, weights)
        dkernel = tf.raw_ops.MatMul(a=a, b=flat, transpose_a=True)
        dx = tf.raw_ops.MatMul(a=flat, b=b, transpose_b=True)
        dx = tf.raw_ops.Reshape(tensor=dx, shape=_sizes(dy, channels))
        if strided:
            dx = tf.raw_ops.AvgPoolGrad(orig_input_shape=tf.shape(x), grad=dx, **every)
        return dx, _reshaped(dkernel, *values.shape)

    return Pending(y, gradients, (x, kernel))


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
    few = 0 < math.prod(_size(x, (1, 1))) <= _PATCHED_PIXELS
    return odd and few and min(kernel.shape[2:]) >= _PATCHED_CHANNELS


def _size(x: Any, strides: Sequence[int]) -> list[int]:
    """Height and width of what a kernel of size 1 makes of an image; 0 where that is not known."""
    return [-(-(n or 0) // stride) for n, stride in zip(x.shape[1:3], strides, strict=True)]


def _patched(x: Any, kernel: Any) -> Any:
    *size, _, filters = kernel.shape
    y = tf.raw_ops.MatMul(a=_patches(x, size), b=_reshaped(kernel, -1, filters))
    return tf.raw_ops.Reshape(tensor=y, shape=_sizes(x, filters))


def _patched_gradients(dy: Any, x: Any, kernel: Any) -> Any:
    *size, channels, filters = kernel.shape
    dkernel = tf.raw_ops.MatMul(a=_patches(x, size), b=_reshaped(dy, -1, filters), transpose_a=True)
    if onednn.in_use():
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
