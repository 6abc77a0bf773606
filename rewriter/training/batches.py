"""Batches of a model's inputs, from data as people have them."""

from __future__ import annotations

import inspect
import itertools
import operator
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import CalibrationError, RewriterWarning
from rewriter.keras_compat import input_of

_WANTED = (
    "an array (N, ...), a list or dict of arrays, or batches of them as a tf.data.Dataset, a "
    "generator or a function that returns one"
)
_MANY = 1000  # batches after which a user is told that there is no end in sight


def batches_of(
    model: Any,
    data: Any,
    batch_size: int,
    steps: int | None = None,
    samples: int | None = None,
) -> tuple[Iterator[Any], int | None]:
    """Batches of the model's inputs from what users have, and how many there are, if known.

    Args:
      model: whose inputs they are.
      data: see :func:`rewriter.calibrate`.
      batch_size: for arrays.
      steps: no more batches than this.
      samples: no more samples than this.

    Raises:
      CalibrationError: if the data does not fit the model's inputs, has no end, or an argument is
        not a positive whole number.
    """
    _check_count("batch_size", batch_size)
    for name, value in (("steps", steps), ("samples", samples)):
        if value is not None:
            _check_count(name, value)
    source, total = _source(model, data, batch_size, endless=steps is None and samples is None)
    if steps is not None:
        source, total = itertools.islice(source, steps), min(steps, total or steps)
    if samples is None:
        return source, total
    return _cut(source, samples), None  # how many batches that is, their sizes tell


def _check_count(name: str, value: Any) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise CalibrationError(f"{name} must be a positive whole number. Received: {value!r}.")


def _source(
    model: Any, data: Any, batch_size: int, endless: bool
) -> tuple[Iterator[Any], int | None]:
    """``endless``: whether nothing would stop data that have no end."""
    if data is None or isinstance(data, (str, bytes)) or hasattr(data, "__fspath__"):
        raise CalibrationError(f"There are no data. Received: {data!r}. Give {_WANTED}.")
    if callable(data) and not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        data = _called(data)
    if isinstance(data, tf.data.Dataset):
        length = int(data.cardinality())
        if length == tf.data.INFINITE_CARDINALITY and endless:
            raise _no_end("The dataset")
        found = _from_batches(model, data)
        return (
            (_watched(found), None) if length < 0 and endless else (found, max(length, 0) or None)
        )
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        return _from_arrays(model, _of_frame(model, data), batch_size)
    is_array = hasattr(data, "shape") or hasattr(data, "__array__")
    if is_array or isinstance(data, (dict, tuple, list)):
        return _from_arrays(model, data, batch_size)
    if hasattr(data, "__getitem__"):  # of Keras: its iterators may never end
        count = _length(data)
        if count is None and endless:
            raise _no_end(f"The {type(data).__name__}")
        places: Iterable[int] = itertools.count() if count is None else range(count)
        return _from_batches(model, (data[place] for place in places)), count
    if isinstance(data, Iterable):
        batches = _from_batches(model, data)
        return (_watched(batches) if endless else batches), None
    raise CalibrationError(f"The data cannot be read. Received: {data!r}. Give {_WANTED}.")


def _called(data: Any) -> Any:
    try:
        inspect.signature(data).bind()
    except (TypeError, ValueError) as error:
        raise CalibrationError(
            f"A function that gives data is called without arguments. Received: {data!r} "
            f"({error}). Wrap it: lambda: function(...)."
        ) from error
    return data()


def _no_end(what: str) -> CalibrationError:
    return CalibrationError(
        f"{what} has no end. Say how much of it to use: samples=1000, or (calibrate and "
        "reestimate_batch_norm) steps=100 batches."
    )


def _length(data: Any) -> int | None:
    """How many batches there are in an object of Keras; None if it has no end."""
    if hasattr(data, "__len__"):
        return len(data)
    try:
        return getattr(data, "num_batches", None)
    except NotImplementedError:  # of a PyDataset that does not say
        return None


def _of_frame(model: Any, frame: Any) -> Any:
    """A DataFrame: one input of all columns, or columns by the names of the inputs."""
    names = [tensor.name.split(":")[0] for tensor in tf.nest.flatten(input_of(model))]
    if len(names) == 1 and names[0] not in frame.columns:
        return frame.to_numpy()
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise CalibrationError(
            f"The data lacks the input {missing[0]!r}. Received: a DataFrame with the columns "
            f"{list(frame.columns)}; the model's inputs are {names}."
        )
    return {name: frame[name].to_numpy().reshape(len(frame), -1) for name in names}


def _watched(batches: Iterator[Any]) -> Iterator[Any]:
    for number, batch in enumerate(batches):
        if number == _MANY:
            warnings.warn(
                f"The data have given {_MANY} batches and do not say how many there are. If they "
                "have no end, stop and give samples=.",
                category=RewriterWarning,
                stacklevel=4,
            )
        yield batch


