"""Ranges of activations whose step is a power of two, and which training leaves as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewriter.grid import BITS, NARROWEST, Grid
from rewriter.quantization.quantizers import RangeQuantizer

_FINER = 8  # powers of two that are tried below the one that holds all that was seen


class PowerOfTwoRangeQuantizer(RangeQuantizer):
    """Per-tensor quantizer of activations: an observed range, widened to steps of a power of two.

    As :class:`RangeQuantizer`, but the range is one of those that :func:`widened` returns once the
    layer is calibrated or goes into phase ``quantize``, and stays there in training. The zero point
    is the smallest integer where nothing is negative, and else 0. It is what a learned threshold
    (:class:`rewriter.quantization.learned.LearnedRangeQuantizer`, ``"tqt"``) starts from.

    Args:
      num_bits: width of the integers, 2 to 8; a ``RecipeError`` for any other.
      calibration: as of :class:`RangeQuantizer`; ``"mse"`` takes the power of two with the smallest
        squared error, the others the one that holds their range.
    """

    _widest = BITS

    def __init__(self, num_bits: int = BITS, calibration: str = "mse"):
        super().__init__(num_bits, calibration=calibration)

    @property
    def takes_levels(self) -> bool:
        return False

    @property
    def holds_range(self) -> bool:
        return True

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits, "calibration": self.calibration}


def widened(low: float, high: float, grid: Grid) -> tuple[float, float]:
    """The smallest range with a power of two as its step that holds ``low``, ``high`` and 0.

    Args:
      low, high: of a range; both 0: it is returned as it is, and any step will do.
      grid: affine, of the activation.

    Returns:
      The values of the smallest and the largest integer, exact in float32. The step is no smaller
      than what TensorFlow's operator takes as it is.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    reach = max(-low, high)
    if not 0 < reach < math.inf:
        return low, high
    zero = grid.qmin if low == 0 else 0
    narrowest = float(NARROWEST) / grid.steps
    step = max(_power_above(reach) / (grid.qmax + 1 - zero), _power_above(narrowest))
    return (grid.qmin - zero) * step, (grid.qmax - zero) * step


def candidates(low: float, high: float, grid: Grid) -> Sequence[tuple[float, float]]:
    """The range of :func:`widened`, and those with smaller steps, the widest first."""
    scales = (2.0**-power for power in range(_FINER))
    return [*dict.fromkeys(widened(low * scale, high * scale, grid) for scale in scales)]


def _power_above(x: float) -> float:
    """The smallest power of two that is not below ``x``, which is positive."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(1.0, exponent - (mantissa == 0.5))
