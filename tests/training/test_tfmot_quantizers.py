"""TFMOT's quantizers in our models, and ours in TFMOT's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot

import builders
import claims
import residuals
import rewriter
from builders import KERASES, keras_of
from residuals import X
from rewriter import Recipe, kernels
from rewriter.errors import ExportError
from rewriter.quantization import phases
from rewriter.quantization.quantizers import FixedQuantizer, PerChannelQuantizer, RangeQuantizer
from tfmot_recipes import KERNEL, last_value, moving_average

keras = residuals.keras


# TFMOT's in our models


TFMOT = {
    "last-value-activations": Recipe(activation_quantizer=last_value()),
    "moving-average-activations": Recipe(activation_quantizer=moving_average()),
    "kernels": Recipe(kernel_quantizer=last_value(**KERNEL)),
    "both": Recipe(kernel_quantizer=last_value(**KERNEL), activation_quantizer=moving_average()),
}


def trained(keras, recipe, steps=10):
    """TFMOT's quantizers learn their ranges in training; a moving average takes its time."""
    qat = builders.calibrated(builders.trained_residual(keras), X, recipe)
    assert rewriter.get_phase(qat) == "quantize"
    for _ in range(steps):
        qat(X, training=True)
    return qat


@pytest.mark.parametrize("name", TFMOT)
def test_tfmot_quantizers(keras, name, tmp_path):
    """Train, save, load, export; the file agrees with the twin, and the twin with the model."""
    recipe = TFMOT[name]
    keras.utils.set_random_seed(0)
    qat = trained(keras, recipe)
    kinds = {type(layer.quantizer).__name__ for layer in claims.quantize_layers(qat)}
    if recipe.activation_quantizer is not None:
        assert type(recipe.activation_quantizer).__name__ in kinds
    qat.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    qat.fit(X, np.arange(len(X)) % 5, epochs=1, verbose=0)
    expected = np.asarray(qat(X, training=False))

    path = tmp_path / "qat.keras"
    qat.save(path)
    again = keras.models.load_model(path)
    assert np.array_equal(np.asarray(again(X, training=False)), expected)
    qat.save_weights(str(tmp_path / "qat.weights.h5"))

    twin = rewriter.fold(again)
    claims.check_file(again, twin, X, tmp_path)
    found = np.asarray(twin(X))
    assert np.abs(found - expected).max() < 0.1
    assert np.mean(found.argmax(-1) == expected.argmax(-1)) >= 0.95


def test_tfmot_activation_ranges_are_used(keras):
    """The grid in the file is TFMOT's range, not one of ours: +-6, then a moving average."""
    recipe = Recipe(activation_quantizer=moving_average())
    qat = builders.calibrated(builders.trained_residual(keras), X, recipe)
    for _ in range(3):
        qat(X, training=True)
    updates = -(-len(X) // 32) + 3  # batches of the calibration, then three more
    moved = 1 - 0.999**updates
    layer = claims.quantize_layers(qat)[0]
    low, high = (float(np.asarray(layer.range_variables[key])) for key in ("min_var", "max_var"))
    # A batch of the calibration may reach less far than all of X.
    assert 0.7 * moved < (6 - high) / (6 - X.max()) < 1.3 * moved
    assert 0.7 * moved < (6 + low) / (6 + X.min()) < 1.3 * moved
    claims.check_grids(qat)


def test_tfmot_per_axis_kernels(keras, tmp_path):
    """``per_axis=True`` gives each output channel its own range."""
    recipe = Recipe(kernel_quantizer=last_value(**{**KERNEL, "per_axis": True}))
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(4, name="scores")(layers.Flatten()(x))
    model = builders.randomise_all(keras.Model(image, x), 1)
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    qat = builders.calibrated(model, data, recipe)
    for _ in range(2):
        qat(data, training=True)
    expected = np.asarray(qat(data, training=False))
    twin = rewriter.fold(qat)
    found = np.asarray(twin(data))
    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()
    claims.check_file(qat, twin, data, tmp_path)


def test_asymmetric_kernels_are_refused_at_export(keras, tmp_path):
    """LiteRT has no asymmetric int8 kernels: better no file than a wrong one."""
    recipe = Recipe(kernel_quantizer=last_value(num_bits=4))
    model = builders.trained_residual(keras)
    for layer in model._flatten_layers():
        if layer.name in ("stem", "pw", "scores"):
            weights = layer.get_weights()
            layer.set_weights([np.abs(weights[0]) * np.linspace(0.3, 1, weights[0].shape[-1]),
                               *weights[1:]])  # fmt: skip
    qat = builders.calibrated(model, X, recipe)
    qat(X, training=True)
    with pytest.raises(ExportError, match="symmetric.*grid|grid.*symmetric"):
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


# Ours in TFMOT


def _quantize_config():
    class Ours(tfmot.quantization.keras.QuantizeConfig):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, PerChannelQuantizer(channel_axes=(-1,)))]

        def get_activations_and_quantizers(self, layer):
            return [(layer.activation, RangeQuantizer())]

        def set_quantize_weights(self, layer, quantize_weights):
            (layer.kernel,) = quantize_weights

        def set_quantize_activations(self, layer, quantize_activations):
            (layer.activation,) = quantize_activations

        def get_output_quantizers(self, layer):
            return []

        def get_config(self):
            return {}

    return Ours()


