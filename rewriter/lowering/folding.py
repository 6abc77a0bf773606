"""The algebra of folding and of integer grids: pure NumPy, float64 inside.

With ``s = gamma / sqrt(variance + epsilon)`` a batch normalization after a linear layer becomes
the kernel ``W * s`` and the bias ``(b - mean) * s + beta``. On a symmetric per-channel grid
``Q(W * s) = s * Q(W)``: only the scale changes, by ``|s|``, and the integers take the sign of s.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from rewriter.grid import ACTIVATION, NARROWEST, NEGLIGIBLE, Grid
from rewriter.program import Quantization

_BIAS_MAX = 2.0**30  # leaves the int32 accumulator a bit of room
# On processors with AVX-512 VNNI, XNNPACK computes with 16 times the kernel, and so the bias, where
# it is stored in 4 bits.
_NARROW_BIAS_MAX = 2.0**26
_WIDE_BIAS_MAX = 2.0**45  # of int64, where LiteRT multiplies sums of up to 48 bits
# XNNPACK requantizes by scales of at least 2**-32.
_REQUANTIZE_MIN = 2.0**-31
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def activation_quantization(low: float, high: float, grid: Grid = ACTIVATION) -> Quantization:
    """The affine grid on ``[low, high]``, nudged so that 0 is exact.

    As ``tf.quantization.fake_quant_with_min_max_vars`` does, in float32: the zero point is the
    rounded place of 0 (arXiv:1712.05877, section 3).

    Args:
      low, high: the range; widened to hold 0, and to a width of 2e-6 if it is not all 0. That of a
        symmetric, narrow grid reaches as far on either side.
      grid: of the integers.
    """
    low32 = np.float32(min(low, 0.0))
    high32 = np.float32(max(high, 0.0))
    if grid.symmetric and grid.narrow:
        scale = max(-low32, high32) / np.float32(grid.qmax)
        return Quantization(float(scale if scale > _SMALLEST_SCALE else 1.0), 0, grid.bits)
    levels = np.float32(grid.steps)
    if 0 < high32 - low32 < NARROWEST:
        high32 = low32 + NARROWEST
    scale = np.float32((high32 - low32) / levels)
    if not scale > _SMALLEST_SCALE:  # a tensor that is always 0: any grid holds it
        scale = np.float32(1.0)
    zero_point = int(np.clip(np.floor(-low32 / scale + np.float32(0.5)), 0, levels)) + grid.qmin
    return Quantization(float(scale), zero_point, grid.bits)


def batch_norm_scale(gamma: Any, variance: Any, epsilon: float) -> np.ndarray:
    """``gamma / sqrt(variance + epsilon)``, float64, shape (C,); gamma None is 1."""
    variance = np.asarray(variance, np.float64)
    gamma = np.ones_like(variance) if gamma is None else np.asarray(gamma, np.float64)
    return gamma / np.sqrt(variance + epsilon)


def batch_norm_bias(scale: np.ndarray, mean: Any, beta: Any, bias: Any) -> np.ndarray:
    """``(bias - mean) * scale + beta``, float64, shape (C,); None is 0."""
    mean = np.asarray(mean, np.float64)
    bias = np.zeros_like(mean) if bias is None else np.asarray(bias, np.float64)
    beta = np.zeros_like(mean) if beta is None else np.asarray(beta, np.float64)
    return (bias - mean) * scale + beta


def kernel_integers(
    kernel: np.ndarray, grid: Grid, scale: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Integers and scales of a kernel on a symmetric, narrow-range grid of up to 8 bits.

    Args:
      kernel: float32.
      grid: its axes index the output channels.
      scale: the scales if they are given; otherwise ``max|w| / qmax`` (1 for a zero channel), with
        integers of a product by its inverse, as in training.

    Returns:
      int8 integers of the kernel's shape, and float32 scales of shape (channels,).
    """
    kernel = np.asarray(kernel, np.float32)
    moved, shape = _channels_last(kernel, grid.axes)
    if scale is None:
        top, largest = np.float32(grid.qmax), np.abs(moved).max(axis=0)
        largest = np.where(largest > NEGLIGIBLE, largest, top)
        scale = largest / top
        steps = moved * (top / largest)
    else:
        steps = moved / scale
    np.rint(steps, out=steps)
    np.minimum(np.maximum(steps, grid.qmin, out=steps), grid.qmax, out=steps)
    return _restore(steps.astype(np.int8), shape, kernel.ndim, grid.axes), scale


