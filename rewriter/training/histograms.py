"""Histograms of activations, in one pass and in constant memory, whatever the values are.

The width of the bins is a power of two that the largest magnitude decides: when a larger value
comes than fits, the bins become twice as wide, and each takes in two of before. So the histogram
depends on the values alone, not on their order or on how they lay in batches, and those of several
workers are merged by adding them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

BINS = 4096  # of each sign: at least 2048 of them up to the largest magnitude
_LOWEST = -126  # exponent of the narrowest bins
_BLOCK = 1 << 16  # values that are counted at a time outside of a graph


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often values were seen.

    Attributes:
      exponent: a bin is ``2**exponent`` wide.
      counts: int64 (2 * BINS,); bin i has the values v with ``floor(v / 2**exponent) == i - BINS``.
      zeros: how many were 0 exactly; they are in ``counts`` too.
    """

    exponent: int
    counts: np.ndarray
    zeros: int

    @property
    def centers(self) -> np.ndarray:
        """The middle of each bin, float64 (2 * BINS,)."""
        return (np.arange(-BINS, BINS) + 0.5) * 2.0**self.exponent

    @property
    def total(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    def coarsened(self, exponent: int) -> Histogram:
        """The same values in wider bins."""
        shift = min(exponent - self.exponent, 30)
        counts = np.zeros_like(self.counts)
        np.add.at(counts, (np.arange(-BINS, BINS) >> shift) + BINS, self.counts)
        return Histogram(exponent, counts, self.zeros)

    def merged(self, other: Histogram) -> Histogram:
        """The values of both: what one worker would have counted that had seen all of them."""
        exponent = max(self.exponent, other.exponent)
        counts = self.coarsened(exponent).counts + other.coarsened(exponent).counts
        return Histogram(exponent, counts, self.zeros + other.zeros)


def of_array(values: np.ndarray) -> Histogram:
    """What :class:`Recorder` counts of finite values, float32 of any shape, outside of a graph.

    Where nothing has to be traced, this is several times as fast: a block at a time stays in the
    processor's cache.
    """
    flat = values.reshape(-1)
    counts = np.zeros(2 * BINS, np.int64)
    if not flat.size:
        return Histogram(_LOWEST, counts, 0)
    exponent = max(_LOWEST, int(_exponent(max(float(flat.max()), -float(flat.min())))))
    factor = np.float32(2.0**-exponent)
    zeros = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        places = np.floor(block * factor).astype(np.int32) + BINS
        counts += np.bincount(np.clip(places, 0, 2 * BINS - 1), minlength=2 * BINS)
        zeros += block.size - int(np.count_nonzero(block))
    return Histogram(exponent, counts, zeros)


class Recorder:
    """Counts tensors inside a graph."""

    def __init__(self) -> None:
        self._exponent = tf.Variable(_LOWEST, trainable=False, dtype=tf.int32)
        self._counts = tf.Variable(tf.zeros(2 * BINS, tf.int64), trainable=False)
        self._zeros = tf.Variable(0, trainable=False, dtype=tf.int64)

    def record(self, values: Any) -> None:
        """Count the finite values of a float tensor of any shape."""
        values = tf.reshape(tf.cast(values, tf.float32), [-1])
        values = tf.where(tf.math.is_finite(values), values, 0.0)
        old = self._exponent.read_value()
        exponent = tf.maximum(old, _exponent(tf.reduce_max(tf.abs(values))))
        # A power of two: exact.
        scaled = values * tf.pow(tf.constant(2.0), tf.cast(-exponent, tf.float32))
        places = tf.cast(tf.floor(scaled), tf.int32) + BINS
        places = tf.clip_by_value(places, 0, 2 * BINS - 1)
        size = tf.constant(2 * BINS)
        none = tf.zeros([0], tf.int64)
        counts = tf.raw_ops.DenseBincount(
            input=places, size=size, weights=none, binary_output=False
        )
        shift = tf.minimum(exponent - old, 30)
        wider = tf.bitwise.right_shift(tf.range(-BINS, BINS), shift) + BINS
        before = tf.math.unsorted_segment_sum(self._counts.read_value(), wider, 2 * BINS)
        self._counts.assign(before + counts)
        self._exponent.assign(exponent)
        self._zeros.assign_add(tf.math.count_nonzero(tf.equal(values, 0.0)))

    def histogram(self) -> Histogram:
        """What has been counted."""
        return Histogram(
            int(self._exponent.numpy()), self._counts.numpy(), int(self._zeros.numpy())
        )


def _exponent(largest: Any) -> Any:
    """The exponent of the bins that hold a magnitude: int32 scalar."""
    top = tf.maximum(tf.cast(largest, tf.float64), 2.0**_LOWEST)
    power = tf.cast(tf.floor(tf.math.log(top) / np.log(2.0)), tf.int32)
    return power + 1 - int(np.log2(BINS))
