"""Which layer normalizations have an integer form, and the axes they normalize over."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rewriter.keras_compat import Flavour
from rewriter.reading.graph import Call

# LiteRT sums the squares of as many int8 values in an int32, and epsilon's with them.
LONGEST = 2**14


def axes(layer: Any, rank: int) -> list[int]:
    """The axes that a ``LayerNormalization`` normalizes a tensor of ``rank`` over, from 0 on."""
    return [int(axis) % rank for axis in np.atleast_1d(layer.axis)]


def takes(flavour: Flavour, call: Call) -> bool:
    """Whether ``call`` is of a stock ``LayerNormalization`` that becomes integers.

    In float32, over the last axis or several trailing ones of a known size; by the standard
    deviation, not by the variance (``rms_scaling``).
    """
    layer = call.layer
    if flavour.class_name(layer) != "LayerNormalization" or getattr(layer, "rms_scaling", False):
        return False
    if {*call.input_dtypes, *call.dtypes, layer.dtype, layer.compute_dtype} != {"float32"}:
        return False
    shape = call.input_shapes[0]
    rank, found = len(shape), axes(layer, len(shape))
    if found != list(range(rank - len(found), rank)) or 0 in found:
        return False
    count = math.prod(shape[axis] or 0 for axis in found)
    return 0 < count <= LONGEST
