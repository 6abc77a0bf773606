"""Phases and calibration: what each phase does, what calibration accepts, and how it fails."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from builders import KERASES, keras_of
from rewriter.errors import CalibrationError, ExportError, UnsupportedModelError


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


@pytest.fixture
def qat(keras):
    """A rewritten model in phase ``float``."""
    return rewriter.rewrite(builders.trained_residual(keras))


X = builders.residual_data()


def ranges(qat):
    """Every range, by layer, as (low, high)."""
    return {
        f"{i}:{layer.name}": tuple(
            float(np.asarray(layer.range_variables[key])) for key in ("min_var", "max_var")
        )
        for i, layer in enumerate(claims.quantize_layers(qat))
        if layer.range_variables
    }


def is_set(values):
    return all(np.isfinite(pair).all() and pair[0] <= 0 <= pair[1] for pair in values.values())


# Phases


def test_starts_in_float_without_ranges(qat):
    assert rewriter.get_phase(qat) == "float"
    assert len(ranges(qat)) >= 6
    assert not any(np.isfinite(pair).any() for pair in ranges(qat).values())


def test_observe_computes_float_and_records(qat):
    expected = np.asarray(qat(X, training=False))
    rewriter.set_phase(qat, "observe")
    assert rewriter.get_phase(qat) == "observe"
    assert np.array_equal(np.asarray(qat(X, training=False)), expected)
    found = ranges(qat)
    assert is_set(found)
    first = next(iter(found.values()))
    np.testing.assert_allclose(first, (X.min(), X.max()), rtol=1e-6)
    qat(2 * X, training=False)  # only ever wider
    wider = ranges(qat)
    assert all(wider[k][0] <= found[k][0] and wider[k][1] >= found[k][1] for k in found)
    assert next(iter(wider.values())) == pytest.approx((2 * X.min(), 2 * X.max()), rel=1e-6)


def test_quantize_changes_the_outputs_a_little(qat):
    expected = np.asarray(qat(X, training=False))
    rewriter.calibrate(qat, X, progress=False)
    assert rewriter.get_phase(qat) == "quantize"
    found = np.asarray(qat(X, training=False))
    assert 1e-4 < np.abs(found - expected).max() < 0.25
    rewriter.set_phase(qat, "float")
    assert np.array_equal(np.asarray(qat(X, training=False)), expected)


def test_quantized_activations_lie_on_256_steps(keras):
    model = builders.host_model(keras, builders.HOST_CASES[0])
    x = np.random.default_rng(0).normal(size=(64, 7, 6, 6)).astype(np.float32)
    qat = builders.calibrated(model, x)
    values = np.asarray(qat(x, training=False))
    grid = claims.range_of(claims.quantize_layers(qat)[-1])
    assert 100 < len(np.unique(values)) <= 256
    steps = values / grid.scale
    assert np.abs(steps - np.rint(steps)).max() < 1e-3


def test_inference_in_quantize_leaves_the_ranges(qat):
    rewriter.calibrate(qat, X, progress=False)
    before = ranges(qat)
    qat(3 * X, training=False)
    assert ranges(qat) == before


def test_training_in_quantize_moves_the_ranges(qat):
    rewriter.calibrate(qat, X, progress=False)
    before = ranges(qat)
    qat(2 * X, training=True)
    low, high = next(iter(ranges(qat).values()))
    old_low, old_high = next(iter(before.values()))
    # A moving average with the recipe's momentum, 0.99.
    assert low == pytest.approx(0.99 * old_low + 0.01 * 2 * X.min(), rel=1e-5)
    assert high == pytest.approx(0.99 * old_high + 0.01 * 2 * X.max(), rel=1e-5)


def test_frozen_ranges(qat):
    rewriter.calibrate(qat, X, progress=False)
    before = ranges(qat)
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    assert rewriter.get_phase(qat) == "quantize"
    qat(2 * X, training=True)
    assert ranges(qat) == before


def test_quantize_without_calibration_takes_the_first_batch(qat):
    """DESIGN 5: ranges start from the first batch, never from +-6."""
    rewriter.set_phase(qat, "quantize")
    qat(X, training=True)
    assert is_set(ranges(qat))
    np.testing.assert_allclose(next(iter(ranges(qat).values())), (X.min(), X.max()), rtol=1e-5)


def test_switch_while_fit_runs_without_retracing(keras, qat):
    """One compiled step serves all three phases."""
    y = np.arange(len(X)) % 5
    qat.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    seen = []

    class Switch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(rewriter.get_phase(qat))
            rewriter.set_phase(qat, {0: "observe", 1: "quantize"}.get(batch, "quantize"))

    def traces():
        return qat.train_function.experimental_get_tracing_count()

    qat.fit(X, y, batch_size=16, epochs=1, callbacks=[Switch()], verbose=0)
    assert seen == ["float", "observe", "quantize"]
    assert is_set(ranges(qat))
    if hasattr(qat.train_function, "experimental_get_tracing_count"):
        before = traces()
        rewriter.set_phase(qat, "float")
        qat.fit(X, y, batch_size=16, epochs=1, callbacks=[Switch()], verbose=0)
        assert traces() == before


def test_bad_phase(qat):
    with pytest.raises(ValueError, match="'float', 'observe', 'quantize'.*'train'"):
        rewriter.set_phase(qat, "train")


def test_not_a_rewritten_model(keras):
    model = builders.residual(keras)
    for call in (
        lambda: rewriter.set_phase(model, "quantize"),
        lambda: rewriter.get_phase(model),
        lambda: rewriter.calibrate(model, X),
    ):
        with pytest.raises(UnsupportedModelError, match="'residual'.*rewriter.rewrite"):
            call()


# What calibration accepts


def _datasets():
    batches = tf.data.Dataset.from_tensor_slices(X).batch(16)
    pairs = tf.data.Dataset.from_tensor_slices((X, np.zeros(len(X)))).batch(16)
    unknown = tf.data.Dataset.from_generator(
        lambda: iter(X), output_signature=tf.TensorSpec((12, 12, 3), tf.float32)
    )
    return {
        "array": X,
        "float64": X.astype(np.float64),
        "tuple": (X,),
        "list": [X],
        "dict": {"image": X},
        "tensor": tf.constant(X),
        "dataset": batches,
        "dataset of pairs": pairs,
        "dataset of unknown length": unknown.batch(7),
        "dataset of dicts": batches.map(lambda x: {"image": x}),
    }


@pytest.mark.parametrize("kind", list(_datasets()))
def test_data(qat, kind):
    assert rewriter.calibrate(qat, _datasets()[kind], progress=False) is qat
    assert rewriter.get_phase(qat) == "quantize"
    found = ranges(qat)
    assert is_set(found)
    np.testing.assert_allclose(next(iter(found.values())), (X.min(), X.max()), rtol=1e-6)


def test_data_for_two_inputs(keras):
    layers = keras.layers
    a, b = keras.Input((6,), name="z"), keras.Input((4,), name="a")
    x = layers.Concatenate()([layers.Dense(3, name="da")(a), layers.Dense(3, name="db")(b)])
    model = keras.Model([a, b], layers.BatchNormalization(name="bn")(x))
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=(32, n)).astype(np.float32) for n in (6, 4))
    results = []
    for data in ([first, second], (first, second), {"a": second, "z": first}):
        results.append(ranges(builders.calibrated(model, data)))
    pairs = tf.data.Dataset.from_tensor_slices(((first, second), np.zeros(32))).batch(8)
    results.append(ranges(builders.calibrated(model, pairs)))
    assert is_set(results[0])
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for key in other:
            np.testing.assert_allclose(other[key], results[0][key], rtol=1e-6)


def test_ranges_do_not_depend_on_the_batch_size(qat):
    rewriter.calibrate(qat, X, batch_size=7, progress=False)
    first = ranges(qat)
    rewriter.calibrate(qat, X, batch_size=48, progress=False)
    for key, pair in ranges(qat).items():
        np.testing.assert_allclose(pair, first[key], rtol=1e-5)


def test_calibrating_again_starts_afresh(qat):
    rewriter.calibrate(qat, 10 * X, progress=False)
    rewriter.calibrate(qat, X, progress=False)
    np.testing.assert_allclose(next(iter(ranges(qat).values())), (X.min(), X.max()), rtol=1e-6)


def test_calibration_changes_no_weight(qat):
    before = builders.weights_by_name(qat)
    rewriter.calibrate(qat, X, progress=False)
    after = builders.weights_by_name(qat)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_rewrite_with_calibration_data(keras):
    model = builders.trained_residual(keras)
    qat = rewriter.rewrite(model, calibration_data=X)
    assert rewriter.get_phase(qat) == "quantize"
    other = builders.calibrated(model, X)
    for a, b in zip(ranges(qat).values(), ranges(other).values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_progress_is_shown(qat, capfd):
    rewriter.calibrate(qat, X)
    assert "calibrating" in capfd.readouterr().err
    rewriter.calibrate(qat, X, progress=False)
    assert "calibrating" not in capfd.readouterr().err


# How it fails


BAD = {
    "shape": (np.zeros((4, 5, 5, 3), np.float32), r"'image.*\(12, 12, 3\).*\(5, 5, 3\)"),
    "rank": (np.zeros((4, 12, 12), np.float32), "image"),
    "empty": (np.zeros((0, 12, 12, 3), np.float32), "empty"),
    "two arrays": ((X, X), "has 1 inputs.*2"),
    "wrong name": ({"picture": X}, "lacks the input 'image'.*picture"),
    "text": (np.array(["a", "b"]), ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_data(qat, kind):
    data, message = BAD[kind]
    with pytest.raises(CalibrationError, match=message):
        rewriter.calibrate(qat, data, progress=False)
    assert rewriter.get_phase(qat) == "float"


def test_empty_dataset(qat):
    data = tf.data.Dataset.from_tensor_slices(X).batch(16).take(0)
    with pytest.raises(CalibrationError, match="empty"):
        rewriter.calibrate(qat, data, progress=False)


def test_different_lengths(keras):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    layers = keras.layers
    qat = rewriter.rewrite(keras.Model([a, b], layers.BatchNormalization()(layers.Add()([a, b]))))
    with pytest.raises(CalibrationError, match="same number of samples"):
        rewriter.calibrate(qat, [np.zeros((3, 6)), np.zeros((4, 6))], progress=False)


def test_ranges_come_back_when_calibration_fails(qat):
    rewriter.calibrate(qat, X, progress=False)
    before = ranges(qat)

    def broken():
        yield 5 * X[:16]
        yield np.zeros((4, 3), np.float32)

    data = tf.data.Dataset.from_generator(broken, output_signature=tf.TensorSpec(None, tf.float32))
    with pytest.raises(CalibrationError):
        rewriter.calibrate(qat, data, progress=False)
    assert ranges(qat) == before
    assert rewriter.get_phase(qat) == "quantize"


# Unset ranges


def test_unset_ranges_are_refused_by_name(qat, tmp_path):
    path = tmp_path / "model.tflite"
    for call in (
        lambda: rewriter.export_tflite(qat, path),
        lambda: rewriter.fold(qat),
    ):
        with pytest.raises(
            ExportError, match="have not been set.*stem.*rewriter.calibrate"
        ) as info:
            call()
        for name in ("image", "dw", "add", "scores"):
            assert name in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_one_unset_range_is_refused_by_name(qat, tmp_path):
    rewriter.calibrate(qat, X, progress=False)
    layer = claims.quantize_layers(qat)[2]
    layer.reset_range()
    with pytest.raises(ExportError, match="1 activation.*" + layer.name):
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_is_refused(qat, tmp_path):
    rewriter.calibrate(qat, X, progress=False)
    layer = claims.quantize_layers(qat)[2]
    layer.range_variables["max_var"].assign(float("nan"))
    with pytest.raises(ExportError, match=layer.name):
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