def fold_scale(
    integers: np.ndarray, scale: np.ndarray, factor: np.ndarray, channel_axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The grid of ``kernel * factor`` (one factor a channel): ``Q(W * s) = s * Q(W)``."""
    negative = factor < 0
    folded = integers
    if negative.any():
        moved, shape = _channels_last(integers, channel_axes)
        sign = np.where(negative, np.int8(-1), np.int8(1))
        folded = _restore(moved * sign, shape, integers.ndim, channel_axes)
    return folded, (scale.astype(np.float64) * np.abs(factor)).astype(np.float32)


def bound_scale(
    integers: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    channel_axes: tuple[int, ...],
    input_scale: float,
    output_scale: float,
    *,
    power_of_two: bool = False,
    wide: bool = False,
    narrow: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Raise scales so small that the bias or the requantization would overflow.

    Where gamma is 0 or a channel is dead, ``|bias| / (s_x * s_w)`` leaves int32. A channel whose
    scale is raised contributes less than a hundredth of an output step either way. With
    ``power_of_two`` it is raised to the next one. ``wide``: the bias has 64 bits. ``narrow``: the
    kernel is stored in fewer than 8.
    """
    most = _WIDE_BIAS_MAX if wide else _NARROW_BIAS_MAX if narrow else _BIAS_MAX
    smallest = np.maximum(np.abs(bias) / most, output_scale * _REQUANTIZE_MIN) / input_scale
    smallest = np.maximum(smallest, _SMALLEST_SCALE)
    if power_of_two:
        smallest = 2.0 ** np.ceil(np.log2(smallest))
    moved, shape = _channels_last(integers, channel_axes)
    # A kernel of zeros has no scale of its own: the finest keeps its bias exact.
    low = (scale < smallest) | ~moved.any(axis=0)
    if not low.any():
        return integers, scale
    raised = np.where(low, smallest, scale).astype(np.float32)
    rounded = np.rint(moved * (scale.astype(np.float64) / raised)).astype(np.int8)
    moved = np.where(low, rounded, moved)
    return _restore(moved, shape, integers.ndim, channel_axes), raised


def bias_grid(
    bias: np.ndarray, scale: np.ndarray, input_scale: float, *, wide: bool = False
) -> np.ndarray:
    """The bias: ``round(bias / (s_x * s_w))``, with the file's float32 product.

    int32; int64 with activations of 16 bits (``wide``).
    """
    step = (np.float32(input_scale) * scale.astype(np.float32)).astype(np.float64)
    limit = 2 * _WIDE_BIAS_MAX if wide else 2.0**31 - 1
    integers = np.clip(np.rint(bias / step), -limit, limit)
    return integers.astype(np.int64 if wide else np.int32)


def _channels_last(
    kernel: np.ndarray, channel_axes: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """``kernel`` as (rest, channels), and the shape it had with the channel axes last."""
    order = _order(kernel.ndim, channel_axes)
    moved = kernel if order is None else kernel.transpose(order)
    channels = math.prod(moved.shape[kernel.ndim - len(channel_axes) :])
    return moved.reshape(-1, channels), moved.shape


def _restore(
    moved: np.ndarray, shape: tuple[int, ...], rank: int, channel_axes: tuple[int, ...]
) -> np.ndarray:
    order = _order(rank, channel_axes)
    if order is None:
        return moved.reshape(shape)
    return np.ascontiguousarray(moved.reshape(shape).transpose(np.argsort(order)))


@functools.cache
def _order(rank: int, channel_axes: tuple[int, ...]) -> list[int] | None:
    """The axes of a kernel with those of the channels last; None where they are."""
    axes = [axis % rank for axis in channel_axes]
    order = [axis for axis in range(rank) if axis not in axes] + axes
    return None if order == list(range(rank)) else order
