"""Quantizers of others whose variables are those of several replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def called(quantizer: Any, inputs: Any, training: Any, weights: dict[str, Any]) -> Any:
    """A quantizer's values, its variables being read and written where they are.

    Outside of the strategy that its variables belong to, as in calibration, TFMOT's moving averages
    cannot write them: there the quantizer is given those of the first replica, and all replicas get
    what it has made of them.

    Args:
      quantizer: of TFMOT's protocol.
      inputs, training, weights: its arguments.
    """
    shared = _shared(weights)
    if not shared or tf.distribute.has_strategy():
        return quantizer(inputs, training=training, weights=weights)
    first = {name: variable.values[0] for name, variable in shared.items()}
    values = quantizer(inputs, training=training, weights={**weights, **first})
    if training is not False:
        for name, variable in shared.items():
            variable.assign(tf.convert_to_tensor(first[name]))
    return values


def waits(weights: dict[str, Any]) -> bool:
    """Whether a quantizer with these variables may have to wait for other replicas.

    TFMOT's moving averages do when they are called in training, and nothing may wait inside of a
    condition.
    """
    return bool(_shared(weights)) and tf.distribute.has_strategy()


def chosen(
    condition: Any,
    quantized: Callable[[], Any],
    otherwise: Callable[[], Any],
    weights: dict[str, Any],
) -> Any:
    """``tf.cond`` with a quantizer in its first branch, which is computed outside where it waits.

    Args:
      condition: whether it is to be quantized, a scalar.
      quantized, otherwise: the branches.
      weights: the variables of the quantizer: they stay as they are where it is not to be.
    """
    if not waits(weights):
        return tf.cond(condition, quantized, otherwise)
    before = [(variable, tf.identity(variable)) for variable in _shared(weights).values()]
    values = quantized()
    for variable, value in before:
        variable.assign(tf.where(condition, tf.convert_to_tensor(variable), value))
    return tf.where(condition, values, otherwise())


def _shared(weights: dict[str, Any]) -> dict[str, Any]:
    return {
        name: variable
        for name, variable in weights.items()
        if isinstance(variable, tf.distribute.DistributedValues)
    }
