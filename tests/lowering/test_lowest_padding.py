"""Padding with what a max pooling ignores: -inf has no range, and is the lowest integer of one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import builders
import residuals
import rewriter
from builders import KERASES, fresh, keras_of
from rewriter.errors import ExportError

X = builders.normal(32, 8, 8, 3)
WIDTHS = [[0, 0], [1, 1], [1, 1], [0, 0]]


def _padded(k: Any, how: str, value: float) -> Any:
    def symbolic(x: Any) -> Any:
        if k is keras:
            return keras.ops.pad(x, WIDTHS, constant_values=value)
        return tf.pad(x, WIDTHS, constant_values=value)

    class Padded(k.layers.Layer):  # type: ignore[name-defined, misc]
        def call(self, x: Any) -> Any:
            return symbolic(x)

    def opaque(x: Any) -> Any:
        return tf.where(tf.pad(tf.ones_like(x), WIDTHS) > 0, tf.pad(x, WIDTHS), value)

    lambdas = {"lambda": symbolic, "opaque": opaque}
    if how == "operation":
        return symbolic
    if how == "layer":
        return Padded(name="padded")
    return k.layers.Lambda(lambdas[how], name="padded", output_shape=(10, 10, 4))


def _model(k: Any, how: str, value: float) -> Any:
    layers = k.layers
    x = image = k.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = _padded(k, how, value)(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool")(x)
    x = layers.Conv2D(4, 3, name="second")(x)
    return k.Model(image, layers.BatchNormalization(name="last")(x))


CASES = [
    ("operation", -np.inf),
    ("operation", float(np.finfo(np.float32).min)),
    ("layer", -np.inf),
    ("lambda", -np.inf),
    ("opaque", -np.inf),
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize(("how", "value"), CASES)
def test_the_whole_way(kind, how, value, tmp_path):
    model = builders.randomise_all(_model(fresh(keras_of(kind)), how, value), 0)
    qat = rewriter.rewrite(model)
    expected = np.asarray(model(X))
    np.testing.assert_array_equal(np.asarray(qat(X)), expected)
    rewriter.calibrate(qat, X, progress=False)
    found = residuals.ranges(qat)
    assert residuals.is_set(found)
    assert max(-low for low, _ in found.values()) < 1e3
    error = np.asarray(qat(X)) - expected
    assert np.square(error).mean() < 1e-3 * np.square(expected).mean()  # 30 dB
    qat.compile("sgd", "mse")
    history = qat.fit(X, expected, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(w).all() for w in qat.get_weights())
    path = tmp_path / "model.tflite"
    if how == "opaque":
        with pytest.raises(ExportError, match=r"'padded' .*: padded \(Lambda"):
            rewriter.export_tflite(qat, path)
    rewriter.export_tflite(qat, path, allow_float=how == "opaque")
    result = rewriter.verify(qat, path, X, progress=False)
    assert result.comparison.worst.identical == 1.0 and not result.comparison.differences
    assert result.training.fault is None and not result.training.skipped
    assert result.training.weakest.snr_db > 40


@pytest.mark.parametrize("kind", KERASES)
def test_another_number_stays_as_it_was(kind):
    """-5 may be inside of a range or outside: it is no move of values."""
    model = _model(fresh(keras_of(kind)), "operation", -5.0)
    assert len(rewriter.plan(model).float_layers) == 1


def test_a_size_that_the_input_has():
    """EinsumDense of Keras 3 leaves it open where its `output_shape` does."""
    layers = fresh(keras).layers
    inputs = keras.Input((3, 8))
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), name="einsum")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization(name="norm")(x))
    qat = rewriter.rewrite(model)
    assert qat.output.shape == (None, 3, 4)
    rewriter.calibrate(qat, builders.normal(16, 3, 8), progress=False)
    assert rewriter.fold(qat).output.shape == (None, 3, 4)


@pytest.mark.parametrize("kind", KERASES)
def test_refusals_name_the_users_layers(kind, tmp_path):
    k = fresh(keras_of(kind))

    class Odd(k.layers.Layer):
        def call(self, x):
            return k.activations.log_softmax(x)

    inputs = k.Input((6,), name="image")
    x = k.layers.BatchNormalization(name="norm")(k.layers.Dense(4, name="dense")(inputs))
    qat = rewriter.rewrite(k.Model(inputs, Odd(name="fpn")(x)))
    rewriter.calibrate(qat, builders.normal(16, 6), progress=False)
    with pytest.raises(ExportError, match=r"'fpn' has no .*: fpn \(Odd\)") as info:
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
    assert "unquantized" not in str(info.value)
