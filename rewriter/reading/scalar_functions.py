"""Functions of a number that LiteRT has an operator for, known by what they compute.

``x * relu6(x + 3) / 6`` has a dozen spellings. All of them are one function of a number, so a
function is told by its values, once its operations have said that it is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import formulas
from rewriter.reading.traces import Trace

# As far as single precision and constants such as 0.16667 go. The two GELUs are further apart.
_RELATIVE, _ABSOLUTE = 5e-5, 2e-5


def _points() -> np.ndarray:
    far = np.logspace(1, 4, 61)
    near = np.linspace(-12, 12, 1921)  # every step of 1/80, the integers among them
    return np.concatenate([-far[::-1], near, far]).astype(np.float32)


def recognise(trace: Trace) -> tuple[str, dict[str, Any]] | None:
    """The name of one of ``formulas.ACTIVATIONS``, or ``leaky_relu``, with its options.

    Args:
      trace: of the function.

    Returns:
      None if it is not a function of a number, or none of these.
    """
    if not trace.elementwise:
        return None
    x = _points()
    y = np.asarray(trace.run(tf.constant(x)))
    if y.shape != x.shape or not np.issubdtype(y.dtype, np.floating):
        return None
    if not np.isfinite(y).all():
        return None  # none of these is infinite anywhere
    x, y = x.astype(np.float64), y.astype(np.float64)
    for name, function in formulas.ACTIVATIONS.items():
        if _equal(y, function(x)):
            return name, {}
    slope = -float(y[np.searchsorted(x, -1.0)])
    if np.isfinite(slope) and _equal(y, np.where(x > 0, x, slope * x)):
        return "leaky_relu", {"alpha": slope}
    return None


def _equal(y: np.ndarray, wanted: np.ndarray) -> bool:
    return bool((np.abs(y - wanted) <= _ABSOLUTE + _RELATIVE * np.abs(wanted)).all())
