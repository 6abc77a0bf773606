"""Functions that stop their gradient train by what is left of it, also where they are a clamp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from builders import fresh, keras_of
from checks import both

X = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
stop = tf.stop_gradient

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: x + stop(tf.nn.relu(x) - x),
    "relu6": lambda x: x + stop(tf.nn.relu6(x) - x),
    "hard_tanh": lambda x: x + stop(tf.clip_by_value(x, -1.0, 1.0) - x),
    "values": lambda x: stop(tf.nn.relu(x)) + x - stop(x),
}


def users_layer(keras: Any, function: Callable[[Any], Any]) -> Any:
    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return function(x)

    return Own(name="own")


PLACES: dict[str, Callable[[Any, Callable[[Any], Any]], list[Any]]] = {
    "layer": lambda k, f: [k.layers.Dense(5), users_layer(k, f)],
    "Lambda": lambda k, f: [k.layers.Dense(5), k.layers.Lambda(f)],
    "Activation": lambda k, f: [k.layers.Dense(5), k.layers.Activation(f)],
    "host": lambda k, f: [k.layers.Dense(5, activation=f)],
}


@both
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_the_original(name, place, flavour, tmp_path: Path):
    keras = fresh(keras_of(flavour), 0)
    x = inputs = keras.Input((6,))
    for layer in (*PLACES[place](keras, FUNCTIONS[name]), keras.layers.Dense(2)):
        x = layer(x)
    model = keras.Model(inputs, x)
    qat = rewriter.rewrite(model)

    def gradients(trained: Any) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(trained(X, training=True)))
        return [np.asarray(g) for g in tape.gradient(loss, trained.trainable_variables)]

    for ours, theirs in zip(gradients(qat), gradients(model), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    rewriter.calibrate(qat, X, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert found.parts_at is None
