"""Data for the command line that a function of the user's gives, as arrays."""

from __future__ import annotations

import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError, RewriterWarning, short

Shapes = Mapping[str, tuple[int | None, ...]]
_FUNCTION = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<function>[A-Za-z_]\w*)")


def is_function(path: Path) -> bool:
    """Whether ``path`` is written as ``module:function``, and is no file."""
    return bool(_FUNCTION.fullmatch(str(path))) and not path.exists()


def from_function(
    name: str, shapes: Shapes, samples: int | None
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Inputs by name and labels, from the dataset that a user's function returns.

    Args:
      name: ``module:function``; the module is looked for in the working directory, too. The
        function takes no arguments and returns a ``tf.data.Dataset`` of inputs, or of pairs of
        inputs and labels, in batches or one by one.
      shapes: of the model's inputs, without the batch, by name.
      samples: no more than the first so many; None: all that there are.

    Raises:
      LoadError: there is no such function, what it returns is no dataset for these inputs, or it
        has no end and ``samples`` is None.
    """
    dataset = _called(name)
    if not isinstance(dataset, tf.data.Dataset):
        raise LoadError(f"{name} returns a tf.data.Dataset. Received: {type(dataset).__name__}.")
    if samples is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise LoadError(f"The dataset of {name} has no end. Say how much to use: --samples 1000.")
    rows: list[list[np.ndarray]] = []
    count = 0
    for inputs, labels in _elements(name, dataset, shapes):
        rows.append([*inputs, *([] if labels is None else [labels])])
        count += len(inputs[0])
        if samples is not None and count >= samples:
            break
    if not rows:
        raise LoadError(f"The dataset of {name} is empty.")
    columns = [np.concatenate(parts)[:samples] for parts in zip(*rows, strict=True)]
    values = dict(zip(shapes, columns, strict=False))
    return values, columns[len(shapes)] if len(columns) > len(shapes) else None


def _called(name: str) -> Any:
    called = function(name, name)
    try:
        return called()
    except Exception as error:  # a function of the user's may raise anything
        raise LoadError(f"{name}: {type(error).__name__}: {short(error)}.") from error


def function(name: str, what: str) -> Any:
    """A user's function, ``module:function``; the module may lie in the working directory.

    Args:
      name: of both.
      what: for messages.

    Raises:
      LoadError: the module cannot be imported, or has no such function.
    """
    found = _FUNCTION.fullmatch(name)
    if found is None:
        raise LoadError(f"A function is written as module:function. Received: {name!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where console scripts, unlike python -m, do not look
    try:
        return getattr(importlib.import_module(found["module"]), found["function"])
    except Exception as error:  # a module of the user's may raise anything
        raise LoadError(f"{what}: {type(error).__name__}: {short(error)}.") from error


def _elements(
    name: str, dataset: tf.data.Dataset, shapes: Shapes
) -> Iterator[tuple[list[np.ndarray], np.ndarray | None]]:
    """Batches of the inputs in the model's order, and of the labels."""
    for number, element in enumerate(dataset):
        # As in fit: a tuple is (inputs, labels[, weights]).
        pair = isinstance(element, tuple)
        if pair and len(element) > 2 and not number:
            warnings.warn(
                f"What {name} gives beside inputs and labels, such as weights, is not used.",
                RewriterWarning,
                stacklevel=2,
            )
        inputs, labels = (
            (element[0], element[1] if len(element) > 1 else None) if pair else (element, None)
        )
        values = _inputs(name, inputs, shapes)
        first = next(iter(shapes.values()))
        single = values[0].ndim == len(first)
        if single:
            values = [value[None] for value in values]
        found = None if labels is None else np.asarray(labels)
        yield values, found[None] if single and found is not None else found


def _inputs(name: str, inputs: Any, shapes: Shapes) -> list[np.ndarray]:
    if isinstance(inputs, Mapping):
        missing = [key for key in shapes if key not in inputs]
        if missing:
            raise LoadError(
                f"What {name} gives lacks the input {missing[0]!r}. Received: {sorted(inputs)}."
            )
        values = [inputs[key] for key in shapes]
    else:
        values = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if len(values) != len(shapes):
        raise LoadError(
            f"The model has the inputs {list(shapes)}. Received from {name}: {len(values)}."
        )
    arrays = [np.asarray(value) for value in values]
    for (key, shape), array in zip(shapes.items(), arrays, strict=True):
        if array.ndim not in (len(shape), len(shape) + 1):
            raise LoadError(
                f"The input {key!r} has the shape {shape}, with or without an axis of samples. "
                f"Received from {name}: {array.shape}."
            )
    return arrays
