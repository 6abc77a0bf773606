"""Calibration: the ranges of the activations, from real data."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.errors import CalibrationError
from rewriter.quantization import phases
from rewriter.training import finite


def calibrate(model: Any, data: Any, *, batch_size: int = 32, progress: bool = True) -> Any:
    """Observe the ranges of all activations on ``data``, then switch to phase ``quantize``.

    Ranges are reset first. The model runs in inference mode; its weights do not change.

    Args:
      model: a model that :func:`rewriter.rewrite` returned.
      data: the model's inputs: an array (N, ...), a tuple or list or dict of arrays, or a
        ``tf.data.Dataset`` of batches (of inputs, or of ``(inputs, targets)`` pairs).
      batch_size: for arrays.
      progress: show a progress bar.

    Returns:
      ``model``, in phase ``quantize``.

    Raises:
      CalibrationError: if there is no data, it does not fit the model's inputs, or it is not
        finite, or the output of a layer is not; ranges and phases are then as before.
      UnsupportedModelError: if the model has not been rewritten.
    """
    codes = phases.codes(model)
    ranges = [(layer, _snapshot(layer)) for layer in _with_range(model)]
    try:
        for layer, _ in ranges:
            layer.reset_range()
        phases.set_phase(model, "observe")
        samples = 0
        watch = finite.Watch(model)
        step = _traced(model, watch)
        source, total = batches_of(model, data, batch_size)
        for inputs in tqdm(source, total=total, desc="calibrating", disable=not progress):
            flat = tf.nest.flatten(inputs)
            finite.check_inputs(model, flat, samples)
            if not step(*flat):
                error = watch.explain(flat, samples)
                if error is not None:
                    raise error
            samples += len(flat[0])
        if not samples:
            raise CalibrationError(
                "The calibration data is empty. Give at least one batch of the model's inputs."
            )
    except BaseException:
        for _, values in ranges:
            for variable, value in values:
                variable.assign(value)
        for layer, code in codes:
            layer.phase.assign(code)
        raise
    phases.set_phase(model, "quantize")
    return model


def _traced(model: Any, watch: finite.Watch) -> Any:
    """The model in phase ``observe`` on its flattened inputs, traced once for all batches.

    It returns whether all that is quantized was finite: what only the outputs need is not computed.
    A concrete function, since a ``tf.function`` looks at each of the model's variables in every
    call to find the right one.
    """
    structure = model.input

    def observe(*inputs: Any) -> Any:
        with watch.tracing() as all_finite:
            model(tf.nest.pack_sequence_as(structure, inputs), training=False)
            return all_finite()

    specs = [tf.TensorSpec((None, *t.shape[1:]), t.dtype) for t in tf.nest.flatten(structure)]
    with phases.only(phases.OBSERVE):
        return tf.function(observe).get_concrete_function(*specs)


def _with_range(model: Any) -> list[Any]:
    return [layer for layer in phases.phased_layers(model) if hasattr(layer, "range_variables")]


def _snapshot(layer: Any) -> list[tuple[Any, Any]]:
    return [(v, v.numpy()) for v in layer.range_variables.values() if hasattr(v, "numpy")]


def batches_of(model: Any, data: Any, batch_size: int) -> tuple[Iterator[Any], int | None]:
    """Batches of the model's inputs from what users have, and how many there are.

    Raises:
      CalibrationError: if the data does not fit the model's inputs.
    """
    if isinstance(data, tf.data.Dataset):
        length = int(data.cardinality())
        return _from_dataset(model, data), length if length >= 0 else None
    return _from_arrays(model, data, batch_size)


def _from_dataset(model: Any, data: tf.data.Dataset) -> Iterator[Any]:
    for element in data:
        # As in fit: a tuple is (inputs, targets[, weights]).
        inputs = element[0] if isinstance(element, tuple) else element
        yield _checked(model, inputs)


def _from_arrays(model: Any, data: Any, batch_size: int) -> tuple[Iterator[Any], int]:
    try:
        arrays = tf.nest.map_structure(lambda a: a, _as_arrays(data))
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"The data cannot be read as arrays: {error}.") from error
    lengths = {len(a) for a in tf.nest.flatten(arrays)}
    if len(lengths) != 1:
        raise CalibrationError(
            f"All inputs need the same number of samples. Received: {sorted(lengths)}."
        )
    (samples,) = lengths
    if samples:
        _checked(model, tf.nest.map_structure(lambda a: a[:1], arrays))

    def generate() -> Iterator[Any]:
        for start in range(0, samples, batch_size):
            rows = slice(start, start + batch_size)
            yield _checked(model, tf.nest.map_structure(operator.itemgetter(rows), arrays))

    return generate(), -(-samples // batch_size)


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
    structure = model.input
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
    values = []
    for tensor, value in zip(expected, flat, strict=True):
        shape = tuple(value.shape)
        fits = len(shape) == len(tensor.shape) and all(
            want in (None, got) for want, got in zip(tensor.shape[1:], shape[1:], strict=False)
        )
        if not fits:
            raise CalibrationError(
                f"A sample of the input {tensor.name!r} of {model.name!r} has the shape "
                f"{tuple(tensor.shape[1:])}. Received: samples of shape {shape[1:]}."
            )
        values.append(tf.cast(value, tensor.dtype))
    return tf.nest.pack_sequence_as(structure, values)
