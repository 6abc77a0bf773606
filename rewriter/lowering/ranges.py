"""The grids of activations: which of them a program carries, and those that training learns."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.grid import Grid
from rewriter.program import Quantization


def learned(layer: Any, grid: Grid) -> Quantization | None:
    """The grid that a Quantize layer has learned; None where it is not finite."""
    scale, zero = (float(value) for value in layer.learned_grid)
    if not np.isfinite([scale, zero]).all():
        return None
    return Quantization(scale, int(zero), grid.bits)


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
