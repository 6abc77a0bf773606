"""Biases on the steps that the file has for them, where those are coarse.

A file keeps a bias as int32, in steps of its input's scale times its kernel's. A kernel of 4 bits
has 18 times larger steps than one of 8, and so has its bias: rounding it is then most of what is
left between the emulation and the file. Training that rounds it alike learns with it.

The rule is that of :func:`rewriter.lowering.linear.with_constants`: the bias with the normalization
folded in, ``(b - mean) * s + beta`` with ``s = gamma / sqrt(variance + epsilon)`` (Jacob et al.
2018, arXiv:1712.05877), less what the kernel's second rounding adds, on the nearest step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import grid as grids
from rewriter import kernels as arithmetic
from rewriter.grid import NARROWEST, Grid
from rewriter.layers import bias_correction, learned_kernels, neighbours
from rewriter.litert.integer_kernels import delegated, product, vectorized
from rewriter.program import Operator
from rewriter.quantization import learned, phases, quantizers
from rewriter.quantization.pipeline import VARIABLES
from rewriter.reading import hosts

_PER_CHANNEL, _PER_TENSOR, _KEPT = "per channel", "per tensor", "kept"  # where a scale comes from


def shifts(host: Any, kernels: Sequence[Any], phase: Any) -> list[Any]:
    """What rounding and correction add to the bias of each operator that a QuantizedHost becomes.

    That is 0 in the phases without quantization. A channel of zeros is not rounded, for a file
    keeps its bias in steps as fine as it needs. An operator between two kernels has no bias of the
    model's, but one that makes up for its second rounding as well as its steps allow. Ranges that
    follow the batches are taken as they are: that of the input after this batch, that of the output
    before.

    Args:
      host: built.
      kernels: as ``phase`` has them; may be pending.
      phase: int32 scalar of :mod:`rewriter.quantization.phases`.

    Returns:
      For each kernel float32 (channels,), without a gradient; or None: its bias is not corrected,
      and its steps are fine, or the grid of the input, the output or the kernel cannot be told.
    """
    found: list[Any] = [None] * len(kernels)
    for index, kind in enumerate(host.row.operators):
        if grids.is_coarse(kind, grids.of(host.kernel_quantizers[index])):
            found[index] = _shift(_Operator(host, index, kind), kernels[index], phase)
    found[-1] = bias_correction.added(host, found[-1], phase)
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Operator:
    """One operator that a QuantizedHost becomes: with which of its kernels, and of which kind."""

    host: Any
    index: int
    kind: str

    @property
    def last(self) -> bool:
        """Whether it has the host's bias and normalization."""
        return self.index == len(self.host.row.kernels) - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel in the layer."""
        shape = tuple(getattr(self.host.host, self.host.kernel_names[self.index]).shape)
        return hosts.flat_sizes(shape, self._axes) if self._is_matrix else shape

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.host.row.kernels[self.index].channel_axes

    @property
    def _is_matrix(self) -> bool:
        """Whether it is a matrix product on the device, whatever axes the kernel has."""
        return self.kind == "FULLY_CONNECTED"

    @property
    def grid(self) -> Grid:
        """Of the kernel; its axes count from the end."""
        bits = grids.of(self.host.kernel_quantizers[self.index]).bits
        return grids.kernel(bits, (-1,) if self._is_matrix else self._axes)

    @property
    def folded(self) -> bool:
        """Whether the kernel is quantized with the normalization in it."""
        return self.last and self.host.folds_first

    def ends(self) -> tuple[Any, Any]:
        """The Quantize layers of its input and its output; None where there is not one."""
        host = self.host
        first, last = self.index == 0, self.last
        before = neighbours.quantizer_before(host.flavour, host) if first else host.between
        after = host.before_activation or host.output_quantizer if last else host.between
        return before, after or neighbours.quantizer_after(host.flavour, host)


def _shift(operator: _Operator, kernel: Any, phase: Any) -> Any | None:
    scales, host = _scales(operator), operator.host
    rounded_twice = _rounded_twice(operator)
    source, output = operator.ends()
    if not rounded_twice.any():  # the output's grid does not matter
        output = source
    layers = [layer for layer in (source, output) if layer is not None]
    ends = [each for layer in layers for each in neighbours.range_of(layer)]
    if scales is None or len(ends) < 4:
        return None
    twice = tf.constant(rounded_twice, tf.float32)
    none = tf.zeros_like(twice)
    bias, norm, epsilon = none, [none + 1, none, none, none + 1], 0.0  # in the order of VARIABLES
    if operator.last and hosts.uses_bias(host.host):
        bias = tf.cast(tf.convert_to_tensor(host.bias), tf.float32)
        bias = _every_channel(operator, bias)
    if operator.last and host.batch_norm is not None:
        epsilon, values = host.batch_norm.epsilon, host.batch_norm.variables_in(phase)
        norm = [tf.cast(values[name], tf.float32) for name in VARIABLES]
    rounding = _rounding(
        len(operator.shape),
        operator.grid,
        grids.storage(operator.kind, operator.grid),
        scales,
        operator.folded,
        float(epsilon),
        tuple(float(grids.of(layer.quantizer).steps) for layer in layers),
    )
    corrected = bias_correction.added(host, None, phase) if operator.last else None
    kept = _reach(operator) if scales == _KEPT else none
    value = tf.reshape(tf.cast(arithmetic.tensor(kernel), tf.float32), operator.shape)
    corrected = none if corrected is None else corrected
    given = [value, bias, *norm, twice, corrected, kept, *ends]
    found = tf.cond(phase >= phases.QUANTIZE, lambda: rounding(*given), lambda: none)
    return tf.stop_gradient(found)


def _every_channel(operator: _Operator, bias: Any) -> Any:
    """A bias with a number for each channel; that of an ``EinsumDense`` may serve several."""
    (kernel,) = operator.host.row.kernels[-1:]
    if len(kernel.channel_axes) == 1 or operator.kind != "FULLY_CONNECTED":
        return bias
    sizes = [operator.host.kernel.shape[axis] for axis in kernel.channel_axes]
    return tf.reshape(tf.broadcast_to(bias, sizes), [-1])


def _scales(operator: _Operator) -> str | None:
    """Where the scales of the kernel come from; None for a quantizer that does not tell."""
    quantizer = operator.host.kernel_quantizers[operator.index]
    if isinstance(quantizer, quantizers.PerChannelQuantizer):
        return _PER_CHANNEL
    if isinstance(quantizer, quantizers.PerTensorQuantizer):
        return _PER_TENSOR
    if isinstance(quantizer, learned.LearnedKernelQuantizer):
        return _KEPT
    return _KEPT if len(operator.host.kernel_range_variables(operator.index)) == 2 else None


def _reach(operator: _Operator) -> Any:
    """The larger end of the range that a quantizer keeps for the kernel: one or for each."""
    scales = learned_kernels.scales(operator.host, operator.index)
    if scales is not None:
        return tf.reshape(scales * float(operator.grid.qmax), [-1])
    variables = operator.host.kernel_range_variables(operator.index)
    low, high = (tf.convert_to_tensor(variable) for variable in variables)
    return tf.reshape(tf.maximum(tf.abs(low), tf.abs(high)), [-1])


def _rounded_twice(operator: _Operator) -> np.ndarray:
    """Which channels LiteRT requantizes with two roundings, bool."""
    kind, shape, grid = operator.kind, operator.shape, operator.grid
    if kind != "FULLY_CONNECTED":  # along one axis as over (1, length)
        shape = (*(1,) * (4 - len(shape)), *shape)
    strides = [1, 1]
    if len(operator.host.row.kernels) == 1:
        strides = [1, *list(getattr(operator.host.host, "strides", ()))][-2:]
    channels = int(np.prod([shape[axis] for axis in grid.axes]))
    inputs = shape[-2] * getattr(operator.host.host, "groups", 1)
    alike = product(
        Operator(
            kind,
            (None,),
            None,
            {"strides": strides},
            kernel=np.broadcast_to(np.int8(0), shape),
            kernel_scale=np.ones(channels, np.float32),
            kernel_grid=grids.kernel(grids.storage(kind, grid)),
        ),
        inputs,
    )
    return np.zeros(channels, bool) if delegated(alike) else vectorized(alike, inputs)


def _rounding(
    rank: int,
    grid: Grid,
    bits: int,
    scales: str,
    folded: bool,
    epsilon: float,
    steps: tuple[float, ...],
) -> Callable[..., Any]:
    """A function of the kernel, the bias, gamma, beta, mean, variance, which channels are rounded
    twice, the correction of the bias, the range that a quantizer keeps for the kernel, and those of
    the input and the output.

    It returns what rounding adds. ``bits``: of the storage. ``folded``: the kernel was quantized
    with the normalization in it.
    """
    rest = [axis for axis in range(rank) if axis - rank not in grid.axes]
    fill = np.float32(grids.kernel(bits).qmax // grid.qmax)

    def rounded(kernel: Any, *arguments: Any) -> Any:
        *vectors, kept, low, high, out_low, out_high = arguments
        # float64, as where the file's bias is made
        vectors = [tf.cast(vector, tf.float64) for vector in vectors]
        bias, gamma, beta, mean, variance, twice, corrected = vectors
        factor = gamma / tf.sqrt(variance + epsilon)
        real = beta + (bias - mean) * factor + corrected
        size = tf.abs(factor)
        largest = tf.reshape(tf.reduce_max(tf.abs(kernel), rest), [-1])
        largest = tf.cast(largest, tf.float64)
        if scales == _PER_CHANNEL:
            reach = largest
        elif scales == _PER_TENSOR:
            reach = tf.reduce_max(largest * size if folded else largest)
        else:
            reach = tf.cast(kept, tf.float64)
        reach = reach if folded else reach * size
        scale = tf.cast(reach / grid.qmax, tf.float32) / fill
        source = _scale(low, high, steps[0])
        output = _scale(out_low, out_high, steps[1])
        step = tf.cast(source * scale, tf.float64)
        # Two roundings, the first to steps of 2**-k, are one of x + 2**-(k + 1): see
        # rewriter.litert.integer_kernels.rounding_offset.
        ratio = tf.cast(step, tf.float32) / output
        below = tf.where(ratio < 0.5, _power_of_two(ratio) * output, 0.0)
        offset = twice * tf.cast(below, tf.float64)
        found = tf.round((real - offset) / step) * step + offset - real
        live = (largest * size > 0) & (step > 0) & (low <= high)
        return tf.cast(tf.where(live, found, tf.zeros_like(found)), tf.float32)

    return rounded


def _scale(low: Any, high: Any, steps: float) -> Any:
    """As :func:`rewriter.lowering.folding.activation_quantization`."""
    width = tf.maximum(high, 0.0) - tf.minimum(low, 0.0)
    width = tf.where(width > 0, tf.maximum(width, NARROWEST), steps)
    return width / steps


def _power_of_two(x: Any) -> Any:
    """The largest power of two that is not above ``x``, positive float32."""
    exponent = 0x7F800000
    return tf.bitcast(tf.bitwise.bitwise_and(tf.bitcast(x, tf.int32), exponent), tf.float32)
