"""Training towards the trained model's outputs: the loss, and without dropout."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from builders import KERASES, fresh, keras_of
from rewriter.training.distillation import without_noise

both = pytest.mark.parametrize("kind", KERASES)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 6, 6, 2)).astype(np.float32)


def divergence(wanted, found, temperature):
    """In float64."""
    wanted, found = (np.asarray(each, np.float64) + 1e-4 for each in (wanted, found))
    p, q = wanted ** (1 / temperature), found ** (1 / temperature)
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return temperature**2 * (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 8.0])
def test_the_loss_and_its_gradient(temperature):
    """Of a paper's formula; 0 for equal outputs, with zeros among them."""
    wanted, found = (RNG.dirichlet(np.ones(5) / 3, (4, 3)).astype(np.float32) for _ in range(2))
    wanted[0, 0] = np.eye(5)[2]
    found[1, 1] = np.eye(5)[0]
    variable = tf.Variable(found)
    with tf.GradientTape() as tape:
        loss = rewriter.distillation_loss(wanted, variable, temperature)
    expected = divergence(wanted, found, temperature)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)
    direction = RNG.normal(size=found.shape) * found
    ends = (
        divergence(wanted, found + sign * 1e-5 * direction, temperature).sum() for sign in (1, -1)
    )
    gradient = np.sum(tape.gradient(loss, variable) * direction)
    assert gradient == pytest.approx((next(ends) - next(ends)) / 2e-5, rel=1e-3)
    np.testing.assert_allclose(rewriter.distillation_loss(wanted, wanted), 0, atol=1e-6)


def classifier(keras, *noise):
    keras.utils.set_random_seed(0)
    z = image = keras.Input(X.shape[1:])
    z = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, name="conv")(z))
    z = keras.layers.ReLU()(z)
    for layer in noise:
        z = layer(z)
    z = keras.layers.GlobalAveragePooling2D()(z)
    return keras.Model(image, keras.layers.Dense(4, activation="softmax", name="head")(z))


def noises(keras):
    layers = keras.layers
    return (
        layers.Dropout(0.5),
        layers.SpatialDropout2D(0.4),
        layers.GaussianDropout(0.3),
        layers.GaussianNoise(0.2),
        layers.AlphaDropout(0.1),
    )


@both
def test_without_noise(kind):
    """Every kind of it, in a nested model too; as before when it ends, by an error too."""
    keras = fresh(keras_of(kind))
    image = keras.Input(X.shape[1:])
    model = keras.Model(image, classifier(keras, *noises(keras))(image))
    kept = [layer.get_config() for layer in model.layers[-1].layers]
    expected = np.asarray(model(X, training=False))

    def trained():
        return np.asarray(model(X, training=True))

    assert not np.allclose(trained(), trained(), atol=1e-3)
    with pytest.raises(ZeroDivisionError), without_noise(model):
        assert np.array_equal(trained(), trained())
        raise ZeroDivisionError
    assert [layer.get_config() for layer in model.layers[-1].layers] == kept
    assert not np.allclose(trained(), trained(), atol=1e-3)
    assert expected.shape == trained().shape


@both
def test_a_model_saved_with_the_loss(kind, tmp_path):
    """It loads compiled, and goes on."""
    keras = fresh(keras_of(kind))
    wanted = np.eye(4, dtype=np.float32)[RNG.integers(4, size=len(X))]
    qat = rewriter.rewrite(classifier(keras), calibration_data=X)
    qat.compile(keras.optimizers.Adam(1e-3), rewriter.distillation_loss)
    before = qat.evaluate(X, wanted, verbose=0)
    qat.save(tmp_path / "qat.keras")
    again = keras.models.load_model(tmp_path / "qat.keras")
    assert again.evaluate(X, wanted, verbose=0) == pytest.approx(before, rel=1e-5)
    again.fit(X, wanted, epochs=5, verbose=0)
    assert again.evaluate(X, wanted, verbose=0) < before


@both
def test_fine_tuning_towards_a_teacher_has_no_dropout(kind):
    """The losses are those of the same model that never had any; dropout is back afterwards."""
    losses, models = [], []
    for noise in (False, True):
        keras = fresh(keras_of(kind))
        model = classifier(keras, *([keras.layers.Dropout(0.8, name="noise")] * noise))
        qat = rewriter.rewrite(model, calibration_data=X)
        found = rewriter.finetune(qat, X, teacher=model, epochs=2, learning_rate=1e-3)
        losses.append(found.tuning.losses[1:])
        models.append(qat)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    qat = models[1]
    assert qat.get_layer("noise").rate == 0.8
    wanted = qat.predict(X, verbose=0)
    still = models[0].fit(X, models[0].predict(X, verbose=0), verbose=0).history["loss"][0]
    noisy = qat.fit(X, wanted, verbose=0).history["loss"][0]
    assert noisy > 3 * still
