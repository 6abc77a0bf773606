"""Activations of 16 bits: what LiteRT has no right operator for is refused by layer."""

from __future__ import annotations

from rewriter.errors import ExportError
from rewriter.grid import BITS, WIDE
from rewriter.litert import integer_wide
from rewriter.program import Operator

_REMEDY = 'Use the recipe "int8", or another layer in its place'
# Layers that do the same by operators that are there.
_INSTEAD = {
    "ELU": "LeakyReLU or ReLU",
    "L2_NORMALIZATION": "a normalization in float after the export",
    "DEPTH_TO_SPACE": "UpSampling2D and Conv2D",
    "SPACE_TO_DEPTH": "a convolution with strides",
    "RELU_N1_TO_1": "ReLU(6)",
}
_CONVERTS = ("QUANTIZE", "DEQUANTIZE", "FLOAT")


def require(layer: str, operator: Operator) -> None:
    """Raise ExportError, naming ``layer``, for an operator of 16 bits that LiteRT has not."""
    found = [grid for grid in (*operator.inputs, operator.output) if grid is not None]
    if operator.kind in _CONVERTS or all(grid.bits == BITS for grid in found):
        return
    reason = problem(operator)
    if reason is not None:
        instead = _INSTEAD.get(operator.kind)
        remedy = f"{_REMEDY} ({instead})." if instead else f"{_REMEDY}."
        raise ExportError(
            f"Layer {layer!r} has activations of {WIDE} bits and becomes {operator.kind}: "
            f"{reason}. {remedy}"
        )


def problem(operator: Operator) -> str | None:
    """Why LiteRT refuses an operator of 16 bits, or computes something else; or None."""
    return integer_wide.problem(operator)
