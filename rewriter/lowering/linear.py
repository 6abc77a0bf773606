"""Operators with a kernel and a bias: their integers, their scales, their place in the program."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.grid import Grid
from rewriter.keras_compat.variables import read
from rewriter.layers import bias_correction, channels, learned_kernels, preserved
from rewriter.litert.integer_kernels import product, rounding_offset
from rewriter.lowering import folding
from rewriter.lowering.finite import require_finite
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.ranges import require_positive
from rewriter.lowering.values import Shape, Value
from rewriter.program import Operator, Quantization
from rewriter.quantization import phases, quantizers
from rewriter.quantization.pipeline import VARIABLES
from rewriter.reading import hosts
from rewriter.reading.graph import Call


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedKernel:
    """A kernel as the device has it.

    Attributes:
      integers: int8, in Keras's layout.
      scale: float32, one for each output channel.
      grid: which integers they may be; its axes index the output channels.
      power_of_two: whether its scales are powers of two, and have to stay so.
    """

    integers: np.ndarray
    scale: np.ndarray
    grid: Grid
    power_of_two: bool = False

    def stored(self, kind: str) -> QuantizedKernel:
        """The same kernel on the grid of its operator's storage.

        Its integers are a multiple of what they were where there is room for it: the bias is
        rounded to steps of the kernel's scale, and they are as much finer.

        Raises:
          ValueError: see :func:`rewriter.grid.storage`.
        """
        grid = grids.kernel(grids.storage(kind, self.grid), self.grid.axes)
        if grid == self.grid:
            return self
        factor = grid.qmax // self.grid.qmax
        return QuantizedKernel(
            self.integers * np.int8(factor),
            self.scale / np.float32(factor),
            grid,
            self.power_of_two,
        )

    def lifted(self) -> QuantizedKernel:
        """With an axis of size 1 in front: axes are counted from the end."""
        return dataclasses.replace(self, integers=self.integers[None])

    def flat(self) -> QuantizedKernel:
        """As a matrix, its last axes being those of the channels: one row for each sum."""
        sizes = hosts.flat_sizes(self.integers.shape, self.grid.axes)
        grid = grids.kernel(self.grid.bits, (-1,))
        return QuantizedKernel(self.integers.reshape(sizes), self.scale, grid)


_POINTWISE = {"strides": [1, 1], "padding": "VALID", "dilations": [1, 1]}


def kernels(layer: Any, path: str) -> list[QuantizedKernel]:
    """The kernels of a QuantizedHost, as phase ``quantize`` has them.

    Raises:
      ExportError: naming the layer, for a quantizer whose grid a file has no kernels for.
    """
    result = []
    rows = zip(layer.row.kernels, layer.kernel_quantizers, strict=True)
    for index, (row, quantizer) in enumerate(rows):
        grid = grids.kernel(grids.of(quantizer).bits, row.channel_axes)
        if grid.bits > max(grids.KERNEL_WIDTHS):
            raise ExportError(
                f"Layer {path!r} has a kernel of {grid.bits} bits, of "
                f"{type(quantizer).__qualname__}; files store up to {max(grids.KERNEL_WIDTHS)}. "
                "Use a kernel quantizer with fewer."
            )
        scales = learned_kernels.scales(layer, index)
        if scales is not None:
            require_positive(path, quantizer, layer.kernel_weights[index])
        if isinstance(quantizer, quantizers.PerChannelQuantizer):
            values = preserved.values(layer, index)
            require_finite(path, values)
            found = folding.kernel_integers(values, grid)
        else:
            values = np.asarray(layer.quantized_kernels()[index])
            require_finite(path, values)
            ranges = layer.kernel_ranges(index)
            found = _foreign(values, grid, path, quantizer, ranges, scales)
        power = bool(getattr(quantizer, "power_of_two", False))
        result.append(QuantizedKernel(*found, grid, power))
    return result


def _foreign(
    values: np.ndarray,
    grid: Grid,
    path: str,
    quantizer: Any,
    ranges: list[np.ndarray],
    scales: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of a kernel that a user's quantizer has put on a grid of this width.

    ``ranges``: the ends of the range that it keeps, if any: its grid is theirs even where the
    kernel does not reach them. ``scales``: those that training learned.
    """
    _, scale = folding.kernel_integers(values, grid)
    largest = np.float32(np.abs(values).max() / grid.qmax or 1)
    shape = [1] * values.ndim
    for axis in grid.axes:
        shape[axis] = values.shape[axis]
    candidates = [np.full_like(scale, largest), scale]
    if ranges:
        end = np.max(np.abs(np.stack(np.broadcast_arrays(*ranges))), axis=0).ravel()
        if end.size in (1, scale.size):
            step = end / np.float32(grid.qmax)
            step = np.where(step > 0, step, 1).astype(np.float32)  # a channel of zeros
            candidates.insert(0, np.broadcast_to(step, scale.shape))
    if scales is not None:
        candidates = [np.broadcast_to(np.asarray(scales, np.float32), scale.shape)]
        if not np.isfinite(candidates[0]).all():
            raise ExportError(
                f"The learned scales of the kernel of {path!r} are not finite. Train with a "
                "smaller learning rate, or from the calibrated model again."
            )
    for candidate in candidates:
        integers, _ = folding.kernel_integers(values, grid, candidate)
        off = float(np.abs(integers - values / candidate.reshape(shape)).max())
        if off <= 1 / 64:  # of a step, in every channel
            return integers, candidate
    raise ExportError(
        f"The kernel of {path!r} does not lie on a symmetric, narrow-range grid of {grid.bits} "
        f"bits along its output channels after {type(quantizer).__qualname__}. Use a symmetric, "
        "narrow-range quantizer with one scale for each output channel or for the whole kernel."
    )