def _cut(batches: Iterator[Any], samples: int) -> Iterator[Any]:
    left = samples
    for batch in batches:
        count = len(tf.nest.flatten(batch)[0])
        rows = slice(left)
        yield batch if count <= left else tf.nest.map_structure(operator.itemgetter(rows), batch)
        left -= count
        if left <= 0:
            return


def _from_batches(model: Any, data: Iterable[Any]) -> Iterator[Any]:
    for element in data:
        # As in fit: a tuple is (inputs, targets[, weights]).
        inputs = element[0] if isinstance(element, tuple) and element else element
        flat = tf.nest.flatten(inputs)
        if not all(hasattr(value, "shape") for value in flat):
            inputs = _as_arrays(inputs)
        yield _checked(model, inputs)


def _from_arrays(model: Any, data: Any, batch_size: int) -> tuple[Iterator[Any], int]:
    try:
        arrays = tf.nest.map_structure(lambda a: a, _as_arrays(data))
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"The data cannot be read as arrays: {error}.") from error
    if any(not a.shape for a in tf.nest.flatten(arrays)):
        raise CalibrationError(
            f"The data are no array of samples. Received: {data!r}. Give {_WANTED}."
        )
    lengths = {len(a) for a in tf.nest.flatten(arrays)}
    if len(lengths) != 1:
        raise CalibrationError(
            f"All inputs need the same number of samples. Received: {sorted(lengths)}."
        )
    (samples,) = lengths
    for tensor, array in zip(
        tf.nest.flatten(input_of(model)), _in_order(model, arrays), strict=True
    ):
        _refuse_single(model, tensor, tuple(array.shape))
    if samples:
        _checked(model, tf.nest.map_structure(lambda a: a[:1], arrays))

    def generate() -> Iterator[Any]:
        for start in range(0, samples, batch_size):
            rows = slice(start, start + batch_size)
            yield _checked(model, tf.nest.map_structure(operator.itemgetter(rows), arrays))

    return generate(), -(-samples // batch_size)


def _refuse_single(model: Any, tensor: Any, shape: tuple[int, ...]) -> None:
    """Raise CalibrationError if an array of this shape is one sample of an input, not a batch."""
    wanted = tuple(tensor.shape[1:])
    if len(shape) == len(wanted) and all(
        want in (None, got) for want, got in zip(wanted, shape, strict=True)
    ):
        raise CalibrationError(
            f"The data for the input {tensor.name!r} of {model.name!r} are single samples of shape "
            f"{shape}, not batches. Call .batch(32) on a tf.data.Dataset; give an array, or what a "
            "generator yields, an axis of samples: x[None]."
        )


def _as_arrays(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _as_nested(value) for key, value in data.items()}
    if isinstance(data, (tuple, list)):
        return [_as_nested(value) for value in data]
    return np.asarray(data)


def _as_nested(data: Any) -> Any:
    """Arrays in a structure of inputs; numbers in lists are one array."""
    inner = isinstance(data, (tuple, list)) and any(
        hasattr(value, "shape") or isinstance(value, dict) for value in data
    )
    return _as_arrays(data) if inner or isinstance(data, dict) else np.asarray(data)


def _checked(model: Any, inputs: Any) -> Any:
    """``inputs`` in the model's structure and dtypes."""
    expected = tf.nest.flatten(input_of(model))
    values = []
    for tensor, value in zip(expected, _in_order(model, inputs), strict=True):
        shape = tuple(value.shape)
        fits = len(shape) == len(tensor.shape) and all(
            want in (None, got) for want, got in zip(tensor.shape[1:], shape[1:], strict=False)
        )
        if not fits:
            _refuse_single(model, tensor, shape)
            raise CalibrationError(
                f"A sample of the input {tensor.name!r} of {model.name!r} has the shape "
                f"{tuple(tensor.shape[1:])}. Received: samples of shape {shape[1:]}."
            )
        values.append(tf.cast(value, tensor.dtype))
    return tf.nest.pack_sequence_as(input_of(model), values)


def _in_order(model: Any, inputs: Any) -> list[Any]:
    """The values for the model's flattened inputs, by name where both have names."""
    structure = input_of(model)
    expected = tf.nest.flatten(structure)
    same = (
        isinstance(structure, dict) and isinstance(inputs, dict) and set(structure) == set(inputs)
    )
    if isinstance(inputs, dict) and not same:
        names = [tensor.name.split(":")[0] for tensor in expected]
        missing = [name for name in names if name not in inputs]
        if missing:
            raise CalibrationError(
                f"The data lacks the input {missing[0]!r}. Received: {sorted(inputs)}; "
                f"the model's inputs are {names}."
            )
        flat = [inputs[name] for name in names]
    else:
        flat = tf.nest.flatten(inputs)
    if len(flat) != len(expected):
        raise CalibrationError(
            f"The model {model.name!r} has {len(expected)} inputs. Received: {len(flat)} arrays."
        )
    return flat
