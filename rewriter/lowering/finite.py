"""Weights that are no numbers: what a training that diverged leaves behind."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.errors import ExportError


def require_finite(path: str, values: Any) -> None:
    """Raise ExportError, naming the layer, where weights are infinite or NaN.

    Their integers would be some number or other, and the file one that computes.
    """
    if not np.isfinite(values).all():
        raise ExportError(
            f"The weights of {path!r} are not finite: the training has diverged. Take the weights "
            "from before, and train with a smaller learning rate, or with clipped gradients."
        )
