"""Samples as the whole way takes them: arrays by the model's inputs, some of them held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.errors import RewriterError


def inputs_of(model: Any, data: Any) -> list[np.ndarray]:
    """The arrays in the order of the model's inputs.

    Args:
      model: of either Keras.
      data: an array (N, ...), or a list, tuple or dict of arrays by the model's inputs.

    Raises:
      RewriterError: inputs are missing, or differ in their number of samples.
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


def spread(count: int, wanted: int | None) -> np.ndarray:
    """The numbers of ``wanted`` of ``count`` samples, spread evenly over them; None: all."""
    taken = count if wanted is None else min(wanted, count)
    return np.arange(taken) * count // max(taken, 1)


def packed(values: list[np.ndarray]) -> Any:
    """As Keras takes them: one array by itself, several as a list."""
    return values[0] if len(values) == 1 else values


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the samples to train on, and of every tenth, which is held out."""
    held = np.arange(count) % 10 == 9
    return np.flatnonzero(~held), np.flatnonzero(held)


def predicted(model: Any, x: list[np.ndarray]) -> np.ndarray:
    """The model's first output (N, ...) for these inputs."""
    outputs = model.predict(packed(x), verbose=0)
    first: np.ndarray = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return first


def check_enough(count: int) -> None:
    """Raise RewriterError if there are too few samples to hold some out."""
    if any(not len(part) for part in split(count)):
        raise RewriterError(f"Fine-tuning needs at least 10 samples. Received: {count}.")
