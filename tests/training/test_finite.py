"""Data and tensors that are not finite: said by name in calibration, passed over in training."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import builders
import residuals
import rewriter
import tfmot_recipes
from builders import KERASES, fresh, keras_of
from residuals import is_set, ranges
from rewriter import kernels
from rewriter.errors import CalibrationError, ExportError
from rewriter.quantization import phases
from rewriter.training.schedule import batch_norms

keras = residuals.keras
SPOILS = (np.nan, np.inf, -np.inf)
DATA = builders.normal(48, 6)


def plain(keras, function=None):
    """Layers that pass on what is not finite; ``odd`` computes ``function``."""
    layers = keras.layers
    x = image = keras.Input((6,), name="image")
    x = layers.Dense(4, name="first")(x)
    if function is not None:
        x = layers.Lambda(function, output_shape=(4,), name="odd")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Dense(4, name="second")(x)
    return keras.Model(image, layers.BatchNormalization(name="last")(x), name="plain")


@pytest.fixture
def qat(keras):
    return rewriter.rewrite(plain(keras))


def spoiled(bad, sample=37):
    x = DATA.copy()
    x[sample, 3] = bad
    return x


def failing(qat, message, function, data):
    """The ranges, phases and weights are as before."""
    codes = [int(np.asarray(layer.phase)) for layer in phases.phased_layers(qat)]
    before, weights = ranges(qat), builders.weights_by_name(qat)
    with pytest.raises(CalibrationError, match=message):
        function(qat, data, batch_size=16, progress=False)
    assert ranges(qat) == before
    assert codes == [int(np.asarray(layer.phase)) for layer in phases.phased_layers(qat)]
    after = builders.weights_by_name(qat)
    assert all(np.array_equal(weights[name], after[name]) for name in weights)


@pytest.mark.parametrize("function", [rewriter.calibrate, rewriter.reestimate_batch_norm])
def test_data_that_are_not_finite(qat, function):
    for bad in SPOILS:
        message = rf"The input 'image.*' .* in sample 37 of the data.*Received: {bad}"
        failing(qat, message, function, spoiled(bad))
    rewriter.calibrate(qat, DATA, progress=False)
    failing(qat, message, function, tf.data.Dataset.from_tensor_slices(spoiled(bad)).batch(16))


@pytest.mark.parametrize("function", [rewriter.calibrate, rewriter.reestimate_batch_norm])
def test_the_first_layer_that_is_not_finite(keras, function):
    """The data are finite; a layer makes something else of one sample."""
    qat = rewriter.rewrite(plain(keras, lambda x: tf.where(x > 100.0, tf.math.log(0.0 * x), x)))
    x = DATA.copy()
    rewriter.calibrate(qat, x, progress=False)
    rewriter.set_phase(qat, "float")  # in which nothing is clipped
    x[21] *= 1e5
    failing(qat, "output of the layer 'odd' .* in sample 21 .*Received: -inf", function, x)


def test_a_sum_that_overflows_is_finite(keras):
    inputs = keras.Input((6,), name="image")
    half = keras.layers.Rescaling(1e-38)(inputs)
    qat = rewriter.rewrite(keras.Model(inputs, keras.layers.BatchNormalization()(half)))
    rewriter.calibrate(qat, np.full((8, 6), 1e38, np.float32), progress=False)
    assert is_set(ranges(qat))


def first(values):
    return next(iter(values.values()))


def test_a_batch_in_training_leaves_ranges_alone(keras):
    qat = rewriter.rewrite(plain(keras))
    step = tf.function(lambda x: qat(x, training=True))
    unset, weights = qat.get_weights(), builders.weights_by_name(qat)
    rewriter.calibrate(qat, DATA, progress=False, method="minmax")
    known = qat.get_weights()
    for start in (unset, known):
        for phase in ("observe", "quantize", "frozen"):
            for bad in SPOILS:
                qat.set_weights(start)
                frozen = phase == "frozen"
                rewriter.set_phase(qat, "quantize" if frozen else phase, freeze_ranges=frozen)
                before = ranges(qat)
                step(spoiled(bad))
                found = ranges(qat)
                assert first(found) == first(before), (phase, bad)
                # What is infinite is clipped to the range that there is, and finite from there on.
                if np.isnan(bad) or start is unset or phase != "quantize":
                    assert found == before, (phase, bad)
                step(10 * DATA)
                moved = ranges(qat) != before
                assert moved != (frozen and start is known), (phase, bad)
    # Clean training goes on, once the statistics are again those that a stock model would keep.
    qat.set_weights(known)
    rewriter.set_phase(qat, "quantize")
    for bad in SPOILS:
        step(spoiled(bad))
    for layer in batch_norms(qat):
        for name in ("moving_mean", "moving_variance"):
            getattr(layer, name).assign(weights[f"{layer.name}/{name}"])
    qat.compile("sgd", "mse")
    history = qat.fit(DATA, np.zeros((len(DATA), 4)), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert is_set(ranges(qat)) and all(np.isfinite(w).all() for w in qat.get_weights())


@pytest.mark.parametrize("clamp", ["none", "relu", "relu6"])
@pytest.mark.parametrize("code", range(4))
def test_the_range_of_one_tensor(code, clamp):
    """Before, after, and of a second tensor of the same batch; what a clamp removes counts not."""
    low, high = tf.Variable(-1.0), tf.Variable(2.0)
    options = {"rate": 0.5, "follow": True, "clamp": clamp}

    @tf.function
    def step(x, y):
        _, before = kernels.activation(x, low, high, code, **options)
        kernels.activation(y, low, high, code, **options, before=before)

    for bad in SPOILS:
        low.assign(-1.0)
        high.assign(2.0)
        x = tf.constant([-3.0, 1.0, bad, 5.0])
        step(x, x)
        removed = (clamp == "relu6" and not np.isnan(bad)) or (clamp == "relu" and bad < 0)
        if not removed:
            assert (float(low), float(high)) == (-1.0, 2.0)
        step(x, tf.constant([-9.0, 9.0]))
        assert np.isfinite([float(low), float(high)]).all()
        assert code in (0, 3) or (float(low), float(high)) != (-1.0, 2.0)


@pytest.mark.parametrize("kind", KERASES)
def test_quantizers_of_others(kind):
    for quantizer in (tfmot_recipes.moving_average(), tfmot_recipes.last_value()):
        recipe = rewriter.Recipe(activation_quantizer=quantizer)
        qat = rewriter.rewrite(plain(fresh(keras_of(kind))), recipe)
        rewriter.calibrate(qat, DATA, progress=False)
        step = tf.function(lambda x, qat=qat: qat(x, training=True))
        for bad in SPOILS:
            step(DATA * 3)
            before = ranges(qat)
            step(spoiled(bad))
            assert ranges(qat) == before
            step(DATA)
            assert ranges(qat) != before


def test_export_says_which_range_is_not_finite(qat, tmp_path):
    rewriter.calibrate(qat, DATA, progress=False)
    layers = residuals.claims.quantize_layers(qat)
    layers[1].reset_range()
    layers[2].range_variables["max_var"].assign(np.inf)
    names = f"{layers[1].name}, {layers[2].name} .from .* to inf"
    with pytest.raises(ExportError, match=f"2 activations have not been set or are not.*{names}"):
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
