"""What the linear layers and the batch normalizations become on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.layers.batch_norm import FusedBatchNormalizationMixin
from rewriter.layers.host import QuantizedHostMixin
from rewriter.layers.layer_norm import QuantizedLayerNormalizationMixin
from rewriter.layers.quantize import QuantizeMixin
from rewriter.lowering import float_steps, operators
from rewriter.lowering.linear import QuantizedKernel, channel_affine, kernels, linear, normalization
from rewriter.lowering.norms import layer_norm
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Shape, Value
from rewriter.reading import hosts, stock_activations
from rewriter.reading.graph import Call


def _host(low: ProgramBuilder, call: Call, x: Value) -> Value:
    layer = call.layer
    if getattr(layer.host, "data_format", "channels_last") == "channels_first":
        raise ExportError(
            f"Layer {call.path!r} is channels_first; LiteRT computes channels_last only. "
            "Rebuild the model with data_format='channels_last'."
        )
    if layer.row.float_only:
        value = float_steps.host(low, call, x)
    else:
        value = _OPERATORS[layer.row.name](low, call, _without_steps(low, call, x))
        value = low.reshaped(call, value, (None, *call.shapes[0][1:]))
        operation = stock_activations.function(low.flavour, call, layer.host.activation, None)
        if layer.before_activation is not None:
            value = low.quantize(value, layer.before_activation, f"{call.path}/before_activation")
        if operation is None:
            value = float_steps.activation(low, call, value)
        else:
            value = operators.activate(low, call, operation, value)
    if layer.output_quantizer is not None:
        value = low.quantize(value, layer.output_quantizer, f"{call.path}/output_quantizer")
    return value


# Where a host is applied to every step of axis 1, the steps join the batch.


def _without_steps(low: ProgramBuilder, call: Call, x: Value) -> Value:
    if not _folds(call):
        return x
    sizes = low.static(x.shape, call)
    return low.reshape(call, x, (sizes[0], *sizes[1:]))


def _folds(call: Call) -> bool:
    return call.layer.distributed and call.layer.row.name != "Dense"


def _shape(call: Call) -> Shape:
    """The host's own output: the call's, with the steps in the place of the batch."""
    shape = call.shapes[0]
    return tuple(shape[1:]) if _folds(call) else (None, *shape[1:])


# The linear part


def _spatial(host: Any) -> dict[str, Any]:
    return {
        "strides": list(host.strides),
        "padding": host.padding.upper(),
        "dilations": list(host.dilation_rate),
    }


def _conv2d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    options = _spatial(call.layer.host)
    return linear(low, call, x, "CONV_2D", _shape(call), kernel, True, **options)


def _depthwise2d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    options = _spatial(call.layer.host)
    return linear(low, call, x, "DEPTHWISE_CONV_2D", _shape(call), kernel, True, **options)


def _separable2d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    both = kernels(call.layer, call.path)
    return _two_kernels(low, call, x, _shape(call), both, _spatial(call.layer.host))


def _two_kernels(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    shape: Shape,
    both: list[QuantizedKernel],
    options: dict[str, Any],
) -> Value:
    """A depthwise convolution, an integer tensor, and a 1x1 convolution."""
    depthwise, pointwise = both
    wide = (*shape[:-1], len(depthwise.scale))
    middle = linear(low, call, x, "DEPTHWISE_CONV_2D", wide, depthwise, False, **options)
    middle.layer += "/depthwise"
    middle = low.quantize(middle, call.layer.between, f"{call.path}/between")
    options = {"strides": [1, 1], "padding": "VALID", "dilations": [1, 1]}
    return linear(low, call, middle, "CONV_2D", shape, pointwise, True, **options)


# Along one axis: as over (1, length), for LiteRT has no other.


def _wide(shape: Shape) -> Shape:
    return (shape[0], 1, *shape[1:])


def _line(low: ProgramBuilder, call: Call, x: Value) -> tuple[Value, dict[str, Any]]:
    """The input as (1, length), padded if the layer is causal; and the options that are left."""
    host = call.layer.host
    padding = host.padding.upper()
    if padding == "CAUSAL":
        left, padding = host.dilation_rate[0] * (host.kernel_size[0] - 1), "VALID"
        length = None if x.shape[1] is None else x.shape[1] + left
        paddings = [[0, 0], [left, 0], [0, 0]]
        x = low.apply("PAD", call, [x], (x.shape[0], length, x.shape[2]), paddings=paddings)
    low.static(x.shape, call)
    options = {
        "strides": [1, host.strides[0]],
        "padding": padding,
        "dilations": [1, host.dilation_rate[0]],
    }
    return low.reshape(call, x, _wide(x.shape)), options


def _conv1d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    x, options = _line(low, call, x)
    shape = _wide(_shape(call))
    value = linear(low, call, x, "CONV_2D", shape, kernel.lifted(), True, **options)
    return low.reshaped(call, value, _shape(call))


def _depthwise1d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    x, options = _line(low, call, x)
    shape = _wide(_shape(call))
    value = linear(low, call, x, "DEPTHWISE_CONV_2D", shape, kernel.lifted(), True, **options)
    return low.reshaped(call, value, _shape(call))


def _separable1d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    both = [kernel.lifted() for kernel in kernels(call.layer, call.path)]
    x, options = _line(low, call, x)
    value = _two_kernels(low, call, x, _wide(_shape(call)), both, options)
    return low.reshaped(call, value, _shape(call))


# Transposed


def _transpose_conv(
    low: ProgramBuilder, call: Call, x: Value, shape: Shape, kernel: QuantizedKernel
) -> Value:
    host = call.layer.host
    if max(host.dilation_rate) > 1:
        raise ExportError(
            f"Layer {call.path!r} is a transposed convolution with dilation_rate="
            f"{tuple(host.dilation_rate)}; LiteRT has none. Use dilation_rate=1."
        )
    strides = list(host.strides)
    options = {
        "strides": strides if len(strides) == 2 else [1, *strides],
        "padding": host.padding.upper(),
        "output_shape": list(low.static(shape, call)),
    }
    return linear(low, call, x, "TRANSPOSE_CONV", shape, kernel, True, **options)


def _transposed2d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    return _transpose_conv(low, call, x, _shape(call), kernel)


def _transposed1d(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    low.static(x.shape, call)
    x = low.reshape(call, x, _wide(x.shape))
    value = _transpose_conv(low, call, x, _wide(_shape(call)), kernel.lifted())
    return low.reshaped(call, value, _shape(call))


def _dense(low: ProgramBuilder, call: Call, x: Value) -> Value:
    (kernel,) = kernels(call.layer, call.path)
    options = {"keep_num_dims": True} if len(x.shape) > 2 else {}
    return linear(low, call, x, "FULLY_CONNECTED", _shape(call), kernel, True, **options)


def _einsum(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """The axes that are summed as one, and the channels as one, which their axes then are again."""
    (kernel,) = kernels(call.layer, call.path)
    flat = kernel.flat()
    summed, channels = flat.integers.shape
    low.static(x.shape, call)
    leading = x.shape[: len(x.shape) - kernel.integers.ndim + len(kernel.grid.axes)]
    x = low.reshape(call, x, (*leading, summed))
    options = {"keep_num_dims": True} if len(x.shape) > 2 else {}
    shape = (*leading, channels)
    value = linear(low, call, x, "FULLY_CONNECTED", shape, flat, True, **options)
    return low.reshaped(call, value, _shape(call))


_OPERATORS: dict[str, Callable[[ProgramBuilder, Call, Value], Value]] = {
    "Conv1D": _conv1d,
    "Conv2D": _conv2d,
    "DepthwiseConv1D": _depthwise1d,
    "DepthwiseConv2D": _depthwise2d,
    "SeparableConv1D": _separable1d,
    "SeparableConv2D": _separable2d,
    "Conv1DTranspose": _transposed1d,
    "Conv2DTranspose": _transposed2d,
    "Dense": _dense,
    "EinsumDense": _einsum,
}

# Every host has an integer form, or says that it has none.
if unknown := {n for n, row in hosts.HOSTS.items() if not row.float_only} ^ set(_OPERATORS):
    raise LookupError(f"Rows of hosts without an integer form: {sorted(unknown)}.")


def _standalone(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """One weight and one bias a channel; another axis than the last is brought there and back."""
    layer = call.layer
    rank = len(x.shape)
    axis = layer.axis % rank
    channels = x.shape[axis] or 0
    perm = list(range(rank))
    if axis != rank - 1:
        perm[axis], perm[-1] = perm[-1], perm[axis]
        shape = tuple(x.shape[i] for i in perm)
        x = low.apply("TRANSPOSE", call, [x], shape, perm=perm)
    factor, bias = normalization(layer, np.zeros(channels))
    value = channel_affine(low, call, x, factor, bias)
    if axis != rank - 1:
        shape = tuple(value.shape[i] for i in perm)
        earlier = value.after

        def after(done: Value, quantization: Any) -> Value:
            done = earlier(done, quantization) if earlier is not None else done
            return low.apply("TRANSPOSE", call, [done], shape, perm=perm)

        value.shape, value.after = shape, after
    return value


def _quantize(low: ProgramBuilder, call: Call, x: Value) -> Value:
    return low.quantize(x, call.layer, call.path)


_LOWER: dict[type, Callable[[ProgramBuilder, Call, Value], Value]] = {
    QuantizeMixin: _quantize,
    QuantizedHostMixin: _host,
    FusedBatchNormalizationMixin: _standalone,
    QuantizedLayerNormalizationMixin: layer_norm,
}


def of(layer: Any) -> Callable[[ProgramBuilder, Call, Value], Value] | None:
    """What lowers a layer of ours; None for any other, and for the layers of the twin."""
    return next((_LOWER[cls] for cls in type(layer).__mro__ if cls in _LOWER), None)
