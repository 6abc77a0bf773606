"""From what was seen of a tensor to its range: one function for each calibration method.

A range is a pair (smallest, largest) that contains 0. To add a method, add a row to ``METHODS``
here and its name to ``rewriter.quantization.quantizers.CALIBRATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewriter.training.histograms import BINS, Histogram

Range = tuple[float, float]

PERCENTILE = 99.99  # of the values on either side of a range
_CLIPPED = 0.01  # of the values, by entropy: what it leaves out of a normal distribution at 4 bits
_CANDIDATES = 192  # bounds that are tried on either side
_SMALLEST = 0.02  # of the largest magnitude on a side: the smallest bound that is tried


def minmax(seen: Range, histogram: Histogram, steps: int) -> Range:
    """All that was seen.

    Args:
      seen: the smallest and the largest value, 0 among them.
      histogram: of the values.
      steps: how many steps the range has.
    """
    return seen


def percentile(seen: Range, histogram: Histogram, steps: int) -> Range:
    """What ``PERCENTILE`` of all values do not exceed, on either side; arguments as ``minmax``."""
    below = np.cumsum(histogram.counts)
    outside = histogram.total * (1 - PERCENTILE / 100)
    edges = np.append(histogram.centers, histogram.centers[-1] + 2.0**histogram.exponent)
    edges = edges - 2.0 ** (histogram.exponent - 1)
    low = edges[np.searchsorted(below, outside, side="right")]
    high = edges[np.searchsorted(below, histogram.total - outside, side="left") + 1]
    return _within(low, high, seen)


def mean_squared_error(seen: Range, histogram: Histogram, steps: int) -> Range:
    """The range with the smallest expected squared error; arguments as ``minmax``.

    A value inside has the error of rounding, a twelfth of a step squared, but for zeros, which are
    exact; one outside has its distance to the bound. Both bounds are tried in ``_CANDIDATES``
    places, each with each.
    """
    lows, highs = _candidates(seen)
    centers, counts = histogram.centers, histogram.counts
    count_above, error_above = _clipping(centers, counts, highs)
    count_below, error_below = _clipping(-centers[::-1], counts[::-1], -lows)
    inside = histogram.total - histogram.zeros - count_below[:, None] - count_above[None, :]
    step = (highs[None, :] - lows[:, None]) / steps
    error = np.maximum(inside, 0) * step**2 / 12 + error_below[:, None] + error_above[None, :]
    row, column = np.unravel_index(np.argmin(error), error.shape)
    return float(lows[row]), float(highs[column])


def entropy(seen: Range, histogram: Histogram, steps: int) -> Range:
    """The range whose quantized distribution is nearest to the one seen (Kullback-Leibler).

    As in TensorRT (Migacz 2017, "8-bit inference with TensorRT"), for affine ranges: no
    magnitude beyond a bound, what lies outside counts at the bounds, and the ``steps + 1`` levels
    share their counts among the bins that are not empty. Exact zeros do not count: every range has
    them, and beside a peak of them no outlier would weigh anything. No more than ``_CLIPPED`` of
    the others lie outside: beside a peak elsewhere, as that of a constant background, a bound at
    the peak is the nearest, whatever is cut off. Arguments as ``minmax``.
    """
    counts = histogram.counts.copy()
    counts[BINS] -= histogram.zeros
    if not counts.any():
        return seen
    best, found = np.inf, seen
    largest = max(-seen[0], seen[1])
    for bound in largest * np.linspace(1.0, 0.05, _CANDIDATES):
        low, high = max(seen[0], -bound), min(seen[1], bound)
        outside = (histogram.centers < low) | (histogram.centers > high)
        if bound < largest and counts[outside].sum() > _CLIPPED * counts.sum():
            break  # smaller bounds cut off more
        divergence = _divergence(histogram.centers, counts, low, high, steps + 1)
        if divergence < best * (1 - 1e-6):
            best, found = divergence, (low, high)
    return found


def closest(ranges: Sequence[Range], histogram: Histogram, steps: int) -> Range:
    """The first of some ranges with the smallest squared error of the values that were seen.

    Args:
      ranges: to choose from; each of some width.
      histogram: of the values, which are taken to lie in the middle of their bins.
      steps: how many steps each range has.
    """
    centers, counts = histogram.centers, histogram.counts.astype(np.float64)
    counts[BINS] -= histogram.zeros  # exact in any range

    def error(ends: Range) -> float:
        step = (ends[1] - ends[0]) / steps
        nearest = ends[0] + step * np.round((np.clip(centers, *ends) - ends[0]) / step)
        return float(counts @ (centers - nearest) ** 2)

    return min(ranges, key=error)


METHODS: dict[str, Callable[[Range, Histogram, int], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mean_squared_error,
    "entropy": entropy,
}


def _within(low: float, high: float, seen: Range) -> Range:
    """A range between 0 and what was seen, on either side."""
    low, high = min(max(low, seen[0]), 0.0), max(min(high, seen[1]), 0.0)
    return (float(low), float(high)) if low < high else seen


def _candidates(seen: Range) -> tuple[np.ndarray, np.ndarray]:
    """Bounds to try: the lower and the upper ones."""
    factors = np.linspace(1.0, _SMALLEST, _CANDIDATES)
    lows = seen[0] * factors if seen[0] < 0 else np.zeros(1)
    highs = seen[1] * factors if seen[1] > 0 else np.zeros(1)
    return lows, highs


def _clipping(
    centers: np.ndarray, counts: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many values lie above each bound, and the sum of their squared distances to it.

    Args:
      centers: of the bins, ascending, (B,).
      counts: in the bins, (B,).
      bounds: (C,).
    """

    def above(values: np.ndarray) -> np.ndarray:
        return np.append(np.cumsum(values[::-1])[::-1], 0.0)

    first = np.searchsorted(centers, bounds, side="right")
    number = above(counts.astype(np.float64))[first]
    total = above(counts * centers)[first]
    squares = above(counts * centers**2)[first]
    return number, np.maximum(squares - 2 * bounds * total + bounds**2 * number, 0.0)


def _divergence(
    centers: np.ndarray, counts: np.ndarray, low: float, high: float, levels: int
) -> float:
    """Of the distribution that was seen, from its quantized one: in nats."""
    seen = np.flatnonzero(counts)
    centers, counts = centers[seen], counts[seen].astype(np.float64)
    step = (high - low) / (levels - 1)
    places = np.clip(np.round((centers - low) / step), 0, levels - 1).astype(np.int64)
    inside = (centers >= low - step / 2) & (centers <= high + step / 2)
    if not inside.any():
        return np.inf
    # What lies outside is where it will be clipped to, for the reference, and missing from the
    # quantized distribution, which has seen only the inside.
    first, last = np.flatnonzero(inside)[[0, -1]]
    reference = counts[first : last + 1].copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last + 1 :].sum()
    kept = places[first : last + 1]
    sums = np.bincount(kept, weights=counts[first : last + 1], minlength=levels)
    bins = np.bincount(kept, minlength=levels)
    quantized = (sums / np.maximum(bins, 1))[kept]
    p, q = reference / reference.sum(), quantized / quantized.sum()
    return float(np.sum(p * np.log(p / q)))
