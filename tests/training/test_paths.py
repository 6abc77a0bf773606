"""What optimizers choose variables by, names and Keras 3's paths, is the original model's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import rewriter
import user_blocks
from builders import conv_bn_relu, fresh, keras_of
from checks import both
from rewriter import layers as our_layers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 8, 8, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 48)


def net(keras: Any) -> Any:
    """Layers at the top, in models inside, and in a layer of a user's."""
    layers = fresh(keras, 3).layers
    inside = keras.Sequential(name="encoder")
    for layer in (
        layers.SeparableConv2D(4, 3, padding="same", name="separable"),
        layers.BatchNormalization(name="separable_bn"),
        layers.PReLU(shared_axes=(1, 2), name="slopes"),
        layers.LayerNormalization(name="rows"),
        layers.BatchNormalization(name="alone"),
    ):
        inside.add(layer)
    image = keras.Input((8, 8, 4), name="image")
    x = inside(conv_bn_relu(layers, image, "stem", 4))
    x = user_blocks.residual(keras)(x)
    x = layers.Reshape((8, 32))(x)
    x = layers.TimeDistributed(layers.Dense(5, name="inner"), name="steps")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, layers.Dense(3, name="head")(x), name="net")


def paths(model: Any) -> list[str]:
    """Of all weights of the original, sorted: those of the layers' own scalars are left out."""
    own = ("phase", "frozen", "range_min", "range_max")
    found = [str(getattr(v, "path", v.name)) for v in model.variables]
    return sorted(path for path in found if not path.split(":")[0].endswith(own))


@both
def test_the_rewritten_model_has_those_of_the_original(flavour):
    model = net(keras_of(flavour))
    qat = rewriter.rewrite(model)
    if flavour == "keras":
        there = {"encoder/separable_bn/gamma", "block/conv/kernel", "steps/inner/kernel"}
        assert there <= set(paths(model))
    assert paths(qat) == paths(model)


def reloaded(model: Any, folder: Path, suffix: str) -> Any:
    model.save(folder / f"m{suffix}")
    return rewriter.load_model(folder / f"m{suffix}")


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    "clone_model": lambda model, _: keras.models.clone_model(model),
    "json": lambda model, _: keras.models.model_from_json(model.to_json()),
    "keras": lambda model, folder: reloaded(model, folder, ".keras"),
    "h5": lambda model, folder: reloaded(model, folder, ".h5"),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_and_files_keep_those_of_our_layers(name, tmp_path):
    layers = fresh(keras, 3).layers
    inside = keras.Sequential(name="encoder")
    inside.add(layers.Conv2D(4, 3, padding="same", name="conv"))
    inside.add(layers.BatchNormalization(name="norm"))
    inside.add(layers.MaxPooling2D(name="pool"))
    inside.add(layers.BatchNormalization(name="alone"))
    image = keras.Input((8, 8, 4), name="image")
    x = layers.GlobalAveragePooling2D(name="mean")(inside(image))
    model = keras.Model(image, layers.Dense(3, name="head")(x), name="net")
    qat = rewriter.rewrite(model)
    assert paths(COPIES[name](qat, tmp_path)) == paths(qat) == paths(model)


def test_optimizers_by_path_train_as_they_do_the_original():
    optimizers = keras.optimizers
    if not hasattr(optimizers, "OptimizerMap"):
        pytest.skip("this Keras 3 has one optimizer for all variables")

    def losses(model: Any) -> list[float]:
        by_path = {
            "encoder/.*": optimizers.SGD(0.3),
            "stem_bn/.*": optimizers.SGD(0.2),
            "head/kernel": optimizers.SGD(0.1),
        }
        model.compile(
            optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(1e-3), by_path)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        history = model.fit(X, Y, batch_size=16, epochs=3, shuffle=False, verbose=0)
        return list(history.history["loss"])

    model = net(keras)
    qat = rewriter.rewrite(model)
    np.testing.assert_allclose(losses(qat), losses(model), rtol=2e-5)


def test_places_that_are_no_paths_are_refused():
    layer = our_layers.keras.FusedBatchNormalization(name="norm")
    config = {**layer.get_config(), "places": ["encoder"]}
    with pytest.raises(ValueError, match=r"'places' must map parts.*\['encoder'\]"):
        type(layer).from_config(config)
