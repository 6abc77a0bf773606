"""The statistics of the normalizations: frozen and re-estimated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import oracles
import rewriter
from rewriter.errors import CalibrationError, UnsupportedModelError
from rewriter.quantization import phases
from rewriter.training import schedule
from small_models import VARIABLES, batches, compiled, with_dropout

both = pytest.mark.parametrize("kind", builders.KERASES)


def statistics(model: Any) -> dict[str, np.ndarray]:
    found = builders.weights_by_name(model)
    return {name: value.copy() for name, value in found.items() if "/moving_" in name}


# Frozen


@both
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layer", ["Conv2D", "Conv1D", "Dense", "Conv2DTranspose"])
def test_gradient_of_a_bias_before_a_normalization(arrangement, kind, layer, frozen):
    """It comes from the normalization: the stock model's, by the statistics that it uses."""
    keras = builders.keras_of(kind)
    keras.utils.set_random_seed(3)
    size = {"Conv2D": (6, 5, 4), "Conv1D": (9, 4), "Dense": (4,), "Conv2DTranspose": (4, 3, 4)}
    arguments = (7,) if layer == "Dense" else (7, 3)
    image = keras.Input(size[layer])
    x = getattr(keras.layers, layer)(*arguments, name="host")(image)
    x = keras.layers.BatchNormalization(name="norm", epsilon=0.02)(x)
    model = builders.randomise_all(keras.Model(image, x), 3)
    qat = rewriter.rewrite(model)
    rewriter.freeze_batch_norm(qat, frozen)
    data = tf.constant(np.random.default_rng(1).normal(1, 2, (8, *size[layer])), tf.float32)
    gradients = []
    for m, training in ((model, not frozen), (qat, True)):
        (bias,) = (v for v in m.trainable_variables if "bias" in getattr(v, "path", v.name))
        (gamma,) = (v for v in m.trainable_variables if "gamma" in getattr(v, "path", v.name))
        sources = [getattr(v, "_value", v) for v in (bias, gamma)]
        with tf.GradientTape() as tape:
            y = m(data, training=training)
            loss = tf.reduce_sum(
                y * tf.cast(tf.reshape(tf.range(tf.size(y)) % 5, tf.shape(y)), y.dtype)
            )
        gradients.append([np.asarray(g) for g in tape.gradient(loss, sources)])
    (expected, gamma), (found, _) = gradients
    if frozen:
        claims.assert_close(found, expected, 1e-5)
        assert found.any()
    else:
        # The batch's mean takes the bias out again: rounding noise in the stock model.
        assert not found.any()
        assert np.abs(expected).max() < 1e-3 * np.abs(gamma).max()


@both
@pytest.mark.parametrize("phase", ["float", "quantize"])
def test_frozen_statistics_do_not_move(arrangement, kind, phase):
    """Bit-identical over 100 steps, while the weights learn; and free again when asked."""
    x = builders.residual_data(32)
    qat = compiled(kind, builders.calibrated(with_dropout(builders.keras_of(kind)), x))
    rewriter.set_phase(qat, phase)
    rewriter.freeze_batch_norm(qat)
    before = statistics(qat)
    weights = {name: value.copy() for name, value in builders.weights_by_name(qat).items()}
    data = batches(10)
    for step in range(100):
        qat.train_on_batch(*data[step % 10])
    for name, value in statistics(qat).items():
        assert value.tobytes() == before[name].tobytes(), name
    after = builders.weights_by_name(qat)
    assert all((after[name] != weights[name]).any() for name in ("stem/kernel", "alone/gamma"))
    rewriter.freeze_batch_norm(qat, False)
    qat.train_on_batch(*data[0])
    assert all((value != before[name]).any() for name, value in statistics(qat).items())


@both
def test_frozen_training_is_inference(arrangement, kind):
    """Frozen, the outputs in training are those of inference, and so they are the file's."""
    x = builders.residual_data(16)
    qat = builders.calibrated(with_dropout(builders.keras_of(kind)), x)
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    rewriter.freeze_batch_norm(qat)
    inference = np.asarray(qat(x, training=False))
    assert np.array_equal(np.asarray(qat(x, training=True)), inference)
    rewriter.freeze_batch_norm(qat, False)
    assert not np.allclose(np.asarray(qat(x, training=True)), inference, rtol=1e-3)


