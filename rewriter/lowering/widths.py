"""Activations of 16 bits: what LiteRT has no right operator for is refused by layer."""

from __future__ import annotations

from rewriter.errors import ExportError
from rewriter.grid import WIDE
from rewriter.litert import integer_wide_limits
from rewriter.program import Operator

_MOST = 2**16  # values of 16 bits, whose sum no longer fits into an int32
_REMEDY = 'Use the recipe "int8", or another layer in its place'
# Layers that do the same by operators that are there.
_INSTEAD = {
    "ELU": "LeakyReLU or ReLU",
    "L2_NORMALIZATION": "or normalize in the application",
    "DEPTH_TO_SPACE": "UpSampling2D and Conv2D",
    "SPACE_TO_DEPTH": "a convolution with strides",
    "RELU_N1_TO_1": "ReLU(6)",
}


def require(layer: str, operator: Operator) -> None:
    """Raise ExportError, naming ``layer``, for an operator of 16 bits that LiteRT has not."""
    reason = None if operator.kind == "FLOAT" else integer_wide_limits.problem(operator)
    if reason is not None:
        instead = _INSTEAD.get(operator.kind)
        remedy = f"{_REMEDY} ({instead})." if instead else f"{_REMEDY}."
        raise ExportError(
            f"Layer {layer!r} has activations of {WIDE} bits and becomes {operator.kind}: "
            f"{reason}. {remedy}"
        )


def require_count(layer: str, bits: int, count: int) -> None:
    """Raise ExportError, naming ``layer``, for more int16 values than LiteRT adds up in 32 bits."""
    if bits == WIDE and count >= _MOST:
        raise ExportError(
            f"Layer {layer!r} adds up {count:,} values of {WIDE} bits, which LiteRT does in 32: "
            f'from {_MOST:,} on a sum may overflow. Pool in two steps, or use the recipe "int8".'
        )
