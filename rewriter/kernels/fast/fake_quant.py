"""Emulated quantization under conditions that all layers share (:mod:`.switch`).

Gradients are given by hand (straight-through, Bengio et al. 2013, arXiv:1308.3432), so nothing is
differentiated through a condition.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter.grid import NEGLIGIBLE, Grid
from rewriter.kernels.codes import QUANTIZE, QUANTIZE_FROZEN
from rewriter.kernels.fast.gradients import Pending, tensor
from rewriter.kernels.fast.switch import Switch
from rewriter.kernels.plain import clamped
from rewriter.kernels.plain.quantization import on_symmetric_grid, quotient, slopes_on_grid

_ANY = tf.TensorSpec(None, tf.float32)
_ONE = tf.TensorSpec((), tf.float32)

# Of the activations that LiteRT fuses into the operator before them, the gradient from the output.
# (The input need not be kept for it: a second copy of every activation would cost more time, in
# page faults, than the arithmetic.)
_GRADIENTS: dict[str, Any] = {
    "none": lambda g, y: g,
    "relu": lambda g, y: tf.raw_ops.ReluGrad(gradients=g, features=y),
    "relu6": lambda g, y: tf.raw_ops.Relu6Grad(gradients=g, features=y),
}


def _options(grid: Grid) -> dict[str, Any]:
    """The grid as TensorFlow's operators take it."""
    return {"num_bits": grid.bits, "narrow_range": grid.narrow}


def _extremes(x: Any, clamp: str) -> tuple[Any, Any]:
    """The batch's smallest and largest activated value; 0 is always inside."""
    x = tf.reshape(x, [-1])  # of an unknown rank, the axes would be found at every step
    high = tf.maximum(tf.reduce_max(x), 0.0)
    if clamp == "none":
        return tf.minimum(tf.reduce_min(x), 0.0), high
    upper = grids.FUSED_ACTIVATIONS[clamp][1]
    return tf.zeros_like(high), tf.minimum(high, upper) if math.isfinite(upper) else high


def _if_finite(batch: tuple[Any, Any], new: Any, values: Any) -> list[Any]:
    """The new range, or the one that there is where the batch's extremes are not finite."""
    finite = tf.math.is_finite(batch[1] - batch[0])
    return [tf.where(finite, one, other) for one, other in zip(new, values, strict=True)]


def _on_symmetric(x: Any, clamp: str, grid: Grid, low: Any, high: Any) -> Any:
    relu = clamp == "relu"
    return on_symmetric_grid(x if relu else clamped(x, clamp), grid, low, high, relu=relu)


@functools.cache
def _activation_switch(clamp: str, grid: Grid, rate: float, follows: bool, again: bool) -> Switch:
    """By phase: an activation; the range, two variables, is kept in place.

    What follows the batch also returns the range that there was before, which is an argument where
    the range is used ``again`` for the same batch.
    """

    def quantized(x: Any, low: Any, high: Any) -> Any:
        # A range that starts at 0 clamps like a ReLU, one that ends at 6 like a ReLU6.
        if grid.symmetric:
            return _on_symmetric(x, clamp, grid, low, high)
        return tf.quantization.fake_quant_with_min_max_vars(x, low, high, **_options(grid))

    def moved(low: Any, high: Any, values: Any) -> Any:
        for variable, value in zip((low, high), values, strict=True):
            variable.assign(value, read_value=False)
        return values

    def results(y: Any, before: Any = None) -> Any:
        return (y, *(before or (tf.constant(0.0), tf.constant(0.0))))

    def in_float(x: Any, *_: Any) -> Any:
        return results(clamped(x, clamp))

    def observing(x: Any, *ranges: Any) -> Any:
        low, high = ranges[-2:]
        batch, values = _extremes(x, clamp), (low.value(), high.value())
        new = tf.minimum(values[0], batch[0]), tf.maximum(values[1], batch[1])
        moved(low, high, _if_finite(batch, new, values))
        return results(clamped(x, clamp))

    def following(x: Any, *ranges: Any) -> Any:
        low, high = ranges[-2:]
        values = low.value(), high.value()
        before = ranges[:2] if again else values
        batch, unset = _extremes(x, clamp), before[0] > before[1]
        new = [
            tf.where(unset, value, old + rate * (value - old))
            for old, value in zip(before, batch, strict=True)
        ]
        if again:  # as one moving average of all that the batch has
            new = [tf.minimum(values[0], new[0]), tf.maximum(values[1], new[1])]
        new = _if_finite(batch, new, values)
        return results(quantized(x, *moved(low, high, new)), before)

    def frozen(x: Any, *ranges: Any) -> Any:
        low, high = ranges[-2:]
        values = low.value(), high.value()
        before = ranges[:2] if again else values

        def widened() -> Any:
            batch = _extremes(x, clamp)
            new = tf.minimum(values[0], batch[0]), tf.maximum(values[1], batch[1])
            return tuple(_if_finite(batch, new, values))

        # There may be no range to keep: the batch's becomes it.
        new = tf.cond(before[0] > before[1], widened, lambda: values)
        return results(quantized(x, *moved(low, high, new)), before)

    def fixed(x: Any, *ranges: Any) -> Any:
        values = tuple(variable.value() for variable in ranges[-2:])
        return results(quantized(x, *values), ranges[:2] if again else values)

    branches = in_float, observing, following if follows else frozen, frozen, fixed
    specs = [_ANY, *[tf.TensorSpec((), tf.float32)] * (2 if again else 0)]
    return Switch(specs, *branches, variables=[(), ()])  # as rewriter.kernels.codes counts


