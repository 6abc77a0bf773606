"""Calibration: the ranges of the activations, from real data."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.errors import CalibrationError
from rewriter.keras_compat import input_of
from rewriter.quantization import phases
from rewriter.training import finite, statistics
from rewriter.training.batches import batches_of


def calibrate(
    model: Any,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    samples: int | None = None,
    progress: bool = True,
) -> Any:
    """Observe the ranges of all activations on ``data``, then switch to phase ``quantize``.

    Ranges are reset first. The model runs in inference mode; its weights do not change. Where the
    moving statistics of its normalizations are far from those of the data, a warning says so:
    training would use the latter.

    Args:
      model: a model that :func:`rewriter.rewrite` returned.
      data: the model's inputs: an array (N, ...) or a pandas DataFrame, a tuple or list or dict of
        arrays; or batches of inputs, or of ``(inputs, targets)`` pairs: a ``tf.data.Dataset``, a
        generator or another iterable, a ``Sequence``, ``PyDataset`` or ``ImageDataGenerator``
        iterator of Keras, or a function that returns such, as ``representative_dataset`` does.
      batch_size: for arrays.
      steps: use so many batches; None: all that there are.
      samples: use so many samples; None: all. Data without an end need one of the two.
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
        count, first = 0, None
        watch = finite.Watch(model)
        step = _traced(model, watch)
        source, total = batches_of(model, data, batch_size, steps, samples)
        for inputs in tqdm(source, total=total, desc="calibrating", disable=not progress):
            flat = tf.nest.flatten(inputs)
            finite.check_inputs(model, flat, count)
            if not step(*flat):
                error = watch.explain(flat, count)
                if error is not None:
                    raise error
            count += len(flat[0])
            first = inputs if first is None else first
        if not count:
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
    statistics.warn(model, first)
    return model


def _traced(model: Any, watch: finite.Watch) -> Any:
    """The model in phase ``observe`` on its flattened inputs, traced once for all batches.

    It returns whether all that is quantized was finite: what only the outputs need is not computed.
    A concrete function, since a ``tf.function`` looks at each of the model's variables in every
    call to find the right one.
    """
    structure = input_of(model)

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
