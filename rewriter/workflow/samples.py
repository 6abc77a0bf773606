"""Samples as the whole way takes them: by the model's inputs, some of them held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.errors import RewriterError
from rewriter.keras_compat import Flavour

_CHUNK = 32  # samples that are made at a time: what Keras predicts at a time


class Lazy:
    """Samples that are made when they are asked for: no more of them are in memory than that.

    Args:
      shape: of all (N, ...).
      make: gives float32 (M, ...) for the numbers int (M,) of samples.
    """

    def __init__(self, shape: Sequence[int], make: Callable[[np.ndarray], np.ndarray]):
        self.shape = tuple(shape)
        self.ndim = len(self.shape)
        self._make = make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        return self._make(np.arange(len(self))[places])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def chosen(self, places: np.ndarray) -> Lazy:
        """Those of these numbers, no less lazy."""
        return Lazy((len(places), *self.shape[1:]), lambda numbers: self._make(places[numbers]))


def chosen(values: Any, places: np.ndarray) -> Any:
    """The samples of these numbers."""
    return values.chosen(places) if isinstance(values, Lazy) else values[places]


def chunks(values: Sequence[Any]) -> Iterator[list[np.ndarray]]:
    """The samples as arrays: all at a time, or in parts if some are made when asked for."""
    if not any(isinstance(each, Lazy) for each in values):
        yield list(values)
        return
    for start in range(0, len(values[0]), _CHUNK):
        yield [np.asarray(part[start : start + _CHUNK]) for part in values]


def batches(flavour: Flavour, x: Sequence[Any], labels: np.ndarray, size: int, seed: int) -> Any:
    """What ``fit`` takes in place of arrays: batches in random order, each made when it is needed.

    Args:
      flavour: the Keras.
      x: samples by input.
      labels: of them.
      size: of a batch.
      seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(len(labels))

    class Batches(flavour.batches):  # type: ignore[name-defined]
        def __len__(self) -> int:
            return -(-len(order) // size)

        def __getitem__(self, number: int) -> tuple[Any, np.ndarray]:
            # In order within the batch: files and maps of files are read from front to back.
            places = np.sort(order[size * number : size * (number + 1)])
            inputs = [values[places] for values in x]
            return (inputs[0] if len(inputs) == 1 else tuple(inputs)), labels[places]

    return Batches()


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
        values = [_array(data[name]) for name in names]
    else:
        several = data if isinstance(data, (list, tuple)) else [data]
        values = [_array(value) for value in several]
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


def _array(value: Any) -> Any:
    return value if isinstance(value, Lazy) else np.asarray(value)


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
    if not any(isinstance(each, Lazy) for each in x):
        return _first(model.predict(packed(x), verbose=0))
    # Not predict, which makes a pipeline of its own for each part, and keeps memory with it.
    return np.concatenate([_first(model.predict_on_batch(packed(chunk))) for chunk in chunks(x)])


def _first(outputs: Any) -> np.ndarray:
    return np.asarray(outputs[0] if isinstance(outputs, (list, tuple)) else outputs)


def check_enough(count: int) -> None:
    """Raise RewriterError if there are too few samples to hold some out."""
    if any(not len(part) for part in split(count)):
        raise RewriterError(f"Fine-tuning needs at least 10 samples. Received: {count}.")
