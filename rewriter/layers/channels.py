"""The axes of a QuantizedHost: output channels, which may be on several, and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.keras_compat.variables import read
from rewriter.reading import hosts


def is_einsum(layer: Any) -> bool:
    """Whether the host is an ``EinsumDense``, whose channels may be on several axes."""
    return layer.row.name == "EinsumDense"


def sizes(layer: Any) -> tuple[int, ...]:
    """The sizes of the axes that the last kernel has its channels on."""
    return tuple(int(layer.kernel.shape[axis]) for axis in layer.row.kernels[-1].channel_axes)


def bias(layer: Any) -> np.ndarray | None:
    """The host's bias as float64, one number for each output channel; None without one."""
    if not hosts.uses_bias(layer.host):
        return None
    found = read(layer.host.bias).astype(np.float64)
    return np.broadcast_to(found, sizes(layer)).ravel() if is_einsum(layer) else found


def output_shape(layer: Any, input_shape: Any) -> tuple[int | None, ...]:
    """Of an ``EinsumDense`` that is built: the stock layer leaves sizes open."""
    made = sizes(layer)
    summed = len(layer.kernel.shape) - len(made)
    return (*tuple(input_shape)[:-summed], *made)


def along(quantizers: Sequence[Any], kernels: Sequence[hosts.Kernel]) -> tuple[Any, ...]:
    """Quantizers on the channel axes of their kernels, where they are ours."""
    return tuple(
        quantizer.along(kernel.channel_axes) if hasattr(quantizer, "along") else quantizer
        for quantizer, kernel in zip(quantizers, kernels, strict=True)
    )


def without_steps(shape: Any) -> tuple[int | None, ...]:
    """The shape of a step, of a layer that is applied to every step of axis 1."""
    shape = tuple(shape)
    return (shape[0], *shape[2:])


def steps_as_samples(x: Any) -> Any:
    """``x`` (N, steps, ...) as (N * steps, ...)."""
    y = tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], axis=0))
    y.set_shape([None, *x.shape[2:]])
    return y


def samples_as_steps(y: Any, inputs: Any) -> Any:
    """``y`` (N * steps, ...) as (N, steps, ...), of which there are as many as in ``inputs``."""
    shape = [*inputs.shape[:2], *y.shape[1:]]
    y = tf.reshape(y, tf.concat([tf.shape(inputs)[:2], tf.shape(y)[1:]], axis=0))
    y.set_shape(shape)
    return y


def add(layer: Any, y: Any, bias: Any) -> Any:
    """``y`` with a number added to each of its output channels."""
    if getattr(layer.host, "data_format", "channels_last") == "channels_first":
        return y + tf.reshape(bias, [-1] + [1] * (len(y.shape) - 2))
    return y + bias if is_einsum(layer) else tf.nn.bias_add(y, bias)