@pytest.mark.skipif("tf_keras" not in KERASES, reason="TFMOT is for tf_keras only")
def test_ours_in_tfmot():
    """TFMOT's wrapper with our quantizers trains, and quantizes the kernel per channel."""
    keras = keras_of("tf_keras")
    keras.utils.set_random_seed(0)
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            annotate(keras.layers.Conv2D(4, 3, activation="relu"), _quantize_config()),
            keras.layers.Flatten(),
            annotate(keras.layers.Dense(3), _quantize_config()),
        ]
    )
    with tfmot.quantization.keras.quantize_scope({"Ours": _quantize_config().__class__}):
        model = tfmot.quantization.keras.quantize_apply(
            tfmot.quantization.keras.quantize_annotate_model(model)
        )
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    model.compile(keras.optimizers.SGD(1e-2), "mse")
    losses = model.fit(data, np.zeros((16, 3)), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    wrapped = next(layer for layer in model.layers if "conv2d" in layer.name)
    ((kernel, quantizer, weights),) = wrapped._weight_vars
    assert isinstance(quantizer, PerChannelQuantizer)
    found = np.asarray(quantizer(kernel, training=False, weights=weights))
    scale = np.abs(np.asarray(kernel)).max(axis=(0, 1, 2)) / 127
    np.testing.assert_allclose(found, np.rint(np.asarray(kernel) / scale) * scale, atol=1e-6)


@pytest.mark.parametrize(
    "make", [PerChannelQuantizer, RangeQuantizer, lambda: FixedQuantizer(0, 1)]
)
def test_protocol(make):
    """build, call and get_config as TFMOT calls them, with a tf_keras layer."""
    layer = keras_of("tf_keras").layers.Layer()
    quantizer = make()
    weights = quantizer.build(tf.TensorShape([3, 3, 2, 4]), "x", layer)
    x = tf.constant(np.random.default_rng(0).uniform(0, 0.9, (3, 3, 2, 4)), tf.float32)
    y = np.asarray(quantizer(x, training=True, weights=weights))
    assert 0 < np.abs(y - np.asarray(x)).max() < 0.01
    z = np.asarray(quantizer(x, training=False, weights=weights))
    assert np.array_equal(y, z)
    again = type(quantizer)(**quantizer.get_config())
    assert again.get_config() == quantizer.get_config()


@pytest.mark.parametrize("bits", [3, 8])
def test_a_fixed_range_has_its_own_width(bits):
    x = np.linspace(-0.2, 1.3, 4000).astype(np.float32)
    y = np.asarray(FixedQuantizer(0, 1, bits)(tf.constant(x), training=False, weights={}))
    steps = 2**bits - 1
    levels = np.unique(y)
    assert len(levels) == min(steps, len(x)) + 1
    np.testing.assert_allclose(levels * steps, np.rint(levels * steps), atol=1e-4)
    assert np.abs(y - np.clip(x, 0, 1)).max() < 0.501 / steps  # to the nearest


@pytest.mark.parametrize("frozen", [False, True])
def test_an_unset_range_becomes_that_of_the_batch(frozen):
    """Nothing was observed: with a frozen range too, the first batch gives it, and it stays."""
    quantizer = RangeQuantizer(momentum=0.9)
    low, high = tf.Variable(np.inf), tf.Variable(-np.inf)
    phase = tf.Variable(phases.QUANTIZE_FROZEN if frozen else phases.QUANTIZE)
    weights = {"min_var": low, "max_var": high}
    function = tf.function(
        lambda x: kernels.tensor(quantizer.switch(x, phase.read_value(), weights, True)[0])
    )
    y = function(tf.constant([-1.0, 0.5, 3.0]))
    assert (float(low), float(high)) == (-1.0, 3.0)
    np.testing.assert_allclose(y, [-1.0, 0.5, 3.0], atol=4 / 255)
    function(tf.constant([-2.0, 0.5, 5.0]))
    moved = (-1.0, 3.0) if frozen else (-1.1, 3.2)
    np.testing.assert_allclose((float(low), float(high)), moved, rtol=1e-6)
