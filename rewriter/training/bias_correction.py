"""Bias correction: the means of what linear layers compute, as they were before quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.errors import CalibrationError
from rewriter.keras_compat import input_of
from rewriter.layers import channels
from rewriter.layers.bias_correction import tapped
from rewriter.quantization import phases

Batches = Callable[[], tuple[Any, int | None]]


def corrected_hosts(model: Any) -> list[Any]:
    """The linear layers of a rewritten model whose biases calibration corrects."""
    layers = phases.phased_layers(model)
    return [layer for layer in layers if getattr(layer, "correction", None) is not None]


def check(model: Any, data: Any) -> None:
    """Raise CalibrationError if biases are to be corrected, and the data can be read only once."""
    if corrected_hosts(model) and hasattr(data, "__next__"):
        raise CalibrationError(
            "The recipe has bias_correction, which reads the data a second time, and a "
            f"{type(data).__name__} gives them once. Give an array, a tf.data.Dataset, or the "
            "function that makes the generator."
        )


def correct(model: Any, batches: Batches, progress: bool) -> None:
    """Set the corrections of a calibrated model's biases; memory does not grow with the samples.

    For each layer and output channel it is the mean over the data of what the model in float has
    before its activation, less that of the quantized model (arXiv:1906.04721, section 4.2 and
    appendix D). Of each batch, a layer's input is that of a model in which the layers before it
    are corrected by what this batch says.

    Args:
      model: in phase ``quantize``; it stays there.
      batches: what makes batches of inputs, and says how many there are, if known.
      progress: show a progress bar.

    Raises:
      CalibrationError: there is no data, or a correction is not finite.
    """
    hosts = corrected_hosts(model)
    for host in hosts:
        host.correction.assign(tf.zeros_like(host.correction))
    step = _traced(model, hosts)
    totals = [np.zeros(host.correction.shape, np.float64) for host in hosts]
    count = 0
    source, total = batches()
    for inputs in tqdm(source, total=total, desc="correcting biases", disable=not progress):
        flat = tf.nest.flatten(inputs)
        for sums, found in zip(totals, step(*flat), strict=True):
            sums += found.numpy().astype(np.float64) * len(flat[0])
        count += len(flat[0])
    if not count:
        raise CalibrationError(
            "The data for bias correction is empty: they gave nothing when read a second time. "
            "Give an array, a tf.data.Dataset, or a function that makes a generator."
        )
    for host, sums in zip(hosts, totals, strict=True):
        if not np.isfinite(sums).all():
            raise CalibrationError(
                f"The bias correction of {host.name!r} is not finite. Check the data, or rewrite "
                "without bias_correction."
            )
        host.correction.assign((sums / count).astype(np.float32))


def _traced(model: Any, hosts: Sequence[Any]) -> Any:
    """A function of the flattened inputs: for each host by how much its means have moved."""
    structure = input_of(model)

    def step(*inputs: Any) -> list[Any]:
        given = tf.nest.pack_sequence_as(structure, inputs)
        means: dict[int, list[Any]] = {id(host): [] for host in hosts}
        moved: dict[int, list[Any]] = {id(host): [] for host in hosts}

        def note(host: Any, y: Any) -> Any:
            if id(host) in means:
                means[id(host)].append(_mean(host, y))
            return y

        def restored(host: Any, y: Any) -> Any:
            if id(host) not in means:
                return y
            # A layer that is called in several places has one correction for all.
            wanted = means[id(host)][len(moved[id(host)])]
            difference = wanted - _mean(host, y)
            moved[id(host)].append(tf.reshape(difference, [-1]))
            return y + tf.cast(difference, y.dtype)

        with phases.only(phases.FLOAT), tapped(note):
            model(given, training=False)
        with tapped(restored):
            model(given, training=False)
        return [tf.add_n(moved[id(host)]) / len(moved[id(host)]) for host in hosts]

    specs = [tf.TensorSpec((None, *t.shape[1:]), t.dtype) for t in tf.nest.flatten(structure)]
    return tf.function(step).get_concrete_function(*specs)


def _mean(host: Any, y: Any) -> Any:
    """Over samples and places, in a shape that is added to ``y``; float32."""
    y = tf.cast(y, tf.float32)
    rank = len(y.shape)
    # Those of an EinsumDense may be on several axes.
    count = len(channels.sizes(host)) if channels.is_einsum(host) else 1
    kept = range(rank - count, rank)
    if getattr(host.host, "data_format", "channels_last") == "channels_first":
        kept = range(1 + host.distributed, 2 + host.distributed)
    return tf.reduce_mean(y, [axis for axis in range(rank) if axis not in kept], keepdims=True)
