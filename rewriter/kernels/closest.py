"""The scale of a kernel with the smallest squared error."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.grid import NEGLIGIBLE, Grid

_CANDIDATES, _SMALLEST_SHARE = 64, 0.1  # scales that are tried


def closest_scale(kernel: Any, grid: Grid) -> Any:
    """The scale with the smallest squared error of the kernel, float32 (channels,) or ().

    Of ``_CANDIDATES`` scales up to that at which nothing is clipped. LSQ and LSQ+ learn from here:
    their own first values, made for long training from scratch, clip so much that a short
    fine-tuning does not come back from it.

    Args:
      kernel: float32, any rank.
      grid: its axes index the scales; the channels of several axes are counted in their order.
    """
    rank = len(kernel.shape)
    rest = [axis for axis in range(rank) if axis - rank not in grid.axes]
    largest = tf.reduce_max(tf.abs(kernel), rest, keepdims=True)
    whole = tf.where(largest > NEGLIGIBLE, largest / grid.qmax, tf.ones_like(largest))
    best, scale = tf.fill(tf.shape(whole), float("inf")), whole
    for share in np.linspace(1.0, _SMALLEST_SHARE, _CANDIDATES, dtype=np.float32):
        tried = whole * share
        rounded = tf.clip_by_value(tf.round(kernel / tried), grid.qmin, grid.qmax) * tried
        error = tf.reduce_sum((rounded - kernel) ** 2, rest, keepdims=True)
        scale = tf.where(error < best, tried, scale)
        best = tf.minimum(error, best)
    return tf.reshape(scale, [-1] if len(rest) < rank else [])
