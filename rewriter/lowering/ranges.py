"""The grids of activations: which of them a program carries, and those that training learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.grid import Grid
from rewriter.keras_compat.variables import read
from rewriter.program import Quantization


def learned(layer: Any, grid: Grid, path: str) -> Quantization | None:
    """The grid that a Quantize layer has learned; None where it is not finite.

    Raises:
      ExportError: see :func:`require_positive`.
    """
    scale, zero = (float(value) for value in layer.learned_grid)
    if not np.isfinite([scale, zero]).all():
        return None
    require_positive(path, layer.quantizer, layer.range_variables)
    return Quantization(scale, int(zero), grid.bits)


def require_positive(path: str, quantizer: Any, weights: Mapping[str, Any]) -> None:
    """Refuse a layer one of whose learned scales training has driven to 0 or below.

    Args:
      path: of the layer.
      quantizer: one that learns.
      weights: what it has built.

    Raises:
      ExportError: naming ``path``.
    """
    if quantizer.power_of_two or not float(read(weights["started"])):
        return  # what is learned is a logarithm, or nothing yet
    found = read(weights["learned"])
    if (found <= 0).any():
        raise ExportError(
            f"Training has driven a learned scale of {path!r} to {found.min():.3g}: a scale is "
            "positive, and this one computes nothing any more. An optimizer such as Adam moves a "
            "scale by about its learning rate in every step, however small the scale: train from "
            "the calibrated model again with a smaller one, or freeze the scales with "
            "rewriter.set_phase(model, 'quantize', freeze_ranges=True)."
        )


def carried(grid: Grid, quantizer: Any, path: str) -> Grid:
    """The grid of an activation, if the program has operators on it.

    Raises:
      ExportError: it has none; the message names ``path``.
    """
    wide = grid.bits == grids.WIDE
    wanted = {
        f"num_bits={grid.bits}": grid.bits in grids.ACTIVATION_WIDTHS,
        "symmetric=False": grid.symmetric or not wide,
        f"narrow_range={grid.narrow}": grid.narrow == wide,
        "per_axis=True": not grid.axes,
    }
    for option, carried in wanted.items():
        if not carried:
            widths = " or ".join(map(str, grids.ACTIVATION_WIDTHS))
            raise ExportError(
                f"The quantizer {type(quantizer).__qualname__} of {path!r} has {option}; "
                f"the activations of a file have {widths} bits, their whole range (of 16 bits from "
                "-32767 on, with 0 as the zero point), and one scale for each tensor. Other "
                "quantizers can be trained with, not exported."
            )
    return grid
