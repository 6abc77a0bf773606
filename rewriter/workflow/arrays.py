"""Data as arrays in the order of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.errors import RewriterError


def inputs(model: Any, data: Any) -> list[np.ndarray]:
    """The arrays in the order of the model's inputs.

    Args:
      model: of either Keras.
      data: an array (N, ...), or a list, tuple or dict of arrays.

    Raises:
      RewriterError: there are other inputs, or other numbers of samples.
    """
    names = [tensor.name.split(":")[0] for tensor in model.inputs]
    if isinstance(data, Mapping):
        missing = [name for name in names if name not in data]
        if missing:
            raise RewriterError(
                f"The data lacks the input {missing[0]!r}. Received: {sorted(data)}."
            )
        values = [np.asarray(data[name]) for name in names]
    else:
        several = data if isinstance(data, (list, tuple)) else [data]
        values = [np.asarray(value) for value in several]
    if len(values) != len(names):
        raise RewriterError(
            f"The model has {len(names)} inputs, {names}. Received: {len(values)} arrays."
        )
    lengths = {len(v) for v in values if v.ndim}
    if len(lengths) != 1 or 0 in lengths:
        raise RewriterError(
            "All inputs need the same number of samples, at least one. "
            f"Received: {sorted(lengths)}."
        )
    return values


def packed(values: list[np.ndarray]) -> Any:
    """As Keras takes them: one array by itself."""
    return values[0] if len(values) == 1 else values
