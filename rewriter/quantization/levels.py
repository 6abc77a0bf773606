"""Inputs that lie on a grid of their own, as images do, and integer ranges that suit them.

An image scaled to [-1, 1] has 256 levels, and 8 bits have 256 integers; but 0 must be one of the
integers exactly, and lies half-way between two levels. On a range of [-1, 1] each level is then
half-way between two integers: how it is rounded depends on the last bit of a product, and differs
from one way to quantize an input to the next. A scale that is a little larger ends that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

MOST = 256  # levels: of one byte
_NEAR = 1e-3  # of a step between levels: they are equidistant if none is further off
# Of a step between integers: so far from a tie, a scale is good enough. Products in float32 are off
# by 2e-5 of a step, and a larger scale would make more levels share an integer.
_CLEAR = 0.0019
_WIDEST = 1.02  # of the levels' step: the largest step of integers that is tried
_TRIED = 2001


@dataclasses.dataclass(frozen=True)
class Levels:
    """Equidistant values.

    Attributes:
      first: the smallest.
      step: the distance between two.
      count: how many there are, up to the largest one seen; at most 256.
    """

    first: float
    step: float
    count: int

    @property
    def values(self) -> np.ndarray:
        """All of them, float64 (count,)."""
        return self.first + self.step * np.arange(self.count)


class LevelFinder:
    """Finds out whether the values of a tensor are equidistant levels, batch by batch."""

    def __init__(self) -> None:
        self._seen: np.ndarray | None = np.zeros(0, np.float32)

    def look(self, values: Any) -> None:
        """See a batch: a float tensor of any shape."""
        if self._seen is None:
            return
        flat = tf.reshape(tf.cast(values, tf.float32), [-1])
        for part in (flat[:4096], flat):  # most tensors show it in a few values
            found = np.union1d(self._seen, tf.unique(part).y.numpy())
            if len(found) > MOST:
                self._seen = None
                return
        self._seen = found

    def levels(self) -> Levels | None:
        """The levels; None where there are too many values, too few, or other distances."""
        seen = self._seen
        if seen is None or len(seen) < 3:
            return None
        values = seen.astype(np.float64)
        step = float(np.min(np.diff(values)))
        places = (values - values[0]) / step
        count = round(places[-1]) + 1
        if count > MOST:
            return None
        step = (values[-1] - values[0]) / (count - 1)
        places = (values - values[0]) / step
        if np.max(np.abs(places - np.round(places))) > _NEAR:
            return None
        first = float(values[0])
        below = round(first / step)
        if 0 < below <= MOST - count and abs(first / step - below) < _NEAR:
            first, count = 0.0, count + below  # the data had no sample of the darkest ones
        return Levels(first, step, count)


@dataclasses.dataclass(frozen=True)
class Placed:
    """The integers for some levels: value = scale * (integer - zero_point).

    Attributes:
      scale, zero_point: of the integers from ``qmin`` to ``qmax``.
      clearance: how far the level that is nearest to a tie is from it, in steps; 0 to 0.5.
    """

    scale: float
    zero_point: int
    clearance: float


def placed(levels: Levels, qmin: int, qmax: int) -> Placed | None:
    """The smallest scale, from the levels' own on, at which all of them fit and none is on a tie.

    Args:
      levels: of the input.
      qmin, qmax: the smallest and the largest integer.

    Returns:
      None where the levels need more integers than there are; the range is then left as it was
      observed.
    """
    best = None
    for scale in levels.step * np.linspace(1.0, _WIDEST, _TRIED):
        positions = levels.values / scale
        low, high = np.round(positions[0]), np.round(positions[-1])
        low, high = min(low, 0.0), max(high, 0.0)  # 0 is one of the integers
        if high - low > qmax - qmin:
            continue
        clearance = float(np.min(np.abs(np.abs(positions - np.floor(positions)) - 0.5)))
        if best is None or clearance > best.clearance:
            # Where integers are left over, as many on either side; none below where all is above.
            spare = 0 if low == 0.0 else int(qmax - qmin - (high - low)) // 2
            best = Placed(float(scale), int(qmin - low + spare), clearance)
        if best.clearance >= _CLEAR:
            break
    return best


def in_c(levels: Levels, scale: float, zero_point: int, qmin: int, qmax: int) -> str:
    """A line of C that makes the integer ``q`` of level number ``pixel``.

    Args:
      levels: of the input; the first has number 0.
      scale, zero_point, qmin, qmax: of the integers.
    """
    numbers = np.arange(levels.count)
    integers = np.clip(np.round(levels.values / scale) + zero_point, qmin, qmax).astype(int)
    offsets = integers - numbers
    changes = np.flatnonzero(np.diff(offsets)) + 1
    if len(changes) > 8:
        return f"static const int8_t q[{levels.count}] = {{{', '.join(map(str, integers))}}};"
    terms = [f"q = pixel {'-' if offsets[0] < 0 else '+'} {abs(int(offsets[0]))}"]
    for place in changes:
        change = int(offsets[place] - offsets[place - 1])
        factor = "" if abs(change) == 1 else f"{abs(change)} * "
        terms.append(f"{'-' if change < 0 else '+'} {factor}(pixel >= {place})")
    return " ".join(terms) + ";"
