"""Convolutions and fully-connected layers on raw int8 values, as XNNPACK computes them.

XNNPACK (``qs8-qc8w-gemm``, ``-igemm`` and ``-dwconv``, "fp32" requantization) sums
``(q - zero_point) * kernel`` and the bias in int32, multiplies the sum, rounded to float32, by a
float32 scale per output channel, clamps, rounds half to even and adds the zero point. Every step
but the sum is one float32 operation, so it is mirrored as such. The sum runs through TensorFlow's
floating-point convolutions, which are exact as long as no partial sum can leave the mantissa:
2**24 for float32. (Reduced-precision matrix units, such as TF32 on a GPU, must stay off.)

What XNNPACK's delegate does not take, LiteRT's builtin kernels compute: the same sums, requantized
in fixed point (:mod:`rewriter.litert.integer_kernels`). It takes none of 16 bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import BITS
from rewriter.litert.integer_fixed_point import (
    activation_limits,
    multiply_sums,
    multiply_tensor,
)
from rewriter.litert.integer_kernels import delegated, kernel_of, vectorized
from rewriter.program import Operator, Quantization

_FLOAT32_EXACT = 2**24

Convolution = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def conv_2d(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``CONV_2D``: ``[N, H, W, C]``, grouped when the kernel's ``I`` is a divisor of ``C``."""
    attributes = operator.attributes

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(
            x,
            kernel,
            strides=list(attributes["strides"]),
            padding=attributes["padding"],
            dilations=list(attributes.get("dilations", (1, 1))),
        )

    kernel = kernel_of(operator)
    grouped = q.shape[-1] != kernel.shape[2]
    return _requantized(operator, q, convolve, (0, 1, 2), None if grouped else 2)


def depthwise_conv_2d(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``DEPTHWISE_CONV_2D``: ``[N, H, W, C]`` with a kernel ``[h, w, C, multiplier]``."""
    attributes = operator.attributes

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return depthwise(
            x,
            kernel,
            attributes["strides"],
            attributes["padding"],
            attributes.get("dilations", (1, 1)),
        )

    return _requantized(operator, q, convolve, (0, 1), None)


def fully_connected(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``FULLY_CONNECTED``: over the last axis with ``keep_num_dims``, else over ``[-1, depth]``."""
    depth, units = kernel_of(operator).shape
    if not operator.attributes.get("keep_num_dims", False):
        q = tf.reshape(q, [-1, depth])

    def multiply(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if x.shape.rank == 2:
            return tf.matmul(x, kernel)
        rows = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), kernel)
        return tf.reshape(rows, tf.concat([tf.shape(x)[:-1], [kernel.shape[-1]]], axis=0))

    result = _requantized(operator, q, multiply, (0,), 0)
    return tf.ensure_shape(result, q.shape[:-1].concatenate(units))


