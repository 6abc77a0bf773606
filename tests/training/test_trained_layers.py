"""Reaching the layers of the original in a rewritten model: freezing them as one is used to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from builders import conv_bn_relu, fresh, keras_of
from checks import both

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 8, 8, 3)).astype(np.float32)
Y = RNG.integers(0, 3, 48)


def net(keras: Any) -> Any:
    """Norms in a convolution, alone, and in a model inside that has a layer of the same name."""
    layers = fresh(keras, 3).layers
    inner = keras.Input((8, 8, 4))
    outer = keras.Input((8, 8, 3))
    inside = keras.Model(inner, conv_bn_relu(layers, inner, "stem", 4), name="inside")
    x = inside(conv_bn_relu(layers, outer, "stem", 4))
    x = layers.BatchNormalization(name="alone")(layers.MaxPooling2D()(x))
    x = layers.LayerNormalization(name="rows")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(outer, layers.Dense(3, name="head")(x), name="net")
    return fitted(keras, model, 0.02)


def fitted(keras: Any, model: Any, rate: float) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model


def is_norm(layer: Any) -> bool:
    return type(layer).__name__ in ("BatchNormalization", "FusedBatchNormalization")


def original_layers(model: Any) -> list[Any]:
    found = [layer for layer in model.layers if not hasattr(layer, "layers")]
    return found + model.get_layer("inside").layers


CHOICES: dict[str, Callable[[Any], bool]] = {
    "only the norms": is_norm,
    "all but the norms": lambda layer: not is_norm(layer),
    "not the convolutions": lambda layer: type(layer).__name__ != "Conv2D",
    "only the head": lambda layer: layer.name == "head",
}


@both
@pytest.mark.parametrize("choice", CHOICES)
def test_freezing_as_in_the_original(flavour: str, choice: str, tmp_path: Path) -> None:
    keras, trains = keras_of(flavour), CHOICES[choice]
    model = net(keras)
    quantized = rewriter.rewrite(model)
    for layer in original_layers(model):
        layer.trainable = trains(layer)
    for layer in rewriter.trained_layers(quantized).values():
        layer.trainable = trains(layer)
    assert len(quantized.trainable_weights) == len(model.trainable_weights) > 0
    before = model.predict(X, verbose=0)
    expected = fitted(keras, model, 0.5).predict(X, verbose=0)
    found = fitted(keras, quantized, 0.5).predict(X, verbose=0)
    assert np.abs(expected - before).max() > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-4)
    quantized.save(tmp_path / "model.keras")
    again = rewriter.trained_layers(rewriter.load_model(tmp_path / "model.keras"))
    flags = {name: layer.trainable for name, layer in rewriter.trained_layers(quantized).items()}
    assert {name: layer.trainable for name, layer in again.items()} == flags


@both
def test_names_and_classes(flavour: str) -> None:
    keras = keras_of(flavour)
    quantized = rewriter.rewrite(net(keras))
    found = rewriter.trained_layers(quantized)
    ours = getattr(rewriter.layers, flavour).FusedBatchNormalization
    norms = [name for name, layer in found.items() if isinstance(layer, ours)]
    assert norms == ["stem_bn", "inside_stem/stem_bn", "alone"]
    assert {"stem", "rows", "head"} <= set(found) and len(found) == 7
    assert {id(v) for layer in found.values() for v in layer.weights} <= set(
        map(id, quantized.weights)
    )
    trained = {id(v) for v in quantized.trainable_weights}
    assert {id(v) for layer in found.values() for v in layer.trainable_weights} == trained


@both
def test_in_a_model_around_it(flavour: str) -> None:
    keras = keras_of(flavour)
    quantized = rewriter.rewrite(net(keras))
    around = keras.Sequential([keras.Input((8, 8, 3)), quantized])
    one, other = rewriter.trained_layers(quantized), rewriter.trained_layers(around)
    assert list(map(id, other.values())) == list(map(id, one.values()))


@both
def test_weights_of_a_users_layer(flavour: str) -> None:
    """Of a kernel that is computed, and of an operation that became no stock layer."""
    keras = fresh(keras_of(flavour))

    class Masked(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(6, 6))
            self.shift = self.add_weight(name="shift", shape=(4, 6))
            super().build(shape)

        def call(self, x: Any) -> Any:
            kernel, shift = map(tf.convert_to_tensor, (self.kernel, self.shift))
            return tf.matmul(x, kernel * np.tri(6, dtype=np.float32)) * shift

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    inputs = keras.Input((4, 6))
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(6, name="dense")(inputs))
    quantized = rewriter.rewrite(keras.Model(inputs, Masked(name="own")(x)))
    found = rewriter.trained_layers(quantized)
    assert len(found) == 4
    trained = {id(v) for v in quantized.trainable_weights}
    assert {id(v) for layer in found.values() for v in layer.trainable_weights} == trained