def linear(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    kind: str,
    shape: Shape,
    kernel: QuantizedKernel,
    last: bool,
    **attributes: Any,
) -> Value:
    """A pending convolution or matrix product; ``last``: with bias and normalization."""
    layer = call.layer
    bias = np.zeros(len(kernel.scale))
    if last:
        factor, bias = after_kernel(layer, len(kernel.scale))
        if layer.batch_norm is not None and not layer.folds_first:
            axes = kernel.grid.axes
            folded = folding.fold_scale(kernel.integers, kernel.scale, factor, axes)
            kernel = QuantizedKernel(*folded, kernel.grid)
    return with_constants(low, call, x, kind, shape, kernel, bias, attributes)


def with_constants(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    kind: str,
    shape: Shape,
    kernel: QuantizedKernel,
    bias: np.ndarray,
    attributes: dict[str, Any],
) -> Value:
    """A pending operator with this kernel and this real-valued bias.

    Raises:
      ExportError: naming the layer, if LiteRT's operator takes no kernel of that width, or the
        weights are not finite.
    """
    require_finite(call.path, kernel.scale)
    require_finite(call.path, bias)
    try:
        kernel = kernel.stored(kind)
    except ValueError as error:
        raise ExportError(
            f"Layer {call.path!r}: {error} Use a kernel quantizer of such a width, or another "
            "layer (UpSampling2D and Conv2D for a transposed convolution)."
        ) from error

    def finish(output: Quantization, activation: str) -> Operator:
        source = low.grid(x)
        wide = source.bits > grids.BITS
        integers, scale = folding.bound_scale(
            kernel.integers,
            kernel.scale,
            bias,
            kernel.grid.axes,
            source.scale,
            output.scale,
            power_of_two=kernel.power_of_two,
            wide=wide,
            narrow=grids.storage(kind, kernel.grid) < grids.BITS,
        )
        made = Operator(
            kind,
            (source,),
            output,
            attributes,
            activation,
            integers,
            scale,
            kernel_grid=kernel.grid,
        )
        made = product(made, x.shape[-1])
        added = rounding_offset(made, x.shape[-1]) * output.scale
        integer_bias = folding.bias_grid(bias - added, scale, source.scale, wide=wide)
        return dataclasses.replace(made, bias=integer_bias)

    return low.pending(call.path, [x], shape, finish)


def after_kernel(layer: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What a QuantizedHost multiplies each of ``count`` channels by, and what it adds, float64."""
    own = channels.bias(layer)
    factor, bias = np.ones(count), np.zeros(count) if own is None else own
    if layer.batch_norm is not None:
        factor, bias = normalization(layer.batch_norm, bias)
    return factor, bias + bias_correction.values(layer)


def normalization(batch_norm: Any, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalization multiplies each channel by, and what it adds, float64."""
    if batch_norm.pipeline is None:
        given = [getattr(batch_norm, name) for name in VARIABLES]
        gamma, beta, mean, variance = (None if v is None else read(v) for v in given)
    else:
        values = batch_norm.variables_in(tf.constant(phases.QUANTIZE))
        gamma, beta, mean, variance = (np.asarray(values[name]) for name in VARIABLES)
    for value in (gamma, beta, mean, variance):
        if value is not None:
            require_finite(batch_norm.name, value)
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
    grid = grids.kernel(axes=(-2, -1))
    integers = np.sign(factor).astype(np.int8).reshape(1, 1, -1, 1) * np.int8(grid.qmax)
    kernel = QuantizedKernel(integers, (np.abs(factor) / grid.qmax).astype(np.float32), grid)
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
        kernel,
        offset,
        dict(_POINTWISE),
    )
    return low.reshaped(call, value, x.shape)
