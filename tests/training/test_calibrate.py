"""Calibration: what data it accepts, how it fails, and what is refused without it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import residuals
import rewriter
from residuals import X, is_set, ranges
from rewriter.errors import CalibrationError, ExportError
from rewriter.quantization import phases

keras, qat = residuals.keras, residuals.qat


# What it accepts


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
    other = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
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
    "text": (np.array(["a", "b"]), r"shape \(12, 12, 3\)\. Received: samples of shape \(\)"),
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


def test_ranges_and_phases_come_back_when_calibration_fails(qat):
    rewriter.calibrate(qat, X, progress=False)
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    before, codes = ranges(qat), phase_codes(qat)

    def broken():
        yield 5 * X[:16]
        yield np.zeros((4, 3), np.float32)

    data = tf.data.Dataset.from_generator(broken, output_signature=tf.TensorSpec(None, tf.float32))
    with pytest.raises(CalibrationError):
        rewriter.calibrate(qat, data, progress=False)
    assert ranges(qat) == before
    assert rewriter.get_phase(qat) == "quantize" and phase_codes(qat) == codes


def phase_codes(qat):
    return [int(np.asarray(layer.phase)) for layer in phases.phased_layers(qat)]


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
