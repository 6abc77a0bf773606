"""Biases of kernels that are stored in 4 bits: training rounds them as the file does."""

from __future__ import annotations

import collections
import functools

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
import widths
from builders import KERASES, keras_of
from rewriter import grid
from rewriter.layers import coarse_bias
from rewriter.lowering.lower import lower

RECIPE = widths.recipe("explicit", 4)
X = np.random.default_rng(5).normal(0.2, 1, (32, 8, 8, 3)).astype(np.float32)


def no_shifts(host, kernels, phase):
    return [None] * len(kernels)


@pytest.fixture(params=KERASES)
def keras(request):
    found = keras_of(request.param)
    found.utils.set_random_seed(0)
    return found


def network(keras, head=True):
    """Hosts with all that may stand between them and what quantizes their inputs and outputs."""
    layers = keras.layers

    def block(x, made, **options):
        x = layers.BatchNormalization(**options)(made(x))
        return layers.ReLU()(x)

    image = keras.Input((8, 8, 3), name="image")
    x = block(image, layers.Conv2D(8, 3, padding="same"))
    x = layers.Dropout(0.3)(layers.MaxPooling2D()(x))
    left = block(x, layers.DepthwiseConv2D(3, padding="same"), scale=False)
    right = block(x, layers.Conv2D(8, 1))
    x = layers.Concatenate()([left, right])
    x = block(layers.ZeroPadding2D()(x), layers.SeparableConv2D(8, 3), center=False)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name="gate")(x)
    x = layers.Conv2D(6, 1, name="plain")(layers.Multiply()([x, gate]))
    x = layers.Conv2D(4, 1, name="behind")(layers.Reshape((2, 8, 6))(x))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="bare")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(5, name="scores")(block(x, layers.Dense(12, use_bias=False)))
    y = layers.Softmax(name="head")(x) if head else x
    return builders.randomise_all(keras.Model(image, y), 3)


def made(keras, head=True):
    return builders.calibrated(network(keras, head), X, RECIPE)


@functools.cache
def _kept(kind):
    return made(keras_of(kind), head=False)


def qat_of(keras):
    """One that no test changes."""
    return _kept("tf_keras" if keras.__name__ == "tf_keras" else "keras")


def shifts_of(qat, x=X):
    """By host: what is added to its biases, as the layers find it."""
    found, whole = {}, coarse_bias.shifts

    def noting(host, *arguments):
        found[host.name] = whole(host, *arguments)
        return found[host.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coarse_bias, "shifts", noting)
        qat(x, training=False)
    return found


# Agreement


def test_a_network(keras, tmp_path):
    qat = made(keras)
    shifts = shifts_of(qat)
    assert len(shifts) == 10
    for name, found in shifts.items():
        for each in found:
            assert np.abs(each).max() > 0, name
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path)
    found = rewriter.verify(qat, path, X, progress=False)
    assert found.parts_at is None and found.training.fault is None
    assert found.training.weakest.snr_db >= 55
    for tensor in found.training.tensors:
        assert tensor.step_snr_db >= 60, tensor


@pytest.mark.parametrize("fault", ["none", "scale", "once"])
def test_seeded_faults(keras, fault, monkeypatch):
    """Biases as they are, on steps of another size, or as if a kernel rounded once."""
    qat = qat_of(keras)
    assert widths.decibels(qat(X, training=False), rewriter.fold(qat)(X)) >= 55
    whole = coarse_bias._scale
    if fault == "none":
        monkeypatch.setattr(coarse_bias, "shifts", no_shifts)
    elif fault == "scale":
        monkeypatch.setattr(coarse_bias, "_scale", lambda *args: 1.5 * whole(*args))
    else:
        monkeypatch.setattr(coarse_bias, "delegated", lambda operator: True)
    assert widths.decibels(qat(X, training=False), rewriter.fold(qat)(X)) < 55


def test_channels_that_are_rounded_by_their_sign(keras):
    """Of a depthwise convolution those beyond the last eight: a bias cannot make up for that.

    LiteRT's kernel for single channels rounds twice, halves away from zero; only that remains.
    """
    layers = keras.layers
    image = keras.Input((8, 9, 12))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="host")(image))
    model = builders.randomise(keras.Model(image, x), 0, low=0.1, high=10)
    x = np.random.default_rng(0).normal(0.2, 1, (48, 8, 9, 12)).astype(np.float32)
    qat = builders.calibrated(model, x, RECIPE)
    emulated, twin = (np.asarray(m(x, training=False)) for m in (qat, rewriter.fold(qat)))
    assert widths.decibels(emulated[..., :8], twin[..., :8]) >= 60
    assert widths.decibels(emulated[..., 8:], twin[..., 8:]) >= 43
    away = np.abs(twin) - np.abs(emulated)
    assert away.min() > -1e-4 and (away[..., 8:] > 1e-4).mean() < 0.04


def test_a_shift_is_at_most_half_a_step_and_zero_in_float(keras):
    qat = qat_of(keras)
    before = shifts_of(qat)
    rewriter.set_phase(qat, "float")
    in_float = shifts_of(qat)
    rewriter.set_phase(qat, "quantize")
    assert not any(np.any(each) for found in in_float.values() for each in found)
    operators = [s.operator for s in lower(qat).steps]
    steps = {id(o): o for o in operators if o.kernel is not None}
    largest = max(
        float((np.float32(o.inputs[0].scale) * o.kernel_scale).max()) for o in steps.values()
    )
    assert 0 < max(np.abs(e).max() for f in before.values() for e in f) <= largest / 2


# Where a model may go


