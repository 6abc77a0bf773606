"""Which ranges a recipe may ask for: observed, or learned, and by which method."""

from __future__ import annotations

from typing import Any

from rewriter import grid as grids
from rewriter.errors import RecipeError
from rewriter.kernels.learned import METHODS
from rewriter.quantization.learned import LearnedKernelQuantizer, LearnedRangeQuantizer
from rewriter.quantization.powers_of_two import PowerOfTwoRangeQuantizer
from rewriter.quantization.quantizers import (
    PerChannelQuantizer,
    PerTensorQuantizer,
    RangeQuantizer,
)

OBSERVED = "observed"  # ranges follow the batches, or stay as calibrated
RANGES = (OBSERVED, *METHODS)
# The calibration that a method starts from where nobody says otherwise: LSQ+ (section 3.2) takes
# the smallest squared error; what the others say needs more than a histogram, or is close to it.
# For observed ranges it is what was best on real models (benchmarks/ACCURACY.md).
CALIBRATION = {OBSERVED: "percentile", "lsq": "mse", "lsq+": "mse", "tqt": "mse"}


def ranges(name: Any, field: str) -> str:
    """``name`` itself if it is one of ``RANGES``.

    Raises:
      RecipeError: otherwise, naming ``field``.
    """
    if name not in RANGES:
        raise RecipeError(f"{field} must be one of {list(RANGES)}. Received: {name!r}.")
    return name


def kernel(quantizer: Any, method: str) -> LearnedKernelQuantizer:
    """The quantizer of kernels that learns its scales in the place of one that does not.

    Raises:
      RecipeError: the quantizer is not ours, or the method has no such width.
    """
    if isinstance(quantizer, LearnedKernelQuantizer):
        return LearnedKernelQuantizer(method, quantizer.num_bits, quantizer.channel_axes)
    if not isinstance(quantizer, (PerChannelQuantizer, PerTensorQuantizer)):
        raise _foreign(quantizer, method, "kernel_quantizer")
    return LearnedKernelQuantizer(method, quantizer.num_bits, quantizer.channel_axes)


def activation(
    quantizer: Any, method: str, calibration: str | None, given: bool = False
) -> RangeQuantizer:
    """As :func:`kernel`, of activations.

    Of 8 bits, an activation's range is learned only where ``quantizer`` learns one: what
    calibration finds is then as good as what training makes of it, and better with few samples
    (docs/accuracy-log.md). With ``"tqt"`` its step is a power of two nonetheless.

    Args:
      quantizer: says the width.
      method: one of those that learn.
      calibration: the method of calibration to start from; None: the one that suits it.
      given: of an input of the model, whose range of 8 bits is not learned in any case: the
        gradient for it costs up to a third of a step, and data do not change.

    Returns:
      The quantizer; one whose range is not learned is as of ``OBSERVED``, or of powers of two.

    Raises:
      RecipeError: the quantizer is not ours.
    """
    if not isinstance(quantizer, RangeQuantizer):
        raise _foreign(quantizer, method, "activation_quantizer")
    bits = quantizer.num_bits
    asked = isinstance(quantizer, LearnedRangeQuantizer)
    if bits == grids.BITS and (given or not asked):
        if METHODS[method].power_of_two and not isinstance(quantizer, PowerOfTwoRangeQuantizer):
            return PowerOfTwoRangeQuantizer(bits, calibration or CALIBRATION[method])
        if not asked:
            return quantizer
        found = calibration or CALIBRATION[OBSERVED]
        return RangeQuantizer(bits, quantizer.momentum, found, held=False)
    return LearnedRangeQuantizer(method, bits, calibration or CALIBRATION[method])


def _foreign(quantizer: Any, method: str, field: str) -> RecipeError:
    return RecipeError(
        f"ranges {method!r} and {field} {type(quantizer).__qualname__} exclude each other: that "
        "quantizer has ranges of its own. Leave one of the two out, or give a quantizer of ours, "
        "which says the width."
    )
