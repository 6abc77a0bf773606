"""The steps of an integer layer normalization, by conditions that all layers share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.fast.gradients import connect
from rewriter.kernels.fast.switch import Switch
from rewriter.kernels.plain.layer_norm import UNIT

_ANY = tf.TensorSpec(None, tf.float32)


def _first(x: Any, *_: Any) -> tuple[Any]:
    return (tf.identity(x),)


@functools.cache
def _mean_switch(rank: int, over: tuple[int, ...]) -> Switch:
    kept = [int(axis not in over) for axis in range(rank)]

    def no_mean(x: Any) -> tuple[Any]:
        return (tf.zeros(tf.shape(x) ** kept),)

    def mean(x: Any) -> tuple[Any]:
        return (tf.reduce_mean(x, over, keepdims=True),)

    return Switch([_ANY], no_mean, mean, mean, mean)  # as rewriter.kernels.codes counts


@functools.cache
def _deviations_switch() -> Switch:
    def deviations(x: Any, mean: Any) -> tuple[Any]:
        return (x - mean,)

    return Switch([_ANY, _ANY], _first, deviations, deviations, deviations)


@functools.cache
def _output_switch(over: tuple[int, ...], epsilon: float) -> Switch:
    def normalized(original: Any, centred: Any, gamma: Any, beta: Any) -> tuple[Any]:
        count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(centred), over)), tf.float32)
        squares = tf.reduce_sum(tf.square(centred), over, keepdims=True)
        unit = centred * tf.math.rsqrt(squares + count * epsilon)
        unit = tf.quantization.fake_quant_with_min_max_args(unit, *UNIT)
        return (unit * (tf.sqrt(count) * gamma) + beta,)

    return Switch([_ANY] * 4, _first, _first, normalized, normalized)


def layer_norm_mean(x: Any, phase: Any, over: Sequence[int]) -> Any:
    """As :func:`rewriter.kernels.plain.layer_norm_mean`."""
    few = [1 if axis in over else size for axis, size in enumerate(x.shape)]
    (found,) = _mean_switch(len(few), tuple(over))(phase, (x,), (few,))
    return found


def layer_norm_deviations(x: Any, mean: Any, phase: Any) -> Any:
    """As :func:`rewriter.kernels.plain.layer_norm_deviations`."""
    (found,) = _deviations_switch()(phase, (x, mean), (x.shape,))
    return found


def layer_norm_output(
    original: Any,
    centred: Any,
    gamma: Any,
    beta: Any,
    phase: Any,
    over: Sequence[int],
    epsilon: float,
) -> Any:
    """As :func:`rewriter.kernels.plain.layer_norm_output`."""
    switch = _output_switch(tuple(over), epsilon)
    (value,) = switch(phase, (original, centred, gamma, beta), (centred.shape,))
    return connect(value, lambda upstream: (upstream,), original)
