"""The range that makes the converter recover a given scale and zero point."""

from __future__ import annotations

import itertools

import numpy as np

from rewriter.errors import RewriterError
from rewriter.program import Quantization


def fake_quant_range(quantization: Quantization) -> tuple[float, float]:
    """The ``min`` and ``max`` of a fake-quant operator that stands for ``quantization``.

    The converter computes, in float64 from the float32 attributes,
    ``scale = (max - min) / (2**bits - 1)`` and ``zero_point = round(qmin - min / scale)``, and
    stores the scale as float32. The two ends of ``Quantization.range`` rounded to float32 may
    give a neighbouring scale, so they are moved by the few units in the last place it takes.

    Raises:
      RewriterError: the scale is not a positive float32, or no range stands for it.
    """
    scale = np.float32(quantization.scale)
    steps = 2**quantization.bits - 1
    first = -(2 ** (quantization.bits - 1)) - quantization.zero_point
    if not (np.isfinite(scale) and scale > 0 and -steps <= first <= 0):
        raise RewriterError(
            "A quantization needs a positive scale and a zero point that is a stored integer. "
            f"Received: {quantization}."
        )
    low = np.float32(np.float64(scale) * first)
    # A unit for a bound that is zero: far below half a step, far above the denormal numbers.
    unit = np.spacing(np.float32(steps) * scale)
    for moved in _near_zero(8):
        bottom = np.float32(low - np.float32(moved) * max(np.spacing(abs(low)), unit / 16))
        if bottom > 0:
            continue
        top = np.float32(np.float64(bottom) + np.float64(scale) * steps)
        for nudge in (0, 1, -1):
            upper = np.float32(top + nudge * np.spacing(top)) if top else top
            if upper >= 0 and _recovered(bottom, upper, quantization) == (scale, first):
                return float(bottom), float(upper)
    raise RewriterError(f"No float32 range stands for {quantization}: change the scale a little.")


def _near_zero(count: int) -> list[int]:
    return list(itertools.chain([0], *([step, -step] for step in range(1, count))))


def _recovered(low: np.float32, high: np.float32, quantization: Quantization) -> tuple:
    """The float32 scale, and the integer of the lowest value less the zero point."""
    scale = (np.float64(high) - np.float64(low)) / (2**quantization.bits - 1)
    return np.float32(scale), int(np.rint(np.float64(low) / scale))
