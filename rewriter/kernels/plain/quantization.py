"""Activations and kernels on their integer grids, as a phase says."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import grid as grids
from rewriter.grid import NEGLIGIBLE, Grid
from rewriter.kernels.codes import QUANTIZE, QUANTIZE_FROZEN
from rewriter.kernels.plain.tensors import chosen, connect

_CLAMPS = {"none": tf.identity, "relu": tf.nn.relu, "relu6": tf.nn.relu6}
_INSIDE = {
    "none": tf.ones_like,
    "relu": lambda y: tf.cast(y > 0, y.dtype),
    "relu6": lambda y: tf.cast((y > 0) & (y < 6), y.dtype),
}


def clamped(x: Any, clamp: str) -> Any:
    """``x`` itself, ``max(x, 0)`` or ``min(max(x, 0), 6)``: the activations that LiteRT fuses.

    Args:
      x: floating point, any shape.
      clamp: ``"none"``, ``"relu"`` or ``"relu6"``.
    """
    return _CLAMPS[clamp](x)


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
) -> tuple[Any, Any]:
    """Activate and quantize a tensor as its phase says (Jacob et al. 2018, arXiv:1712.05877).

    ``float``: ``y = clamp(x)``. ``observe``: that, and the range becomes the hull of itself and the
    batch's. ``quantize``: the range moves by ``rate`` of the way to the batch's, and y is the
    nearest value to x on the grid that divides it into equal steps. The batch's range is that of
    ``clamp(x)`` and 0; one that is not finite changes nothing. The gradient is the clamp's at y,
    straight through the rounding and the ends of the range (Bengio et al. 2013, arXiv:1308.3432).

    Args:
      x: float32, any shape; may be pending.
      low, high: the range, scalar ``tf.Variable`` of float32, updated in place; ``low > high`` if
        nothing has been observed. An unset range in phase ``quantize`` becomes the batch's own.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      rate: share of a batch's range in the moving average.
      follow: bool or bool scalar: whether the range follows this batch in phase ``quantize``.
      clamp: ``"none"``, ``"relu"`` or ``"relu6"``: applied first.
      grid: the integers.
      before: where the range serves several tensors of a batch, for all but the first: what this
        function returned for that. The range then follows the smallest and the largest of them all;
        one moving average after the other would end at the mean of theirs, and cut the widest off.

    Returns:
      The shape of ``x``, which may be pending; and the range before this batch.
    """
    follows = tf.get_static_value(follow)
    if follows is None:
        phase = tf.where(follow | (phase != QUANTIZE), phase, QUANTIZE_FROZEN)
    ends = low.value(), high.value()
    start = ends if before is None else before
    within = _within(x, clamp, grid)

    def batch() -> tuple[Any, Any]:
        y = clamped(x, clamp)
        return tf.minimum(tf.reduce_min(y), 0.0), tf.maximum(tf.reduce_max(y), 0.0)

    def hull(a: Any, b: Any) -> tuple[Any, Any]:
        return tf.minimum(a[0], b[0]), tf.maximum(a[1], b[1])

    def if_finite(seen: Any, new: Any) -> list[Any]:
        finite = tf.math.is_finite(seen[1] - seen[0])
        return [tf.where(finite, one, end) for one, end in zip(new, ends, strict=True)]

    def in_float() -> tuple[Any, ...]:
        return clamped(x, clamp), *ends

    def observing() -> tuple[Any, ...]:
        seen = batch()
        return clamped(x, clamp), *if_finite(seen, hull(ends, seen))

    def following() -> tuple[Any, ...]:
        seen = batch()
        new = [
            tf.where(start[0] > start[1], end, old + rate * (end - old))
            for old, end in zip(start, seen, strict=True)
        ]
        # Of several tensors, one moving average of all that the batch has.
        low, high = if_finite(seen, new if before is None else hull(ends, new))
        return on_grid(within, grid, low, high), low, high

    def frozen() -> tuple[Any, ...]:
        # There may be no range to keep: the batch's becomes it.
        def widened() -> tuple[Any, Any]:
            seen = batch()
            low, high = if_finite(seen, hull(ends, seen))
            return low, high

        new = tf.cond(start[0] > start[1], widened, lambda: ends)
        return on_grid(within, grid, *new), *new

    def fixed() -> tuple[Any, ...]:
        return on_grid(within, grid, *ends), *ends

    moving = frozen if follows is not None and not follows else following
    y, *new = chosen(phase, in_float, observing, moving, frozen, fixed)
    for variable, value in zip((low, high), new, strict=True):
        variable.assign(value, read_value=False)
    return _through_clamp(y, x, clamp), start


def fixed_activation(
    x: Any,
    low: float,
    high: float,
    phase: Any,
    *,
    clamp: str = "none",
    grid: Grid = grids.ACTIVATION,
) -> Any:
    """As :func:`activation`, with a range that is known beforehand."""

    def in_float() -> tuple[Any]:
        return (clamped(x, clamp),)

    def quantized() -> tuple[Any]:
        return (on_grid(_within(x, clamp, grid), grid, low, high),)

    (y,) = chosen(phase, in_float, in_float, quantized)
    return _through_clamp(y, x, clamp)


def quantized_kernel(kernel: Any, phase: Any, grid: Grid) -> Any:
    """``round(w / s) * s`` with ``s = max|w| / qmax`` for every channel, in phase ``quantize``.

    Rounding is half to even (Krishnamoorthi 2018, arXiv:1806.08342, section 2.4). Nothing is
    clipped, since the range is the kernel's own: the straight-through gradient is the identity in
    every phase. A channel of nothing, or too small to have an inverse, has the scale 1.

    Args:
      kernel: float32, any rank.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      grid: a symmetric, narrow-range one; its axes index the output channels, of which each has a
        scale.

    Returns:
      The shape of ``kernel``; may be pending.
    """

    def quantized() -> tuple[Any]:
        rank, top = len(kernel.shape), float(grid.qmax)
        kept = {axis % rank for axis in grid.axes}
        rest = [axis for axis in range(rank) if axis not in kept]
        largest = tf.reduce_max(tf.abs(kernel), rest, keepdims=True)
        largest = tf.where(largest > NEGLIGIBLE, largest, top)
        return (tf.round(kernel * (top / largest)) * quotient(largest, top),)

    (value,) = chosen(phase, lambda: (tf.identity(kernel),), lambda: (tf.identity(kernel),),
                       quantized)  # fmt: skip
    return connect(value, lambda upstream: (upstream,), kernel)


def snapped(x: Any, low: Any, high: Any, phase: Any, grid: Grid) -> Any:
    """The nearest value on the grid over ``[low, high]`` from phase ``quantize`` on; else ``x``.

    Args:
      x: float32, any shape.
      low, high: multiples of one step, float32 scalars; ``low <= 0 <= high``.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      grid: an affine one.

    Returns:
      The shape of ``x``. It has no gradient: see :func:`snapped_slopes`.
    """

    def in_float() -> tuple[Any]:
        return (tf.identity(x),)

    (y,) = chosen(phase, in_float, in_float, lambda: (on_grid(x, grid, low, high),))
    return y


def snapped_slopes(
    upstream: Any, x: Any, y: Any, low: Any, high: Any, phase: Any, *, grid: Grid, wide: bool
) -> tuple[Any, Any, Any, Any]:
    """What the gradients of :func:`snapped` are made of.

    Args:
      upstream: the gradient for ``y``.
      x, y, low, high, phase, grid: its arguments and its value.
      wide: whether half a step beyond either end counts as inside: what rounds to the end.

    Returns:
      The gradient for x, ``upstream`` inside and 0 elsewhere; and, in phase ``quantize`` and else
      0, the sum of ``upstream * (y - x)`` inside, and those of ``upstream`` below and above.
    """

    def in_float() -> tuple[Any, ...]:
        return (upstream, *[tf.constant(0.0)] * 3)

    def learning() -> tuple[Any, ...]:
        return slopes_on_grid(upstream, x, y, low, high, grid=grid, wide=wide)

    def frozen() -> tuple[Any, ...]:
        return (learning()[0], *[tf.constant(0.0)] * 3)

    dx, inside, below, above = chosen(phase, in_float, in_float, learning, frozen)
    return dx, inside, below, above


def slopes_on_grid(
    upstream: Any, x: Any, y: Any, low: Any, high: Any, *, grid: Grid, wide: bool
) -> tuple[Any, Any, Any, Any]:
    """As :func:`snapped_slopes` in phase ``quantize``, in few passes over the tensors."""
    off, half = y - x, (high - low) / (2 * grid.steps)
    if not wide or grid.bits <= grids.BITS:
        options = {"num_bits": grid.bits, "narrow_range": grid.narrow}
        if wide:
            # Of 16 bits, which move the ends, so that 0 is exact, by a 500th of a step at most.
            low, high, options = low - half, high + half, {"num_bits": 16}
        gradient = tf.quantization.fake_quant_with_min_max_vars_gradient
        dx, below, above = gradient(upstream, x, low, high, **options)
        return dx, _product(dx, off), below, above
    dx = tf.where(tf.abs(off) <= half, upstream, 0.0)  # rounding moves by no more
    beyond = upstream - dx
    total = tf.reduce_sum(beyond)
    above = (_product(beyond, y) - low * total) / (high - low)  # y is low or high there
    return dx, _product(dx, off), total - above, above


def _product(a: Any, b: Any) -> Any:
    """The inner product of two tensors of one shape."""
    return tf.tensordot(tf.reshape(a, [-1]), tf.reshape(b, [-1]), 1)


def quotient(x: Any, number: float) -> Any:
    """``x / number`` to the last bit of float32, as a file's scale is.

    In a graph, TensorFlow makes a division by a constant a product with its inverse.
    """
    return tf.cast(tf.cast(x, tf.float64) / number, tf.float32)


def on_grid(x: Any, grid: Grid, low: Any, high: Any) -> Any:
    """The nearest value on the grid over ``[low, high]``, nudged so that 0 is exact.

    A symmetric grid reaches as far on either side: TensorFlow's operator would round its float32
    products, of which one step in 65,534 is not much more.
    """
    if grid.symmetric:
        return on_symmetric_grid(x, grid, low, high)
    quantize = tf.quantization.fake_quant_with_min_max_vars
    return quantize(x, low, high, num_bits=grid.bits, narrow_range=grid.narrow)


def _within(x: Any, clamp: str, grid: Grid) -> Any:
    """What is put on a grid: the ends of an affine one clamp as the activation does."""
    return clamped(x, clamp) if grid.symmetric else x


def on_symmetric_grid(x: Any, grid: Grid, low: Any, high: Any, *, relu: bool = False) -> Any:
    """``round(x / s) * s``, at most ``qmax`` steps to either side; ``s = max(-low, high) / qmax``.

    As :func:`rewriter.lowering.folding.activation_quantization`, in float32, in one pass.
    ``relu``: of ``max(x, 0)``, which is the half of the grid that has one bit less and no sign.
    """
    top = tf.constant(float(grid.qmax))
    reach = tf.maximum(-tf.minimum(low, 0.0), tf.maximum(high, 0.0))
    reach = tf.where(reach / top > float(np.finfo(np.float32).tiny), reach, top)
    found = tf.quantization.quantize_and_dequantize_v2(
        x,
        tf.zeros_like(reach) if relu else -reach,
        reach,
        signed_input=not relu,
        num_bits=grid.bits - int(relu),
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=not relu,
    )
    found.set_shape(x.shape)
    return found


def _through_clamp(y: Any, x: Any, clamp: str) -> Any:
    """``y`` as a function of ``x`` whose slope is 1 where y is inside of the clamp, and else 0."""
    y.set_shape(x.shape)
    return connect(y, lambda upstream: (upstream * _INSIDE[clamp](y),), x)
