"""A tensor or a number, by places that are known before a model runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.reading.operations import Operation, affine, constant, is_tensor

if TYPE_CHECKING:
    from rewriter.reading.graph import Call

# What is not more than this stands for a place that a softmax gives nothing.
_MASKS = -1e4


def _where(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """A tensor, and 0 or a mask's large negative number in places that are known.

    Beside that number, what is added to it is nothing. The places are true numbers or booleans.
    """
    chosen, x, y = (arguments.get(name) for name in ("condition", "x", "y"))
    if is_tensor(chosen) or chosen is None or is_tensor(x) == is_tensor(y):
        return None
    try:
        there = np.asarray(chosen).astype(bool)
    except (TypeError, ValueError, NotImplementedError):
        return None
    there, tensor, number = (there, x, constant(y)) if is_tensor(x) else (~there, y, constant(x))
    if number is None or number.size != 1 or np.isnan(number).any():
        return None
    value = max(float(number.reshape(())), float(np.finfo(np.float32).min))
    if value == 0:
        return affine(tensor, there)
    return affine(tensor, offset=np.where(there, 0.0, value)) if value <= _MASKS else None


READERS = {"where": _where}
