"""Calibration says where training would see other statistics than inference does."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both
from rewriter.reading import from_keras
from rewriter.training.statistics import Disagreement, disagreements, of_training

X = (0.02 * np.random.default_rng(0).normal(size=(64, 8, 8, 3)) + 0.3).astype(np.float32)


def slow(flavour: str) -> Any:
    """Statistics that have hardly moved from where they start: momentum near 1, few steps."""
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(2)
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for number in range(3):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv_{number}")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.999, name=f"bn_{number}")(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x, name="slow")


def found(qat: Any) -> list[Disagreement]:
    return disagreements(qat, of_training(from_keras.read(qat)), X)


@both
def test_moving_statistics_that_lag_behind(flavour: str) -> None:
    qat = rewriter.rewrite(slow(flavour))
    before = [np.array(v) for v in qat.variables if "moving" in getattr(v, "path", v.name)]
    with pytest.warns(
        UserWarning, match=r"statistics of \d of 3 batch normal.*reestimate_batch_norm"
    ):
        rewriter.calibrate(qat, X, progress=False)
    after = [np.array(v) for v in qat.variables if "moving" in getattr(v, "path", v.name)]
    assert len(before) == 6
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert rewriter.get_phase(qat) == "quantize"
    # What it says to do helps: the statistics agree, and training in integers goes on.
    rewriter.set_phase(qat, "float")
    rewriter.reestimate_batch_norm(qat, X, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rewriter.calibrate(qat, X, progress=False)


@both
def test_gradients_after_reestimation(flavour: str) -> None:
    """Those of phase float: with ranges of statistics that lag behind, they grow by every layer."""
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(2)
    x = inputs = keras.Input((8, 8, 3))
    for size in (3, 1, 3, 1, 3, 1):
        x = layers.Conv2D(4, size, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.999, epsilon=1e-3)(x))
    x = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    qat = rewriter.rewrite(keras.Model(inputs, x))

    def largest() -> float:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(qat(tf.constant(X[:16]), training=True) - 1.0))
        weights = [v if isinstance(v, tf.Variable) else v.value for v in qat.trainable_variables]
        found = tape.gradient(loss, weights)
        return max(float(tf.reduce_max(tf.abs(tf.convert_to_tensor(g)))) for g in found)

    rewriter.set_phase(qat, "float")
    in_float = largest()
    rewriter.reestimate_batch_norm(qat, X, progress=False)
    rewriter.calibrate(qat, X, progress=False)
    assert 0.5 * in_float < largest() < 2 * in_float
    qat.compile(keras.optimizers.Adam(1e-3), "mse")
    history = qat.fit(X, np.ones((64, 3), np.float32), epochs=3, batch_size=16, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@both
def test_only_what_training_would_use(flavour: str) -> None:
    """Frozen normalizations keep their statistics in training too."""
    qat = rewriter.rewrite(slow(flavour))
    assert found(qat)
    rewriter.freeze_batch_norm(qat)
    assert found(qat) == []
    rewriter.freeze_batch_norm(qat, False)
    qat.trainable = False
    assert found(qat) == []


@both
def test_calls_that_are_inference_in_training(flavour: str) -> None:
    """``base(x, training=False)``, as transfer learning does: only the head follows the batch."""
    keras = KERASES[flavour]
    inputs = keras.Input((8, 8, 3))
    base = slow(flavour)
    if flavour == "keras":
        base.trainable = False  # a model of it gives every layer its own flag
    x = base(inputs, training=False)
    x = keras.layers.BatchNormalization(name="own")(keras.layers.Dense(4)(x))
    qat = rewriter.rewrite(keras.Model(inputs, x))
    assert {each.name for each in found(qat)} == {"own"}


@both
def test_statistics_of_the_data_are_not_worth_a_word(flavour: str) -> None:
    keras = KERASES[flavour]
    model = slow(flavour)
    for layer in model.layers:
        if hasattr(layer, "moving_variance"):
            layer.momentum = 0.7
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(X, np.zeros((64, 3), np.float32), epochs=8, batch_size=16, verbose=0)
    assert found(rewriter.rewrite(model)) == []
