"""The recipe: JSON and validation, the ranges' momentum, and a user's own quantizer."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import residuals
import rewriter
from residuals import X
from rewriter import Recipe
from rewriter.errors import RecipeError
from rewriter.quantization.quantizers import PerChannelQuantizer, RangeQuantizer
from tfmot_recipes import KERNEL, last_value, moving_average

keras = residuals.keras


# A value


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().range_momentum = 0.5


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(range_momentum=0.9),
        Recipe(kernel_quantizer=PerChannelQuantizer(num_bits=8)),
        Recipe(activation_quantizer=RangeQuantizer(momentum=0.5)),
        Recipe(kernel_quantizer=last_value(**KERNEL), activation_quantizer=moving_average()),
    ],
    ids=["default", "momentum", "kernel", "activation", "tfmot"],
)
def test_json_round_trip(recipe, tmp_path):
    text = recipe.to_json()
    json.loads(text)
    again = Recipe.from_json(text)
    assert again.to_dict() == recipe.to_dict()
    assert type(again.kernel_quantizer) is type(recipe.kernel_quantizer)
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert Recipe.load(path).to_dict() == recipe.to_dict()
    assert Recipe.from_dict(recipe.to_dict()).to_json() == text


BAD = {
    "unknown field": ('{"kernel_bits": 8}', "kernel_bits"),
    "momentum of 1": ('{"range_momentum": 1.0}', "range_momentum.*1.0"),
    "negative momentum": ('{"range_momentum": -0.1}', "range_momentum.*-0.1"),
    "momentum as text": ('{"range_momentum": "0.9"}', "range_momentum.*'0.9'"),
    "momentum as truth": ('{"range_momentum": true}', "range_momentum.*True"),
    "a number as quantizer": ('{"kernel_quantizer": 8}', "kernel_quantizer.*8"),
    "no class": ('{"activation_quantizer": {"bits": 8}}', "class"),
    "unknown class": (
        '{"activation_quantizer": {"class": "somewhere.Mine", "config": {}}}',
        "somewhere.Mine.*register_quantizer",
    ),
    "missing class": (
        '{"activation_quantizer": {"class": "rewriter.quantizers.Nothing", "config": {}}}',
        "rewriter.quantizers.Nothing",
    ),
    "missing module": (
        '{"activation_quantizer": {"class": "rewriter.nothing.At.All", "config": {}}}',
        "rewriter.nothing.At.All",
    ),
    "bad argument": (
        '{"kernel_quantizer": {"class": "rewriter.quantizers.PerChannelQuantizer", '
        '"config": {"bits": 3}}}',
        "kernel_quantizer.*bits",
    ),
    "pipeline of a wrong field": ('{"batch_norm_pipeline": {"gama": null}}', "gama"),
    "a list": ("[1, 2]", r"JSON object.*\[1, 2\]"),
    "not JSON": ("{", "not valid JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_recipes_name_the_field(kind):
    text, message = BAD[kind]
    with pytest.raises(RecipeError, match=message):
        Recipe.from_json(text)


@pytest.mark.parametrize(
    "value",
    [PerChannelQuantizer, object(), lambda x: x, "int8"],
    ids=["class", "object", "function", "name"],
)
def test_not_a_quantizer(value):
    with pytest.raises(RecipeError, match="kernel_quantizer.*TFMOT"):
        Recipe(kernel_quantizer=value)
    with pytest.raises(RecipeError, match="activation_quantizer"):
        Recipe(activation_quantizer=value)


def test_bad_files(tmp_path):
    with pytest.raises(RecipeError, match="nothing.json"):
        Recipe.load(tmp_path / "nothing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="binary.json"):
        Recipe.load(tmp_path / "binary.json")


# Momentum


def test_range_momentum(keras):
    qat = builders.calibrated(builders.trained_residual(keras), X, Recipe(range_momentum=0.5))
    qat(3 * X, training=True)
    layer = claims.quantize_layers(qat)[0]
    found = float(np.asarray(layer.range_variables["max_var"]))
    assert found == pytest.approx(2 * X.max(), rel=1e-5)


# A user's own quantizer


@rewriter.register_quantizer
class Coarse:
    """Kernels on a grid of 31 steps for each channel; every such grid is an int8 grid too."""

    def __init__(self, steps=15):
        self.steps = steps

    def build(self, tensor_shape, name, layer):
        return {"calls": layer.add_weight(name + "_calls", initializer="zeros", trainable=False)}

    def __call__(self, inputs, training, weights, **kwargs):
        if training:
            weights["calls"].assign_add(1.0)
        scale = tf.reduce_max(tf.abs(inputs)) / self.steps
        return inputs + tf.stop_gradient(tf.round(inputs / scale) * scale - inputs)

    def get_config(self):
        return {"steps": self.steps}


def test_own_quantizer(keras, tmp_path):
    recipe = Recipe.from_json(Recipe(kernel_quantizer=Coarse(15)).to_json())
    assert recipe.kernel_quantizer.steps == 15
    model = builders.trained_residual(keras)
    qat = builders.calibrated(model, X, recipe)
    host = next(h for h in builders.hosts(qat) if h.batch_norm is None)
    found = np.asarray(host.quantized_kernels()[0])
    scale = np.abs(np.asarray(host.kernel)).max() / 15
    assert np.abs(found / scale - np.rint(found / scale)).max() < 1e-3
    qat(X, training=True)
    path = tmp_path / "qat.keras"
    qat.save(path)
    expected = np.asarray(qat(X, training=False))
    again = keras.models.load_model(path)
    assert np.array_equal(np.asarray(again(X, training=False)), expected)
