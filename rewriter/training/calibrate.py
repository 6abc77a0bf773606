"""Calibration: the ranges of the activations, from real data."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.errors import CalibrationError, RewriterWarning
from rewriter.keras_compat import input_of
from rewriter.kernels.composed_norm import as_in_training
from rewriter.quantization import phases
from rewriter.reading import from_keras
from rewriter.training import bias_correction, finite, scores, statistics
from rewriter.training.batches import batches_of
from rewriter.training.collecting import Collector


def calibrate(
    model: Any,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    samples: int | None = None,
    progress: bool = True,
    method: str | Mapping[str, str] | None = None,
    for_training: bool = True,
) -> Any:
    """Observe the ranges of all activations on ``data``, then switch to phase ``quantize``.

    Ranges are reset first. The model runs in inference mode; its weights do not change. An input
    whose values are at most 256 equidistant levels, as those of images are, gets a range on which
    no level lies half-way between two integers. With ``Recipe(bias_correction=True)`` the data are
    read a second time, for the biases. Where the moving statistics of the model's
    normalizations are far from those of the data, a warning says so: training would use the latter.
    The ranges then hold the activations with either, which takes up to twice the time.

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
      method: how ranges are made of what was seen: ``"minmax"`` (all of it), ``"percentile"``
        (99.99 % of the values on either side), ``"mse"`` (the smallest mean squared error),
        ``"entropy"`` (the smallest Kullback-Leibler divergence); or such by names or patterns
        (``fnmatch``) of layers, the first that matches. None: what the recipe says. The model
        remembers it. Ranges of another method than ``"minmax"`` stay as they are while training.
      for_training: False: ranges of inference alone in any case, for a model that is exported as it
        is, or trained with frozen statistics.

    Returns:
      ``model``, in phase ``quantize``. A warning says so if ranges still moved at the end.

    Raises:
      CalibrationError: if there is no data, it does not fit the model's inputs, or it is not
        finite, or the output of a layer is not, or a method or a layer of ``method`` is not known,
        or data that are to be read twice can be read once only; ranges, corrections and phases are
        then as before.
      UnsupportedModelError: if the model has not been rewritten.
    """
    codes = phases.codes(model)
    bias_correction.check(model, data)
    corrected = bias_correction.corrected_hosts(model)
    ranges = [(layer, _snapshot(layer)) for layer in _with_range(model)]
    before = [(host.correction, host.correction.numpy()) for host in corrected]
    graph = from_keras.read(model)
    collector = Collector(graph, [layer for layer, _ in ranges], method)
    try:
        for layer, _ in ranges:
            layer.reset_range()
        phases.set_phase(model, "observe")
        count = 0
        watch = finite.Watch(graph)
        step = _traced(model, watch, collector)
        both = functools.partial(_as_in_training, model, watch, collector)
        training = statistics.InTraining(model, graph, both if for_training else None)
        source, total = batches_of(model, data, batch_size, steps, samples)
        for inputs in tqdm(source, total=total, desc="calibrating", disable=not progress):
            flat = tf.nest.flatten(inputs)
            finite.check_inputs(model, flat, count)
            if not step(*flat):
                error = watch.explain(flat, count)
                if error is not None:
                    raise error
            count += len(flat[0])
            training.look(flat)
            collector.look(flat, count)
        if not count:
            raise CalibrationError(
                "The calibration data is empty. Give at least one batch of the model's inputs."
            )
        training.finish()
        moving = collector.moving(count)
        collector.finish()
        phases.set_phase(model, "quantize")
        if corrected:
            again = functools.partial(batches_of, model, data, batch_size, steps, samples)
            bias_correction.correct(model, again, progress)
    except BaseException:
        collector.restore()
        for variable, value in itertools.chain(before, *(values for _, values in ranges)):
            variable.assign(value)
        for layer, code in codes:
            layer.phase.assign(code)
        raise
    if moving is not None:
        warnings.warn(moving, RewriterWarning, stacklevel=2)
    training.warn(stacklevel=2)
    coarse = scores.coarse(graph)
    if coarse is not None:
        warnings.warn(coarse, RewriterWarning, stacklevel=2)
    return model


def _as_in_training(
    model: Any, watch: finite.Watch, collector: Collector, norms: Sequence[Any]
) -> Any:
    """As :func:`_traced`, with these batch normalizations as in training; ranges are kept apart."""
    with as_in_training({id(norm) for norm in norms}), collector.in_training():
        return _traced(model, watch, collector)


def _traced(model: Any, watch: finite.Watch, collector: Collector) -> Any:
    """The model in phase ``observe`` on its flattened inputs, traced once for all batches.

    It returns whether all that is quantized was finite: what only the outputs need is not computed.
    A concrete function, since a ``tf.function`` looks at each of the model's variables in every
    call to find the right one.
    """
    structure = input_of(model)

    def observe(*inputs: Any) -> Any:
        with watch.tracing(collector.observe) as all_finite:
            model(tf.nest.pack_sequence_as(structure, inputs), training=False)
            return all_finite()

    specs = [tf.TensorSpec((None, *t.shape[1:]), t.dtype) for t in tf.nest.flatten(structure)]
    with phases.only(phases.OBSERVE):
        return tf.function(observe).get_concrete_function(*specs)


def _with_range(model: Any) -> list[Any]:
    return [layer for layer in phases.phased_layers(model) if hasattr(layer, "range_variables")]


def _snapshot(layer: Any) -> list[tuple[Any, Any]]:
    return [(v, v.numpy()) for v in layer.range_variables.values() if hasattr(v, "numpy")]