@pytest.mark.slow
def test_saved_and_loaded(keras, tmp_path):
    qat = qat_of(keras)
    expected = np.asarray(qat(X, training=False))
    names = ("m.keras", "m.h5") + (("folder",) if keras.__name__ == "tf_keras" else ())
    for name in names:
        qat.save(tmp_path / name)
        loaded = keras.models.load_model(tmp_path / name)
        assert np.array_equal(np.asarray(loaded(X, training=False)), expected), name
        assert all(each is not None for f in shifts_of(loaded).values() for each in f), name
    if keras.__name__ == "tf_keras":  # the graph alone
        graph = tf.saved_model.load(tmp_path / "folder")
        np.testing.assert_allclose(graph(X, training=False), expected, atol=1e-6)


@pytest.mark.slow
def test_cloned_nested_and_cut(keras):
    qat = qat_of(keras)
    expected = np.asarray(qat(X, training=False))
    clone = keras.models.clone_model(qat)
    clone.set_weights(qat.get_weights())
    assert np.array_equal(np.asarray(clone(X, training=False)), expected)
    image = keras.Input((8, 8, 3))
    outer = keras.Model(image, qat(image))
    assert np.array_equal(np.asarray(outer(X, training=False)), expected)
    assert np.array_equal(outer.predict(X, verbose=0), qat.predict(X, verbose=0))
    cut = keras.Model(qat.input, qat.get_layer("plain").output)
    noted = shifts_of(cut)
    assert noted and all(each is not None for f in noted.values() for each in f)


def test_functional_submodels(keras):
    image = keras.Input((8, 8, 3))
    inner = network(keras, head=False)
    x = keras.layers.Dense(4)(keras.layers.ReLU()(inner(image)))
    qat = builders.calibrated(keras.Model(image, x), X, RECIPE)
    assert widths.decibels(qat(X, training=False), rewriter.fold(qat)(X)) >= 55


@pytest.mark.parametrize("apart", [False, True])
def test_shared_hosts(keras, apart):
    """One grid in all places, or several, of which none can be the one."""
    layers = keras.layers
    first, second = keras.Input((6,)), keras.Input((6,))
    shared = layers.Dense(8, name="shared")
    if apart:
        other = layers.Dense(6, name="other")(second)
        y = layers.Add()([shared(first), shared(other)])
    else:
        y = layers.Add()([shared(first), shared(layers.Reshape((6,))(first))])
        second = first
    model = keras.Model([first, second] if apart else first, y)
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    data = [x, 3 * x] if apart else x
    qat = builders.calibrated(builders.randomise_all(model, 0), data, RECIPE)
    (found,) = shifts_of(qat, data)["shared"]
    assert (found is None) == apart


def test_sixteen_bit_layers(keras):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = network(keras, head=False)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    qat = builders.calibrated(model, X, RECIPE)
    found = shifts_of(qat)
    assert all(np.isfinite(each).all() and np.any(each) for f in found.values() for each in f)
    assert widths.decibels(qat(X, training=False), rewriter.fold(qat)(X)) >= 30


# What it costs, and training


def operators_of(qat):
    traced = tf.function(lambda x: qat(x, training=True)).get_concrete_function(
        tf.TensorSpec((4, 8, 8, 3))
    )
    return collections.Counter(o.type for o in traced.graph.get_operations())


def test_eight_bits_cost_nothing(keras, monkeypatch):
    wide = rewriter.rewrite(network(keras), widths.recipe("explicit", 8))
    narrow = qat_of(keras)
    found = [operators_of(wide), operators_of(narrow)]
    monkeypatch.setattr(coarse_bias, "shifts", no_shifts)
    without = [operators_of(wide), operators_of(narrow)]
    assert found[0] == without[0] and found[1] != without[1]


def test_gradients_are_those_without(keras, monkeypatch):
    """Straight through: a loss that is linear in the outputs has the same ones."""
    layers, rng = keras.layers, np.random.default_rng(1)
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="n")(layers.Conv2D(8, 3, name="c")(image))
    model = builders.randomise_all(keras.Model(image, x), 0)
    qat = builders.calibrated(model, X, RECIPE)
    weights = rng.normal(size=(32, 6, 6, 8)).astype(np.float32)

    def gradients(traced):
        def function(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(weights * qat(x, training=False))
            return loss, tape.gradient(loss, list(qat.trainable_variables))

        return (tf.function(function) if traced else function)(X)

    for traced in (False, True):
        with monkeypatch.context() as patch:
            loss, found = gradients(traced)
            patch.setattr(coarse_bias, "shifts", no_shifts)
            other, expected = gradients(traced)
        assert abs(float(loss) - float(other)) > 1e-3
        assert len(found) == 4
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_training_learns_with_it(keras):
    qat = made(keras, head=False)
    labels = np.random.default_rng(0).integers(0, 5, len(X))
    qat.compile(keras.optimizers.SGD(0.05), keras.losses.SparseCategoricalCrossentropy(True))
    losses = qat.fit(X, labels, epochs=12, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.8 * losses[0]
    # Also behind ranges and statistics that have moved.
    assert widths.decibels(qat(X, training=False), rewriter.fold(qat)(X)) >= 55


def test_what_is_coarse():
    for kind, grids in grid.KERNEL_STORAGE.items():
        found = [grid.is_coarse(kind, grid.kernel(bits)) for bits in range(2, 9)]
        assert found == [4 in grids] * 3 + [False] * 4
    assert not grid.is_coarse("ADD", grid.kernel(4))


def test_a_quantizer_that_keeps_no_range_is_left_alone(keras):
    made = rewriter.FixedPoint(4, 8)
    qat = builders.calibrated(network(keras), X, rewriter.Recipe(kernel_quantizer=made))
    assert all(each is None for f in shifts_of(qat).values() for each in f)