@both
@pytest.mark.parametrize("masked", [False, True])
def test_frozen_statistics_beside_the_kernel(kind, masked):
    """In float64, and with a mask: the formula with the moving statistics, which stay."""
    dtype = "float32" if masked else "float64"
    layer = getattr(rewriter.layers, kind).FusedBatchNormalization(epsilon=0.02, dtype=dtype)
    layer.build((None, 5, 3))
    layer.built = True
    rng = np.random.default_rng(2)
    variables = [getattr(layer, name) for name in VARIABLES]
    for variable in variables:
        variable.assign(rng.uniform(0.5, 2, 3).astype(dtype))
    before = [np.asarray(variable).copy() for variable in variables]
    gamma, beta, mean, variance = (value.astype("float64") for value in before)
    x = rng.normal(1, 2, (4, 5, 3)).astype(dtype)
    mask = np.arange(20).reshape(4, 5) % 3 > 0 if masked else None
    expected = gamma * (x - mean) / np.sqrt(variance + 0.02) + beta
    for frozen in (1, 0):
        layer.frozen.assign(frozen)
        y = layer(tf.constant(x), training=True, mask=mask)
        still = [np.array_equal(a, b) for a, b in zip(before, variables, strict=True)]
        assert still == [True, True, bool(frozen), bool(frozen)]
        assert np.allclose(y, expected, rtol=1e-5, atol=1e-5) == bool(frozen)


@both
def test_batch_of_one_trains_when_frozen(kind):
    x = builders.residual_data(16)
    qat = compiled(kind, builders.calibrated(with_dropout(builders.keras_of(kind)), x))
    rewriter.freeze_batch_norm(qat)
    losses = [float(np.ravel(qat.train_on_batch(*b))[0]) for b in batches(10, 1) * 4]
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < np.mean(losses[:10])


def test_freezing_needs_our_layers():
    keras = builders.keras_of(builders.KERASES[0])
    with pytest.raises(UnsupportedModelError, match="'small' has no .*rewriter.rewrite"):
        rewriter.freeze_batch_norm(with_dropout(keras))
    with pytest.raises(UnsupportedModelError, match="'small' has no .*rewriter.rewrite"):
        rewriter.reestimate_batch_norm(with_dropout(keras), builders.residual_data(4))


@both
def test_phases_are_left_alone(kind):
    """Freezing is not a phase: each can be changed without the other."""
    model = rewriter.rewrite(with_dropout(builders.keras_of(kind)))
    rewriter.freeze_batch_norm(model)
    assert rewriter.get_phase(model) == "float"
    rewriter.set_phase(model, "observe")
    assert {int(np.asarray(n.frozen)) for n in schedule.batch_norms(model)} == {1}
    assert {int(np.asarray(n.phase)) for n in schedule.batch_norms(model)} == {phases.OBSERVE}


# Re-estimated


def plain_average(model: Any, data: list[np.ndarray], bessel: bool) -> dict[str, np.ndarray]:
    """Each normalization's statistics by NumPy, batch by batch, float64."""
    (host,) = (h for h in builders.hosts(model) if h.batch_norm is not None)
    alone = model.get_layer("alone")
    sums: dict[str, list[np.ndarray]] = {}
    for images in data:
        x = oracles.linear_of(host.host)(images)
        for layer in (host.batch_norm, alone):
            n = x[..., 0].size
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            sums.setdefault(f"{layer.name}/moving_mean", []).append(mean)
            corrected = variance * n / (n - 1) if bessel else variance
            sums.setdefault(f"{layer.name}/moving_variance", []).append(corrected)
            gamma, beta = (np.asarray(v).astype(np.float64) for v in (layer.gamma, layer.beta))
            x = np.maximum(oracles.Norm(gamma, beta, mean, variance, layer.epsilon)(x), 0)
    return {name: np.mean(values, axis=0) for name, values in sums.items()}


