"""Operators with a kernel and a bias: their integers, their scales, their place in the program."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import folding, phases, quantizers
from rewriter.errors import ExportError
from rewriter.graph import Call
from rewriter.grid import kernel as kernel_grid
from rewriter.pipeline import VARIABLES
from rewriter.program import Operator, Quantization
from rewriter.program_builder import ProgramBuilder
from rewriter.values import Shape, Value, read

Grid = tuple[np.ndarray, np.ndarray]  # int8 integers, and a float32 scale for each channel

_POINTWISE = {"strides": [1, 1], "padding": "VALID", "dilations": [1, 1]}


def kernel_grids(layer: Any, path: str) -> list[Grid]:
    """Integers and scales of each kernel of a QuantizedHost, as phase ``quantize`` has them."""
    result = []
    rows = zip(layer.row.kernels, layer.kernel_quantizers, layer.kernel_names, strict=True)
    for index, (row, quantizer, name) in enumerate(rows):
        if isinstance(quantizer, quantizers.PerChannelQuantizer):
            original = read(getattr(layer.host, name))
            result.append(folding.kernel_grid(original, row.channel_axes))
            continue
        values = np.asarray(layer.quantized_kernels()[index])
        ranges = layer.kernel_ranges(index)
        result.append(_foreign_grid(values, row.channel_axes, path, quantizer, ranges))
    return result


def _foreign_grid(
    values: np.ndarray,
    channel_axes: tuple[int, ...],
    path: str,
    quantizer: Any,
    ranges: list[np.ndarray],
) -> Grid:
    """The int8 grid that a user's quantizer put the kernel on.

    ``ranges``: the ends of the range that it keeps, if any: its grid is theirs even where the
    kernel does not reach them.
    """
    _, scale = folding.kernel_grid(values, channel_axes)
    largest = np.float32(np.abs(values).max() / 127 or 1)
    shape = [1] * values.ndim
    for axis in channel_axes:
        shape[axis] = values.shape[axis]
    found = []
    candidates = [scale, np.full_like(scale, largest)]
    if ranges:
        end = np.max(np.abs(np.stack(np.broadcast_arrays(*ranges))), axis=0).ravel()
        if end.size in (1, scale.size):
            step = end / np.float32(2 ** (getattr(quantizer, "num_bits", 8) - 1) - 1)
            step = np.where(step > 0, step, 1).astype(np.float32)  # a channel of zeros
            candidates.append(np.broadcast_to(step, scale.shape))
    for candidate in candidates:
        integers, _ = folding.kernel_grid(values, channel_axes, candidate)
        off = float(np.abs(integers - values / candidate.reshape(shape)).max())
        found.append((off, integers, candidate))
    off, integers, candidate = min(found, key=lambda grid: grid[0])
    if off <= 1 / 64:  # of a step, in every channel
        return integers, candidate
    raise ExportError(
        f"The kernel of {path!r} does not lie on a symmetric int8 grid after "
        f"{type(quantizer).__qualname__}. Use a symmetric, narrow-range 8-bit quantizer."
    )


def linear(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    kind: str,
    shape: Shape,
    grid: Grid,
    axes: tuple[int, ...],
    last: bool,
    **attributes: Any,
) -> Value:
    """A pending convolution or matrix product; ``last``: with bias and normalization."""
    layer = call.layer
    integers, scale = grid
    bias = np.zeros(len(scale))
    if last:
        if layer.host.use_bias:
            bias = read(layer.host.bias).astype(np.float64)
        if layer.batch_norm is not None:
            factor, bias = normalization(layer.batch_norm, bias)
            if not layer.folds_first:
                integers, scale = folding.fold_scale(integers, scale, factor, axes)
    return with_constants(low, call, x, kind, shape, (integers, scale), bias, axes, attributes)


def with_constants(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    kind: str,
    shape: Shape,
    grid: Grid,
    bias: np.ndarray,
    axes: tuple[int, ...],
    attributes: dict[str, Any],
) -> Value:
    """A pending operator with this kernel and this real-valued bias."""
    integers, scale = grid

    def finish(output: Quantization, activation: str) -> Operator:
        source = low.grid(x)
        kernel, kernel_scale = folding.bound_scale(
            integers, scale, bias, axes, source.scale, output.scale
        )
        return Operator(
            kind,
            (source,),
            output,
            attributes,
            activation,
            kernel,
            kernel_scale,
            folding.bias_grid(bias, kernel_scale, source.scale),
            kernel_grid=kernel_grid(axes=axes),
        )

    return low.pending(call.path, [x], shape, finish)


def normalization(batch_norm: Any, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalization multiplies each channel by, and what it adds, float64."""
    if batch_norm.pipeline is None:
        given = [getattr(batch_norm, name) for name in VARIABLES]
        gamma, beta, mean, variance = (None if v is None else read(v) for v in given)
    else:
        values = batch_norm.variables_in(tf.constant(phases.QUANTIZE))
        gamma, beta, mean, variance = (np.asarray(values[name]) for name in VARIABLES)
    factor = folding.batch_norm_scale(gamma, variance, batch_norm.epsilon)
    return factor, folding.batch_norm_bias(factor, mean, beta, bias)


def channel_affine(
    low: ProgramBuilder, call: Call, x: Value, factor: np.ndarray, offset: np.ndarray
) -> Value:
    """``x * factor + offset`` on the last axis: a pending 1x1 depthwise convolution.

    One weight a channel, so its own scale holds it exactly. ``factor`` and ``offset``: one number,
    or one for each channel.
    """
    sizes = low.static(x.shape, call)
    channels = sizes[-1]
    factor = np.broadcast_to(np.asarray(factor, np.float64).reshape(-1), (channels,))
    offset = np.broadcast_to(np.asarray(offset, np.float64).reshape(-1), (channels,))
    integers = np.sign(factor).astype(np.int8).reshape(1, 1, -1, 1) * np.int8(127)
    scale = (np.abs(factor) / 127).astype(np.float32)
    image: Shape = x.shape
    if len(sizes) < 3:
        image = (None, *((1,) * (3 - len(sizes))), *sizes)
    elif len(sizes) > 3:
        image = (None, int(np.prod(sizes[:-2])), *sizes[-2:])
    value = with_constants(
        low,
        call,
        low.reshape(call, x, image),
        "DEPTHWISE_CONV_2D",
        image,
        (integers, scale),
        offset,
        (-2, -1),
        dict(_POINTWISE),
    )
    return low.reshaped(call, value, x.shape)
