"""Scales that training learns: LSQ, LSQ+ and power-of-two thresholds (TQT).

With ``v = x / s`` and the smallest and the largest integer ``n`` and ``p``, a value becomes
``s * clip(round(v), n, p)``, rounded half to even. What is learned, and from which gradients:

- LSQ (Esser et al. 2020, arXiv:1902.08153, equations 1 to 3): the scale s, by ``round(v) - v``
  inside of ``n < v < p``, n at and below, p at and above; multiplied by ``1 / sqrt(N * p)``
  (section 2.2), N the number of weights that share the scale, or of elements in one sample of the
  activation. x has the gradient 1 inside, 0 elsewhere.
- LSQ+ (Bhalgat et al. 2020, arXiv:2004.09576, equations 3 to 6): for activations also the offset b,
  the value of the smallest integer. With ``v = (x - b) / s`` in ``0 < v < p - n`` the scale's
  gradient is ``round(v) - v``, 0 below and p - n above, the offset's 0 inside and 1 elsewhere. Both
  are multiplied as in LSQ. LiteRT asks that 0 is an integer, so b acts as its nearest multiple of
  s, straight through. Kernels, symmetric in a file, have no offset.
- TQT (Jain et al. 2020, arXiv:1903.08066, equations 4 to 8): ``log2 t`` of a threshold t, with
  ``s = 2 ** ceil(log2 t) / (p + 1)``, by ``s * ln 2`` times ``round(v) - v`` where round(v) is in
  [n, p], n below, p above. Straight through the ceiling; x has the gradient 1 where round(v) is in
  [n, p], else 0.

Of a kernel what is learned is ``s * sqrt(m)``, m the number of steps, which is of the size of its
weights (LSQ starts s at ``2 mean|w| / sqrt(p)``). Adam moves a number by about its learning rate,
however small: a scale by itself it would drive to 0, a scale of 8 bits in some hundred steps. The
gradient is multiplied by ``sqrt(m)``, so that SGD moves s as the papers say.

Public TensorFlow, for both sets of kernels. Gradients are by hand and look at the phase.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rewriter import kernels
from rewriter.grid import BITS, NARROWEST, NEGLIGIBLE, Grid
from rewriter.kernels.codes import QUANTIZE

# Where an optimizer would make a scale negative or nothing, this acts, straight through.
SMALLEST = float(NARROWEST) / (2**BITS - 1)


@dataclasses.dataclass(frozen=True)
class Method:
    """How scales are learned.

    Attributes:
      kernel_start: from the mean of ``|w|``, the mean of w, its standard deviation (each of the
        weights that share a scale) and the bits of the grid to the first value.
      offset: whether activations have a learned offset.
      power_of_two: whether what is learned is the logarithm of a threshold, not the scale.
      rooted: whether what is learned is the scale times the root of the number of steps.
    """

    kernel_start: Callable[[Any, Any, Any, int], Any]
    offset: bool = False
    power_of_two: bool = False
    rooted: bool = False

    def unit(self, grid: Grid) -> float:
        """What is learned, by the scale."""
        return math.sqrt(grid.steps) if self.rooted else 1.0


METHODS: dict[str, Method] = {
    # arXiv:1902.08153, section 2.1
    "lsq": Method(lambda size, mean, std, bits: 2 * size / math.sqrt(2 ** (bits - 1) - 1)),
    # arXiv:2004.09576, section 3.2
    "lsq+": Method(
        lambda size, mean, std, bits: (tf.abs(mean) + 3 * std) / 2 ** (bits - 1), offset=True
    ),
    # arXiv:1903.08066, table 2: three standard deviations, here about 0
    "tqt": Method(
        lambda size, mean, std, bits: _log2(3 * tf.sqrt(mean**2 + std**2)), power_of_two=True
    ),
}


def kernel_start(kernel: Any, method: Method, grid: Grid) -> Any:
    """The first value of what is learned for a kernel, float32 (channels,) or ().

    Args:
      kernel: float32, any rank.
      method: one of ``METHODS``.
      grid: its axes index the scales; the channels of several axes are counted in their order.
    """
    kept, rest = _axes(kernel, grid)
    size = tf.reduce_mean(tf.abs(kernel), rest)
    mean = tf.reduce_mean(kernel, rest)
    # Of one pass more, so that it is not negative: tf.math.reduce_std divides by the same count.
    std = tf.math.reduce_std(kernel, rest)
    start = method.kernel_start(size, mean, std, grid.bits) * method.unit(grid)
    nothing = tf.zeros_like(size) + (0.0 if method.power_of_two else method.unit(grid))
    return tf.reshape(tf.where(size > NEGLIGIBLE, start, nothing), [-1] if kept else [])


def activation_start(
    low: Any, high: Any, method: Method, grid: Grid, *, exact: bool
) -> tuple[Any, Any, Any]:
    """The first values of what is learned for an activation, so that the grid covers a range.

    Args:
      low, high: the range, float32 scalars; widened to hold 0.
      method: one of ``METHODS``.
      grid: of the activation.
      exact: the scale and the zero point are to be those of the range. Otherwise the zero point of
        a grid without an offset is the smallest integer where nothing is negative, and else 0.

    Returns:
      The scale, or the logarithm of the threshold; the offset; the zero point.
    """
    low, high = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
    if exact or method.offset:
        scale = _or_one((high - low) / grid.steps)
        return scale, low, _zero_point(low, scale, grid)
    zero = tf.where(low < 0, float((grid.qmin + grid.qmax + 1) // 2), float(grid.qmin))
    if method.power_of_two:
        reach = tf.maximum(-low, high)
        return tf.where(reach > 0, _log2(reach), 0.0), low, zero
    below = tf.math.divide_no_nan(-low, zero - grid.qmin)
    return _or_one(tf.maximum(below, high / (grid.qmax - zero))), low, zero


def placed(learned: Any, offset: Any, zero: Any, method: Method, grid: Grid) -> tuple[Any, Any]:
    """The scale and the zero point, float32 in the shape of ``learned``.

    Args:
      learned: the scale, or in other units as the method says, or the logarithm of the threshold.
      offset: of activations; it decides where the method has one.
      zero: the zero point where it does not.
    """
    if method.power_of_two:
        reach = tf.cast(tf.round(_log2(grid.qmax + 1 - zero)), tf.int32)
        return _power_of_two(tf.cast(tf.math.ceil(learned), tf.int32) - reach), zero
    scale = tf.maximum(learned / method.unit(grid), SMALLEST)
    return scale, _zero_point(offset, scale, grid) if method.offset else zero


def activation(
    x: Any, learned: Any, offset: Any, zero: Any, phase: Any, *, method: Method, grid: Grid
) -> Any:
    """An activation on its learned grid from phase ``quantize`` on, as it is before.

    Args:
      x: float32, any shape.
      learned, offset, zero: see :func:`placed`; gradients go to the first two, in phase
        ``quantize`` only: not where ranges are frozen.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.

    Returns:
      The shape of ``x``.
    """
    scale, zero = placed(learned, offset, zero, method, grid)
    n, p = grid.qmin - zero, grid.qmax - zero
    low, high = n * scale, p * scale
    y = kernels.snapped(x, low, high, phase, grid)
    y.set_shape(x.shape)

    def gradient(upstream: Any) -> list[Any]:
        dx, inside, below, above = kernels.snapped_slopes(
            upstream, x, y, low, high, phase, grid=grid, wide=method.power_of_two
        )
        bottom, top = (tf.zeros_like(n), p - n) if method.offset else (n, p)
        slope = tf.math.divide_no_nan(inside, scale) + bottom * below + top * above
        if method.power_of_two:
            return [dx, slope * scale * math.log(2), tf.zeros_like(offset)]
        share = tf.cast(tf.size(x), tf.float32) / tf.cast(tf.maximum(tf.shape(x)[0], 1), tf.float32)
        share = tf.maximum(share, 1.0) if x.shape.rank else 1.0
        factor = tf.math.rsqrt(share * top)
        return [dx, slope * factor, (below + above) * factor * float(method.offset)]

    return kernels.connect(y, gradient, x, learned, offset)


def kernel(
    w: Any, learned: Any, phase: Any, *, method: Method, grid: Grid, factor: Any = None
) -> Any:
    """A kernel on its learned grid from phase ``quantize`` on, as it is before.

    Args:
      w: float32, any rank.
      learned: float32 (channels,), or () where the grid has no axes; see :func:`placed`. Gradients
        go there in phase ``quantize`` only.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      factor: of the normalization after it, float32 with the rank of ``w`` and 1 for all axes but
        the channels; if given, ``w * factor`` is quantized, and divided by it again. Its gradient
        is that of the quotient; where it is 0, w itself is returned.

    Returns:
      The shape of ``w``.
    """
    kept, rest = _axes(w, grid)
    shape = [size if axis in kept else 1 for axis, size in enumerate(w.shape)]
    scale, _ = placed(learned, tf.zeros_like(learned), tf.zeros_like(learned), method, grid)
    spread = tf.reshape(scale, shape)
    n, p = tf.constant(float(grid.qmin)), tf.constant(float(grid.qmax))
    count = math.prod(w.shape[axis] for axis in rest)
    if method.power_of_two:
        share = spread * math.log(2)
    else:
        share = method.unit(grid) / math.sqrt(count * grid.qmax)
    folded = w if factor is None else w * factor

    value = tf.clip_by_value(tf.round(folded / spread), n, p) * spread
    if factor is not None:
        value = tf.where(factor == 0, w, tf.math.divide_no_nan(value, factor))
    value = _either(_quantizes, phase, value, tf.identity(w))
    value.set_shape(w.shape)

    def slopes(upstream: Any) -> tuple[Any, ...]:
        inside, slope = _slopes(folded / spread, n, p, method)
        to_scale = upstream if factor is None else tf.math.divide_no_nan(upstream, factor)
        learns = tf.reshape(tf.reduce_sum(to_scale * slope * share, rest, keepdims=True), [-1])
        found = upstream * inside, tf.reshape(learns, tf.shape(learned))
        if factor is None:
            return found
        to_factor = tf.math.divide_no_nan(upstream * (inside * w - value), factor)
        ones = [axis for axis, size in enumerate(factor.shape) if size == 1]
        to_kernel = tf.where(factor == 0, upstream, found[0])
        return to_kernel, found[1], tf.reduce_sum(to_factor, ones, keepdims=True)

    given = [learned] if factor is None else [learned, factor]
    return kernels.connect(value, _by_phase(phase, slopes, *given, held=1), w, *given)


def _by_phase(
    phase: Any, slopes: Callable[[Any], tuple[Any, ...]], *others: Any, held: int | None = None
) -> Callable[[Any], list[Any]]:
    """The gradients for x and ``others`` as the phase has them.

    ``held``: how many of the others have none where ranges are frozen; None: all of them.
    """
    held = len(others) if held is None else held

    def gradient(upstream: Any) -> list[Any]:
        first, *found = slopes(upstream)
        result = [_either(_quantizes, phase, first, upstream)]
        for index, (slope, other) in enumerate(zip(found, others, strict=True)):
            passes = _learns if index < held else _quantizes
            result.append(_either(passes, phase, slope, tf.zeros_like(other)))
        return result

    return gradient


def _quantizes(phase: Any) -> Any:
    return phase >= QUANTIZE


def _learns(phase: Any) -> Any:
    return phase == QUANTIZE


def _either(condition: Callable[[Any], Any], phase: Any, yes: Any, no: Any) -> Any:
    """One of two tensors of a shape, as the phase says.

    Both are computed: to trace branches for every layer took longer than all else, and elementwise
    operators save little by them.
    """
    known = tf.get_static_value(phase)
    if known is not None:
        return yes if condition(known) else no
    return tf.where(condition(phase), yes, no)


def _slopes(v: Any, n: Any, p: Any, method: Method) -> tuple[Any, Any]:
    """Where a kernel's value is not clipped (1 or 0), and the slope by the scale; v in steps."""
    rounded = tf.round(v)
    inside = (rounded >= n) & (rounded <= p) if method.power_of_two else (v > n) & (v < p)
    slope = tf.where(inside, rounded - v, tf.where(v <= n, n, p))
    return tf.cast(inside, tf.float32), slope


def _axes(kernel: Any, grid: Grid) -> tuple[list[int], list[int]]:
    rank = len(kernel.shape)
    kept = sorted(axis % rank for axis in grid.axes)
    return kept, [axis for axis in range(rank) if axis not in kept]


def _zero_point(offset: Any, scale: Any, grid: Grid) -> Any:
    steps = tf.math.floor(-offset / scale + 0.5)
    return tf.clip_by_value(steps, 0.0, float(grid.steps)) + float(grid.qmin)


def _or_one(scale: Any) -> Any:
    """The scale, or 1 for a tensor that is always 0: any grid holds it."""
    return tf.where(scale > 0, tf.maximum(scale, SMALLEST), 1.0)


def _log2(x: Any) -> Any:
    return tf.math.log(x) / math.log(2)


def _power_of_two(exponent: Any) -> Any:
    """``2 ** exponent``, float32 and exact: ``tf.pow`` may be off by its last bit."""
    biased = tf.clip_by_value(exponent, -126, 127) + 127
    return tf.bitcast(tf.bitwise.left_shift(biased, tf.constant(23, tf.int32)), tf.float32)