@both
@pytest.mark.parametrize("start", [1.0, 1e8, np.nan])
def test_reestimation_is_the_plain_average(kind, start):
    """Over all batches, the last and smaller one included; what was there before is forgotten."""
    model = rewriter.rewrite(with_dropout(builders.keras_of(kind), 0.5))
    for name in VARIABLES[2:]:
        for norm in schedule.batch_norms(model):
            variable = getattr(norm, name)
            variable.assign(np.full(variable.shape, start, np.float32))
    images = builders.residual_data(40)
    expected = plain_average(model, [images[:16], images[16:32], images[32:]], kind == "tf_keras")
    weights = {name: value.copy() for name, value in builders.weights_by_name(model).items()}
    assert rewriter.reestimate_batch_norm(model, images, batch_size=16, progress=False) is model
    found = statistics(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        claims.assert_close(found[name], value, 1e-5, name)
    for name, value in builders.weights_by_name(model).items():
        assert "/moving_" in name or np.array_equal(value, weights[name]), name
    assert rewriter.get_phase(model) == "float"


def all_ranges(model: Any) -> list[float]:
    layers_ = claims.quantize_layers(model)
    return [float(np.asarray(v)) for layer in layers_ for v in layer.range_variables.values()]


@both
def test_reestimation_of_a_quantized_model(kind):
    """In the model's own phase, whether it was frozen or not, from a tf.data.Dataset."""
    images = builders.residual_data(32)
    model = builders.calibrated(with_dropout(builders.keras_of(kind)), images)
    rewriter.freeze_batch_norm(model)
    ranges = all_ranges(model)
    (host,) = (h for h in builders.hosts(model) if h.batch_norm is not None)
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(32))).batch(16)
    rewriter.reestimate_batch_norm(model, data, progress=False)
    # The convolution reads quantized images and has a quantized kernel.
    grid = claims.range_of(model.get_layer("image_quantize"))
    linear = oracles.linear_of(host.host).quantized()
    sums = [linear(grid(images[i : i + 16])) for i in (0, 16)]
    expected = np.mean([s.mean((0, 1, 2)) for s in sums], axis=0)
    claims.assert_close(host.batch_norm.moving_mean, expected, 1e-4)
    assert all_ranges(model) == ranges
    assert rewriter.get_phase(model) == "quantize"
    assert {int(np.asarray(n.frozen)) for n in schedule.batch_norms(model)} == {1}


@both
def test_reestimation_helps_after_training(kind):
    """Statistics that lag behind the weights are set right: the loss of inference falls."""
    images, labels = builders.residual_data(64), np.random.default_rng(0).integers(0, 5, 64)
    model = compiled(kind, rewriter.rewrite(with_dropout(builders.keras_of(kind))), 0.3)
    for _ in range(10):
        model.train_on_batch(images, labels)
    before = model.evaluate(images, labels, batch_size=64, verbose=0)
    rewriter.reestimate_batch_norm(model, images, batch_size=64, progress=False)
    after = model.evaluate(images, labels, batch_size=64, verbose=0)
    assert after < before - 0.1, (before, after)


def _breaks_off() -> Any:
    yield np.ones((4, 12, 12, 3), np.float32)
    yield np.ones((4, 5, 12, 3), np.float32)


@both
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: np.zeros((0, 12, 12, 3), np.float32), "The data is empty"),
        (lambda: np.zeros((4, 9, 12, 3), np.float32), "Received: samples of shape"),
        (
            lambda: tf.data.Dataset.from_generator(
                _breaks_off, output_signature=tf.TensorSpec((None, None, 12, 3))
            ),
            "Received: samples of shape",
        ),
    ],
    ids=["empty", "shape", "later"],
)
def test_failing_reestimation_leaves_the_statistics(kind, data, message):
    model = rewriter.rewrite(with_dropout(builders.keras_of(kind)))
    before = statistics(model)
    with pytest.raises(CalibrationError, match=message):
        rewriter.reestimate_batch_norm(model, data(), progress=False)
    for name, value in statistics(model).items():
        assert np.array_equal(value, before[name]), name
