"""Activations of 8 or of 16 bits: what a recipe may say beside that, and what it means."""

from __future__ import annotations

from typing import Any

from rewriter import grid as grids
from rewriter.errors import RecipeError
from rewriter.quantization import quantizers, range_kinds


def check(recipe: Any) -> None:
    """Raise RecipeError for an ``activation_bits`` that is none, or excludes another field."""
    bits = recipe.activation_bits
    if bits not in grids.ACTIVATION_WIDTHS or isinstance(bits, bool):
        widths = " or ".join(map(str, grids.ACTIVATION_WIDTHS))
        raise RecipeError(f"activation_bits must be {widths}. Received: {bits!r}.")
    if bits == grids.BITS:
        return
    if recipe.activation_quantizer is not None:
        raise RecipeError(
            f"activation_bits {bits} and an activation_quantizer exclude each other: that "
            "quantizer says its width itself. Leave one of the two out."
        )
    ranges = {recipe.ranges, *(rule.ranges for rule in recipe.layers)}
    if ranges - {None, range_kinds.OBSERVED}:
        raise RecipeError(
            f"activation_bits {bits} and learned ranges exclude each other: a step is a 65,534th "
            "of the range, so there is nothing to gain. Use ranges 'observed'."
        )
    own = recipe.kernel_quantizer
    given = grids.BITS if own is None else grids.of(own).bits
    narrowest = min([given, *(rule.kernel_bits or grids.BITS for rule in recipe.layers)])
    if narrowest <= min(grids.KERNEL_WIDTHS):
        raise RecipeError(
            f"activation_bits {bits} and kernels of {narrowest} bits exclude each other: LiteRT "
            "computes DEPTHWISE_CONV_2D of such wrongly, without a word. Use kernels of 5 to 8 "
            "bits, or activations of 8."
        )


def carried(recipe: Any) -> int:
    """The width of all activations of a recipe, those too whose range LiteRT prescribes."""
    if recipe.activation_quantizer is None:
        return int(recipe.activation_bits)
    wide = grids.of(recipe.activation_quantizer) == grids.activation(grids.WIDE)
    return grids.WIDE if wide else grids.BITS


def calibration(bits: int) -> str:
    """The method of calibration where a recipe names none, for observed ranges of this width.

    Of 16 bits, what is cut off costs more than the width of a step.
    """
    wide = bits > grids.BITS
    return quantizers.CALIBRATIONS[0] if wide else range_kinds.CALIBRATION[range_kinds.OBSERVED]
