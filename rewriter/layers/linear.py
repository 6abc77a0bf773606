"""What the hosts compute: the linear part of each, from given kernels, as TensorFlow operations.

One function for every row of :mod:`rewriter.reading.hosts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from rewriter import kernels as arithmetic
from rewriter.litert.integer_conv import depthwise
from rewriter.reading.hosts import HOSTS, channel_axis, spatial_axes

# (layer, inputs, kernels, between) -> outputs without bias. Kernels and outputs may be pending
# (rewriter.kernels). `between` is applied to the tensor between two kernels, where the device has
# an integer tensor of its own.
Linear = Callable[[Any, Any, Sequence[Any], Callable[[Any], Any]], Any]


def _data_format(layer: Any, rank: int) -> str:
    spatial = {3: "W", 4: "HW", 5: "DHW"}[rank]
    return f"N{spatial}C" if layer.data_format == "channels_last" else f"NC{spatial}"


def _causal(layer: Any, x: Any) -> tuple[Any, str]:
    """``x`` padded on the left of its time axis where the layer is causal, and the padding left."""
    if layer.padding != "causal":
        return x, layer.padding.upper()
    steps = [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0]
    last = layer.data_format == "channels_last"
    return tf.pad(x, [[0, 0], steps, [0, 0]] if last else [[0, 0], [0, 0], steps]), "VALID"


def _convolution(layer: Any, x: Any, kernels: Sequence[Any], between: Callable) -> Any:
    (kernel,) = kernels
    x, padding = _causal(layer, x)
    data_format = _data_format(layer, len(x.shape))
    if layer.groups == 1 and data_format in ("NWC", "NHWC"):
        options = layer.strides, padding, layer.dilation_rate
        return arithmetic.convolution(x, kernel, *options)

    def convolve(x: Any, kernel: Any) -> Any:
        return tf.nn.convolution(
            x,
            kernel,
            strides=list(layer.strides),
            padding=padding,
            dilations=list(layer.dilation_rate),
            data_format=data_format,
        )

    if layer.groups > 1 or data_format == "NCDHW":
        # TensorFlow has no gradient of grouped convolutions on CPU outside XLA, and no
        # channels-first Conv3D.
        convolve = tf.function(convolve, jit_compile=True)
    return convolve(x, arithmetic.connected(kernel))


def _depthwise(layer: Any, x: Any, kernels: Sequence[Any], between: Callable) -> Any:
    (kernel,) = kernels
    return _depthwise_convolution(layer, x, kernel)


def _depthwise_convolution(layer: Any, x: Any, kernel: Any) -> Any:
    """Over one spatial axis as over two, the first of size 1: TensorFlow has no other."""
    x, padding = _causal(layer, x)
    first = layer.data_format == "channels_first"
    strides, dilations = list(layer.strides), list(layer.dilation_rate)
    flat = len(strides) == 1
    if not (first or flat) and max(dilations) == 1 and len(set(strides)) == 1:
        return arithmetic.depthwise_convolution(x, kernel, strides[0], padding)
    kernel = arithmetic.connected(kernel)
    if flat:
        x, kernel = tf.expand_dims(x, 2 if first else 1), tf.expand_dims(kernel, 0)
        strides, dilations = [strides[0], strides[0]], [1, *dilations]
    if not first and max(strides) > 1 and max(dilations) > 1:
        y = depthwise(x, kernel, [1 if flat else strides[0], strides[1]], padding, dilations)
    else:
        y = tf.nn.depthwise_conv2d(
            x,
            kernel,
            strides=[1, 1, *strides] if first else [1, *strides, 1],
            padding=padding,
            dilations=dilations,
            data_format="NCHW" if first else "NHWC",
        )
    return tf.squeeze(y, 2 if first else 1) if flat else y


def _separable(layer: Any, x: Any, kernels: Sequence[Any], between: Callable) -> Any:
    depthwise_kernel, pointwise = kernels
    y = between(arithmetic.connected(_depthwise_convolution(layer, x, depthwise_kernel)))
    data_format = _data_format(layer, len(y.shape))
    if layer.data_format == "channels_last":
        ones = [1] * len(layer.strides)
        return arithmetic.convolution(y, pointwise, ones, "VALID", ones)
    return tf.nn.convolution(
        y, arithmetic.connected(pointwise), padding="VALID", data_format=data_format
    )


def _transposed(layer: Any, x: Any, kernels: Sequence[Any], between: Callable) -> Any:
    kernel = arithmetic.connected(*kernels)
    rank = len(x.shape)
    shape, dynamic = list(x.shape), tf.shape(x)
    sizes = [dynamic[axis] if size is None else size for axis, size in enumerate(shape)]
    spatial = spatial_axes(layer, rank)
    lengths = transposed_lengths(layer, [sizes[axis] for axis in spatial])
    target = list(sizes)
    for axis, length in zip(spatial, lengths, strict=True):
        target[axis] = length
    target[channel_axis(layer, rank)] = kernel.shape[-2]
    padding, dilations = layer.padding.upper(), list(layer.dilation_rate)
    if rank == 4 and max(dilations) > 1 and layer.data_format == "channels_last":
        # The gradient of a dilated convolution, by way of space-to-batch.
        y = tf.nn.atrous_conv2d_transpose(x, kernel, tf.stack(target), dilations[0], padding)
    else:
        y = tf.nn.conv_transpose(
            x,
            kernel,
            tf.stack(target),
            list(layer.strides),
            padding=padding,
            data_format=_data_format(layer, rank),
            dilations=dilations,
        )
    static = [size if isinstance(size, int) else None for size in target]
    y.set_shape([shape[0], *static[1:]])
    return y


def transposed_lengths(layer: Any, lengths: Sequence[Any]) -> list[Any]:
    """Spatial sizes of a transposed convolution's output, integers or tensors, as Keras has them.

    Without ``output_padding``: ``n * stride``, and for valid padding what the kernel reaches
    beyond. With it: ``(n - 1) * stride + kernel - 2 * pad + output_padding``.
    """
    given = layer.output_padding
    rank = len(layer.kernel_size)
    paddings = [given] * rank if given is None or isinstance(given, int) else list(given)
    result = []
    for n, size, stride, dilation, extra in zip(
        lengths, layer.kernel_size, layer.strides, layer.dilation_rate, paddings, strict=True
    ):
        kernel = (size - 1) * dilation + 1
        if extra is None:
            reach = max(kernel - stride, 0) if layer.padding == "valid" else 0
            result.append(n * stride + reach)
        else:
            pad = 0 if layer.padding == "valid" else kernel // 2
            result.append((n - 1) * stride + kernel - 2 * pad + extra)
    return result


def _dense(layer: Any, x: Any, kernels: Sequence[Any], between: Callable) -> Any:
    kernel = arithmetic.connected(*kernels)
    rank = len(x.shape)
    if rank == 2:
        return tf.matmul(x, kernel)
    y = tf.tensordot(x, kernel, [[rank - 1], [0]])
    y.set_shape([*x.shape[:-1], kernel.shape[-1]])
    return y


def _einsum(layer: Any, x: Any, kernels: Sequence[Any], between: Callable) -> Any:
    return tf.einsum(layer.equation, x, arithmetic.connected(*kernels))


LINEAR: dict[str, Linear] = {
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv1D": _depthwise,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv1D": _separable,
    "SeparableConv2D": _separable,
    "Conv1DTranspose": _transposed,
    "Conv2DTranspose": _transposed,
    "Conv3DTranspose": _transposed,
    "Dense": _dense,
    "EinsumDense": _einsum,
}

if unknown := set(HOSTS) ^ set(LINEAR):
    raise LookupError(f"Hosts without a linear part, or the other way round: {sorted(unknown)}.")