def activation(
    x: Any,
    low: Any,
    high: Any,
    phase: Any,
    *,
    rate: float,
    follow: Any,
    clamp: str = "none",
    grid: Grid = grids.ACTIVATION,
    before: Any = None,
) -> tuple[Pending, Any]:
    """As :func:`rewriter.kernels.plain.activation`; the output is pending."""
    known = tf.get_static_value(follow)
    if known is None:
        still = tf.cast(tf.logical_not(follow), tf.int32) * (QUANTIZE_FROZEN - QUANTIZE)
        phase = tf.where(phase == QUANTIZE, phase + still, phase)
    follows = known is None or bool(known)
    switch = _activation_switch(clamp, grid, rate, follows, before is not None)
    return _activated(switch, x, phase, clamp, before or (), (low, high))


def _activated(
    switch: Switch, x: Any, phase: Any, clamp: str, arguments: Any = (), variables: Any = ()
) -> tuple[Pending, Any]:
    value = tensor(x)
    shapes = (value.shape, *[()] * len(variables))
    y, *others = switch(phase, (value, *arguments), shapes, variables)
    gradient = _GRADIENTS[clamp]
    return Pending(y, lambda g: (gradient(g, y),), (x,)), tuple(others)


@functools.cache
def _fixed_switch(clamp: str, grid: Grid, low: float, high: float) -> Switch:
    def in_float(x: Any) -> tuple[Any]:
        return (clamped(x, clamp),)

    def quantized(x: Any) -> tuple[Any]:
        if grid.symmetric:
            return (_on_symmetric(x, clamp, grid, low, high),)
        return (tf.quantization.fake_quant_with_min_max_args(x, low, high, **_options(grid)),)

    return Switch(
        [_ANY], in_float, in_float, quantized, quantized
    )  # as rewriter.kernels.codes counts


def fixed_activation(
    x: Any,
    low: float,
    high: float,
    phase: Any,
    *,
    clamp: str = "none",
    grid: Grid = grids.ACTIVATION,
) -> Pending:
    """As :func:`activation`, with a range that is known beforehand."""
    found, _ = _activated(_fixed_switch(clamp, grid, low, high), x, phase, clamp)
    return found


@functools.cache
def _snapped_switch(grid: Grid) -> Switch:
    def in_float(x: Any, low: Any, high: Any) -> tuple[Any]:
        return (tf.identity(x),)

    def quantized(x: Any, low: Any, high: Any) -> tuple[Any]:
        return (tf.quantization.fake_quant_with_min_max_vars(x, low, high, **_options(grid)),)

    branches = in_float, in_float, quantized, quantized, quantized
    return Switch([_ANY, _ONE, _ONE], *branches)  # as rewriter.kernels.codes counts


def snapped(x: Any, low: Any, high: Any, phase: Any, grid: Grid) -> Any:
    """As :func:`rewriter.kernels.plain.snapped`."""
    (y,) = _snapped_switch(grid)(phase, (x, low, high), (x.shape,))
    return y


@functools.cache
def _slopes_switch(grid: Grid, wide: bool) -> Switch:
    def nothing() -> list[Any]:
        return [tf.constant(0.0) for _ in range(3)]

    def in_float(upstream: Any, *_: Any) -> tuple[Any, ...]:
        return (tf.identity(upstream), *nothing())

    def learning(*arguments: Any) -> tuple[Any, ...]:
        return slopes_on_grid(*arguments, grid=grid, wide=wide)

    def frozen(*arguments: Any) -> tuple[Any, ...]:
        return (learning(*arguments)[0], *nothing())

    branches = in_float, in_float, learning, frozen, frozen
    return Switch([_ANY, _ANY, _ANY, _ONE, _ONE], *branches)  # as rewriter.kernels.codes counts


def snapped_slopes(
    upstream: Any, x: Any, y: Any, low: Any, high: Any, phase: Any, *, grid: Grid, wide: bool
) -> tuple[Any, Any, Any, Any]:
    """As :func:`rewriter.kernels.plain.snapped_slopes`."""
    arguments = upstream, x, y, low, high
    dx, inside, below, above = _slopes_switch(grid, wide)(phase, arguments, (x.shape, (), (), ()))
    return dx, inside, below, above


def _steps(kernel: Any, grid: Grid) -> tuple[Any, Any]:
    """``max|w| / qmax`` for every channel and its inverse, other axes kept as 1.

    Both are 1 for a channel of nothing, which includes what is too small to have an inverse.
    """
    rank, top = len(kernel.shape), float(grid.qmax)
    kept = {axis % rank for axis in grid.axes}
    reduced = [axis for axis in range(rank) if axis not in kept]
    largest = tf.reduce_max(tf.abs(kernel), axis=reduced, keepdims=True)
    largest = tf.where(largest > NEGLIGIBLE, largest, top)
    return quotient(largest, top), top / largest


@functools.cache
def _kernel_switch(rank: int, grid: Grid) -> Switch:
    def quantized(kernel: Any) -> tuple[Any]:
        scale, inverse = _steps(kernel, grid)
        # Products and Rint: a quarter less time than a quotient and Round, which rounds alike.
        return (tf.math.rint(kernel * inverse) * scale,)

    def in_float(kernel: Any) -> tuple[Any]:
        return (tf.identity(kernel),)

    branches = in_float, in_float, quantized, quantized  # as rewriter.kernels.codes counts
    return Switch([tf.TensorSpec([None] * rank, tf.float32)], *branches)


def quantized_kernel(kernel: Any, phase: Any, grid: Grid) -> Pending:
    """As :func:`rewriter.kernels.plain.quantized_kernel`; pending."""
    switch = _kernel_switch(len(kernel.shape), grid)
    (value,) = switch(phase, (kernel,), (kernel.shape,))
    return Pending(value, lambda upstream: (upstream,), (kernel,))