def transpose_conv(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``TRANSPOSE_CONV``: kernel HWOI; ``output_shape`` ends in ``[height, width, channels]``."""
    attributes = operator.attributes

    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        shape = tf.concat([tf.shape(x)[:1], list(attributes["output_shape"])[-3:]], axis=0)
        return tf.nn.conv2d_transpose(
            x,
            kernel,
            output_shape=shape,
            strides=list(attributes["strides"]),
            padding=attributes["padding"],
        )

    result = _requantized(operator, q, convolve, (0, 1, 3), 3)
    return tf.ensure_shape(result, [None, *list(attributes["output_shape"])[-3:]])


def depthwise(
    x: tf.Tensor,
    kernel: tf.Tensor,
    strides: list[int],
    padding: str,
    dilations: list[int],
) -> tf.Tensor:
    """Depthwise convolution for any strides: TensorFlow's own wants square ones.

    With unequal strides the input is padded here, as the rule for SAME demands at the larger
    strides, convolved at stride 1 and then thinned out. (TensorFlow's CPU kernel refuses unequal
    strides as well as strides together with dilations.)
    """
    height, width = strides
    if height == width and (height == 1 or tuple(dilations) == (1, 1)):
        return tf.nn.depthwise_conv2d(
            x, kernel, strides=[1, height, width, 1], padding=padding, dilations=list(dilations)
        )
    if padding == "SAME":
        pads = [
            _same_padding(tf.shape(x)[1 + axis], kernel.shape[axis], strides[axis], dilations[axis])
            for axis in range(2)
        ]
        x = tf.pad(x, [[0, 0], pads[0], pads[1], [0, 0]])
    dense = tf.nn.depthwise_conv2d(
        x, kernel, strides=[1, 1, 1, 1], padding="VALID", dilations=list(dilations)
    )
    return dense[:, ::height, ::width, :]


def _same_padding(size: tf.Tensor, kernel: int, stride: int, dilation: int) -> list[tf.Tensor]:
    """Zeros before and after one spatial axis under TensorFlow's SAME rule."""
    covered = (kernel - 1) * dilation + 1
    total = tf.maximum(
        (tf.math.floordiv(size + stride - 1, stride) - 1) * stride + covered - size, 0
    )
    return [total // 2, total - total // 2]


def _requantized(
    operator: Operator,
    q: tf.Tensor,
    convolve: Convolution,
    summed_axes: tuple[int, ...],
    split_axis: int | None,
) -> tf.Tensor:
    """Convolves, adds the bias and requantizes; see the module's docstring.

    Args:
      convolve: the linear operation on floats.
      summed_axes: the kernel's axes that are summed over.
      split_axis: the kernel's axis that runs along the input's channels, if the operation may be
        split there; ``None`` if not.
    """
    source, output = operator.inputs[0], operator.output
    if source is None or output is None:
        raise RewriterError(
            f"{operator.kind} is computed on int8 tensors only. Received: inputs "
            f"{operator.inputs}, output {output}. Quantize both."
        )
    if source.bits > BITS:
        return _of_wide(operator, q, convolve, source, output)
    sums = _exact_sums(
        q - source.zero_point,
        convolve,
        kernel_of(operator),
        _reach(source),
        summed_axes,
        split_axis,
    )
    if operator.bias is not None:
        sums += tf.constant(operator.bias, tf.int32)
    kernel_scale = np.asarray(operator.kernel_scale, np.float32)
    if not delegated(operator):
        factor = float(np.float32(source.scale)) / float(np.float32(output.scale))
        real = factor * kernel_scale.astype(np.float64)
        result = multiply_tensor(sums, real, vectorized(operator, q.shape[-1]))
        low, high = activation_limits(operator.activation, output)
        return tf.clip_by_value(result + output.zero_point, low, high)
    scale = np.float32(source.scale) * kernel_scale / np.float32(output.scale)
    return requantize(sums, scale, output, operator.activation)


def _of_wide(
    operator: Operator,
    q: tf.Tensor,
    convolve: Convolution,
    source: Quantization,
    output: Quantization,
) -> tf.Tensor:
    """Of int16 inputs: sums in int64, which float64 holds up to 2**31 of the largest products.

    Convolutions requantize by a multiplier of 15 bits, FULLY_CONNECTED in double precision.
    """
    kernel = tf.constant(kernel_of(operator), tf.float64)
    sums = tf.cast(convolve(tf.cast(q, tf.float64), kernel), tf.int64)
    if operator.bias is not None:
        sums += tf.constant(np.asarray(operator.bias, np.int64))
    scale = np.asarray(operator.kernel_scale, np.float32).astype(np.float64)
    factors = np.float64(np.float32(source.scale)) * scale / np.float64(np.float32(output.scale))
    if operator.kind == "FULLY_CONNECTED":
        real = tf.cast(sums, tf.float64) * tf.constant(factors)
        result = tf.sign(real) * tf.floor(tf.abs(real) + 0.5)  # halves away from zero
        result = tf.cast(tf.clip_by_value(result, -(2.0**31), 2.0**31 - 1), tf.int32)
    else:
        result = multiply_sums(sums, factors)
    return tf.clip_by_value(result, *activation_limits(operator.activation, output))


def requantize(
    sums: tf.Tensor, scale: np.ndarray, output: Quantization, activation: str = "none"
) -> tf.Tensor:
    """XNNPACK's "fp32" requantization of int32 ``sums`` by the float32 ``scale``."""
    low, high = activation_limits(activation, output)
    zero = output.zero_point
    scaled = tf.cast(sums, tf.float32) * tf.constant(scale, tf.float32)
    # Clamped before rounding: the bounds are integers, and int32 cannot overflow afterwards.
    return tf.cast(tf.round(tf.clip_by_value(scaled, low - zero, high - zero)), tf.int32) + zero


def _exact_sums(
    x: tf.Tensor,
    convolve: Convolution,
    kernel: np.ndarray,
    reach: int,
    summed_axes: tuple[int, ...],
    split_axis: int | None,
) -> tf.Tensor:
    """The exact int32 result of ``convolve(x, kernel)``, with ``|x| <= reach``.

    A sum too large for float32 is split along the input channels into sums that fit, which costs
    hardly more than the one convolution; where that is not possible, float64 takes its place.
    """
    weights = np.abs(kernel.astype(np.int64))
    if weights.sum(axis=summed_axes).max() * reach < _FLOAT32_EXACT:
        return _as_float(x, convolve, kernel, tf.float32)
    if split_axis is None:
        return _as_float(x, convolve, kernel, tf.float64)
    others = tuple(axis for axis in summed_axes if axis != split_axis)
    per_channel = weights.sum(axis=others) if others else weights
    channel_axis = 0 if split_axis < kernel.ndim - 1 else per_channel.ndim - 1
    costs = np.moveaxis(per_channel, channel_axis, 0) * reach  # [input channels, outputs]
    bounds = _split(costs.reshape(costs.shape[0], -1))
    if bounds is None:
        return _as_float(x, convolve, kernel, tf.float64)
    parts = []
    for start, stop in itertools.pairwise(bounds):
        part = np.take(kernel, np.arange(start, stop), axis=split_axis)
        parts.append(_as_float(x[..., start:stop], convolve, part, tf.float32))
    return tf.add_n(parts)


def _split(costs: np.ndarray) -> list[int] | None:
    """Greedy cut points of the channels such that every part's sums stay exact in float32."""
    if costs.max() >= _FLOAT32_EXACT:
        return None
    bounds, total = [0], np.zeros_like(costs[0])
    for channel, cost in enumerate(costs):
        total = total + cost
        if total.max() >= _FLOAT32_EXACT:
            bounds.append(channel)
            total = cost
    return [*bounds, len(costs)]


def _as_float(
    x: tf.Tensor, convolve: Convolution, kernel: np.ndarray, dtype: tf.DType
) -> tf.Tensor:
    return tf.cast(convolve(tf.cast(x, dtype), tf.constant(kernel, dtype)), tf.int32)


def _reach(quantization: Quantization) -> int:
    """The largest ``|q - zero_point|``."""
    zero = quantization.zero_point
    return max(quantization.qmax - zero, zero - quantization.qmin)
