"""Weights of operators that stay as they are: which of them train, and how they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from builders import KERASES, fresh, keras_of


@pytest.fixture(params=KERASES)
def keras(request: Any) -> Any:
    return fresh(keras_of(request.param))


X = np.random.default_rng(0).normal(size=(32, 5, 13)).astype(np.float32)
FIXED = np.random.default_rng(1).normal(size=(5, 13)).astype(np.float32)  # no constant of a few


def shifted(keras: Any, kind: str) -> Any:
    """A block that adds something that no training moves to what a normalization makes."""

    class Shifted(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.bn = keras.layers.BatchNormalization(name="bn", momentum=0.5)

        def build(self, shape: Any) -> None:
            self.bn.build(shape)
            self.own = self.add_weight(name="own", shape=(13,), initializer="ones", trainable=False)
            self.built = True

        def call(self, x: Any, training: Any = None) -> Any:
            y = self.bn(x, training=training)
            shift = {"statistic": self.bn.moving_mean, "own": self.own, "constant": FIXED}[kind]
            return tf.tanh(y) * tf.convert_to_tensor(shift)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Shifted(name="block")


def _model(keras: Any, *blocks: Any) -> Any:
    x = inputs = keras.Input(X.shape[1:])
    x = keras.layers.Dense(13, name="dense")(x)
    for block in blocks:
        x = block(x)
    return keras.Model(inputs, x)


def _trained(keras: Any, model: Any, steps: int = 3) -> np.ndarray:
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
    for _ in range(steps):
        model.train_on_batch(X, np.ones_like(X))
    return np.asarray(model(X))


@pytest.mark.parametrize("kind", ["statistic", "own", "constant"])
def test_what_does_not_train_never_does(keras: Any, kind: str, tmp_path: Path) -> None:
    """Not when all layers are told to train again, which is how models are fine-tuned."""
    model = _model(keras, shifted(keras, kind))
    qat = rewriter.rewrite(model)
    path = tmp_path / "model.keras"
    qat.save(path)
    loaded = rewriter.load_model(path)
    for each in (model, qat, loaded):
        each.trainable = False
        assert not each.trainable_variables
        each.trainable = True
        assert len(each.trainable_variables) == 4  # of the layer Dense and of the normalization
    before = np.asarray(model(X))
    after = _trained(keras, model)
    assert np.abs(after - before).max() > 0.05
    for each in (qat, loaded):
        np.testing.assert_allclose(_trained(keras, each), after, atol=1e-4)


def test_a_trained_model_of_several_is_saved_as_hdf5(keras: Any, tmp_path: Path) -> None:
    """tf_keras keeps an optimizer's values by the names of the variables alone."""

    class Scaled(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.bn = keras.layers.BatchNormalization(name="bn")

        def build(self, shape: Any) -> None:
            self.bn.build(shape)
            self.one = self.add_weight(name="one", shape=(13,), initializer="ones")
            self.two = self.add_weight(name="two", shape=(13,), initializer="ones")
            self.built = True

        def call(self, x: Any) -> Any:
            one, two = map(tf.convert_to_tensor, (self.one, self.two))
            return tf.tanh(tf.tanh(self.bn(x)) * one) + two

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    qat = rewriter.rewrite(_model(keras, Scaled(name="block")))
    _trained(keras, qat)
    path = tmp_path / "model.h5"
    qat.save(path)
    np.testing.assert_allclose(np.asarray(rewriter.load_model(path)(X)), np.asarray(qat(X)))


def test_an_operation_that_is_given_a_variable_of_a_layer_inside(keras: Any) -> None:
    """Keras 3 takes its own variables for tensors; they are those of the layer inside."""

    class Doubled(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.bn = keras.layers.BatchNormalization(name="bn")

        def build(self, shape: Any) -> None:
            self.bn.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            return self.bn(x) + x * self.bn.gamma

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    model = _model(keras, Doubled(name="block"))
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    before = np.asarray(model(X))
    np.testing.assert_allclose(np.asarray(qat(X)), before, atol=1e-5)
    after = _trained(keras, model)
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(_trained(keras, qat), after, atol=1e-4)
