"""Layers that act in training only, where their layers are called one by one, outside of the model."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, keras_of
from rewriter.errors import CalibrationError


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


class Brighter:
    """Twice as bright in training, which is the default of its call."""

    def call(self, inputs, training=True):
        return inputs * 2.0 if training else inputs


def augmentations(keras):
    layers, brighter = keras.layers, type("Brighter", (Brighter, keras.layers.Layer), {})
    return [layers.RandomFlip(), layers.RandomContrast(0.5), layers.RandomZoom(0.5), brighter()]


@pytest.mark.parametrize("which", range(4))
def test_layers_that_augment_images(keras, which, tmp_path):
    """Called by themselves they would train, by the default of their own ``call``."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = augmentations(keras)[which](inputs)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="bn")(x))
    samples = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 3)).astype(np.float32)
    qat = rewriter.rewrite(model, calibration_data=samples)
    rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    found = rewriter.verify(qat, tmp_path / "m.tflite", samples, progress=False)
    assert found.training.fault is None and found.snr > 25
    np.testing.assert_allclose(
        rewriter.fold(qat).predict(samples, verbose=0), model.predict(samples, verbose=0), atol=0.1
    )


def test_what_is_not_finite_is_found_as_in_inference(keras):
    """Where the first number that is not finite comes from is searched layer by layer."""

    class Broken(keras.layers.Layer):
        def call(self, inputs, training=True):
            return inputs / 0.0 if training else inputs

    inputs = keras.Input((4,), name="x")
    x = keras.layers.Dense(3, name="dense")(Broken(name="broken")(inputs))
    x = keras.layers.ReLU(name="relu")(keras.layers.BatchNormalization(name="bn")(x))
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(x))
    model.get_layer("last").set_weights([np.full((3, 2), np.inf, np.float32), np.zeros(2)])
    with pytest.raises(CalibrationError, match="layer 'last'"):
        rewriter.rewrite(model, calibration_data=np.ones((4, 4), np.float32))
