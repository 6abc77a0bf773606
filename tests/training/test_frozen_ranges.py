"""``trainable = False`` stops ranges, and a schedule does not skip a step."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import rewriter
import tfmot_recipes
from builders import KERASES, fresh, keras_of
from residuals import ranges
from rewriter import QuantizationSchedule, Recipe
from rewriter.quantization import phases
from rewriter.training.schedule import batch_norms

X = builders.normal(32, 6)
both = pytest.mark.parametrize("kind", KERASES)


def _qat(kind, recipe=None):
    keras = fresh(keras_of(kind))
    layers = keras.layers
    x = image = keras.Input((6,), name="image")
    x = layers.Dense(4, name="first")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.LayerNormalization(name="layer_norm")(x)
    x = layers.Dense(4, activation="softmax", name="second")(x)
    qat = rewriter.rewrite(keras.Model(image, x), recipe)
    return rewriter.calibrate(qat, X, progress=False, method="minmax")


def _fit(qat):
    """How the ranges move."""
    before = ranges(qat)
    qat.fit(3 * X, np.zeros((len(X), 4)), verbose=0)
    return {key for key, pair in ranges(qat).items() if pair != before[key]}


@both
@pytest.mark.parametrize("phase", ["observe", "quantize"])
@pytest.mark.parametrize("quantizer", ["ours", "tfmot"])
def test_a_frozen_model(kind, phase, quantizer):
    recipe = Recipe(activation_quantizer=tfmot_recipes.moving_average())
    qat = _qat(kind, recipe if quantizer == "tfmot" else None)
    rewriter.set_phase(qat, phase)
    qat.trainable = False
    qat.compile("sgd", "mse")
    assert _fit(qat) == set()
    qat.trainable = True
    qat.compile("sgd", "mse")
    # The others are of what the batch has normalized, however large it is.
    assert {key.partition(":")[2] for key in _fit(qat)} >= {"image_quantize", "alone_quantize"}
    # After compile, as in Keras: it holds from the next time on that the step is traced.
    qat.trainable = False
    qat.compile("sgd", "mse")
    assert _fit(qat) == set()


@both
def test_a_frozen_model_is_calibrated_and_takes_a_first_range(kind):
    qat = _qat(kind)
    known = ranges(qat)
    qat.trainable = False
    rewriter.calibrate(qat, 2 * X, progress=False)
    assert ranges(qat) != known
    for layer in phases.phased_layers(qat):
        if hasattr(layer, "reset_range"):
            layer.reset_range()
    qat.compile("sgd", "mse")
    assert _fit(qat)
    assert all(np.isfinite(pair).all() for pair in ranges(qat).values())
    assert _fit(qat) == set()


@both
def test_one_frozen_layer(kind):
    qat = _qat(kind)
    layer = qat.get_layer("relu")
    layer.trainable = False
    qat.compile("sgd", "mse")
    moved = _fit(qat)
    assert moved and not any(key.endswith(":relu") for key in moved)


@both
@pytest.mark.parametrize(("at", "takes_effect"), [(0, 0), (2, 0), (4, 4), (5, 4), (7, 4), (9, 8)])
def test_steps_per_execution(kind, at, takes_effect):
    """10 steps, 4 at a time: the last execution has 2."""
    qat = _qat(kind)
    rewriter.set_phase(qat, "float")
    keras = keras_of(kind)
    seen = []

    class Recorder(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append((batch, rewriter.get_phase(self.model)))

    qat.compile("sgd", "mse", steps_per_execution=4)
    schedule = QuantizationSchedule(at, freeze_batch_norm_at=at, observe=False)
    x = np.concatenate([X, X[:8]])
    qat.fit(x, np.zeros((40, 4)), batch_size=4, verbose=0, callbacks=[schedule, Recorder()])
    expected = [(b, "quantize" if b >= takes_effect else "float") for b in (0, 4, 8)]
    assert seen == expected
    frozen = [int(np.asarray(n.frozen)) for n in batch_norms(qat)]
    assert set(frozen) == {1}


@both
def test_a_step_beyond_the_last_execution_of_an_epoch_waits(kind):
    qat = _qat(kind)
    rewriter.set_phase(qat, "float")
    qat.compile("sgd", "mse", steps_per_execution=4)
    schedule = QuantizationSchedule(11, observe=False)
    x = np.concatenate([X, X[:8]])
    options = {"batch_size": 4, "verbose": 0, "callbacks": [schedule]}
    qat.fit(x, np.zeros((40, 4)), **options)
    assert rewriter.get_phase(qat) == "float"
    qat.fit(x, np.zeros((40, 4)), **options)
    assert rewriter.get_phase(qat) == "quantize"
