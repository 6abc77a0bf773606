"""Attention under a mask that is known: causal, or by constants; ranges do not hold its numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from builders import KERASES, keras_of, normal
from checks import decibels, everything
from rewriter.errors import ExportError

both = pytest.mark.parametrize("flavour", KERASES)
SEES = np.tri(6, dtype=bool)[None]


def _scores(x: Any) -> Any:
    return tf.matmul(x, x, transpose_b=True)


def _added(number: float) -> Callable[[Any], Any]:
    hidden = np.where(SEES, 0, number).astype(np.float32)
    return lambda x: _scores(x) + hidden


def _look_ahead(x: Any) -> Any:
    """As tutorials make it, of the number of steps."""
    steps = tf.shape(x)[1]
    return _scores(x) + (1 - tf.linalg.band_part(tf.ones((steps, steps)), -1, 0)) * -1e9


MASKED: dict[str, Callable[[Any], Any]] = {
    "added": _added(-1e9),
    "added as in windows": _added(-100.0),
    "added in half precision": _added(-1e4),
    "beside a bias": lambda x: _scores(x) + np.where(SEES, np.cos(np.arange(6)), -1e9).astype("f"),
    "look ahead": _look_ahead,
    "where": lambda x: tf.where(SEES, _scores(x), -1e9),
    "where not": lambda x: tf.where(~SEES, -1e4, _scores(x)),
    "where infinite": lambda x: tf.where(SEES, _scores(x), -np.inf),
}


def _own(k: Any, function: Callable[[Any], Any]) -> Any:
    class Own(k.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return function(x)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Own(name="own")


def _model(k: Any, attend: Callable[[Any, Any], Any]) -> Any:
    inputs = k.Input((6, 8), name="rows")
    x = k.layers.BatchNormalization(name="norm")(k.layers.Dense(8, name="mixed")(inputs))
    x = k.layers.Flatten()(attend(k, x))
    return k.Model(inputs, k.layers.Dense(3, name="end")(x))


def _written(k: Any, case: str) -> Any:
    masked = MASKED[case]
    own = _own(k, lambda x: tf.matmul(tf.nn.softmax(masked(x)), x))
    return _model(k, lambda k, x: own(x))


@both
@pytest.mark.parametrize("case", MASKED)
def test_written_out(case: str, flavour: str, tmp_path: Path) -> None:
    """In dB to the float model: with the mask in a range of 8 bits 2 are left."""
    plan = everything(flavour, lambda k: _written(k, case), {"norm": "mixed"}, tmp_path)
    assert plan.float_layers == ()


KNOWN: dict[str, Callable[[Any, Any], Any]] = {
    "heads": lambda k, x: k.layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True),
    "heads over others": lambda k, x: k.layers.MultiHeadAttention(2, 4)(
        x, k.layers.Dense(8)(x)[:, :4], use_causal_mask=True
    ),
    "heads by constants": lambda k, x: k.layers.MultiHeadAttention(2, 4)(
        x, x, attention_mask=np.eye(6)[None] + np.eye(6, k=2) > 0
    ),
    "heads by both": lambda k, x: k.layers.MultiHeadAttention(2, 4)(
        x, x, attention_mask=1 - np.eye(6, k=-1)[None], use_causal_mask=True
    ),
    "attention": lambda k, x: k.layers.Attention()([x, k.layers.Dense(8)(x)], use_causal_mask=True),
    "additive": lambda k, x: k.layers.AdditiveAttention(use_scale=False)(
        [x, k.layers.Dense(8)(x)], use_causal_mask=True
    ),
}


@both
@pytest.mark.parametrize("case", KNOWN)
def test_attention(case: str, flavour: str, tmp_path: Path) -> None:
    build = KNOWN[case]
    plan = everything(flavour, lambda k: _model(k, build), {"norm": "mixed"}, tmp_path)
    assert plan.float_layers == ()


def test_causal_products_of_heads(tmp_path: Path) -> None:
    def attend(k: Any, x: Any) -> Any:
        heads = [k.ops.reshape(k.layers.Dense(8)(x), (-1, 6, 2, 4)) for _ in range(3)]
        return k.ops.dot_product_attention(*heads, is_causal=True)

    plan = everything("keras", lambda k: _model(k, attend), {"norm": "mixed"}, tmp_path)
    assert plan.float_layers == ()


@both
def test_dropout_under_a_causal_mask_drops_in_training_alone(flavour: str) -> None:
    keras = builders.fresh(keras_of(flavour))
    qat = rewriter.rewrite(
        _model(
            keras,
            lambda k, x: k.layers.Attention(dropout=0.5)([x, x], use_causal_mask=True),
        )
    )
    assert not rewriter.plan(qat).float_layers
    x = normal(32, 6, 8)
    np.testing.assert_array_equal(np.asarray(qat(x)), np.asarray(qat(x)))
    once, again = (np.asarray(qat(x, training=True)) for _ in range(2))
    assert np.abs(once - again).max() > 1e-2


def _range(model: Any) -> tuple[float, float]:
    """Of the one tensor that a mask has been added to."""
    (layer,) = (each for each in model.layers if getattr(each, "floor", None) is not None)
    values = layer.range_variables
    return float(values["min_var"].numpy()), float(values["max_var"].numpy())


@both
@pytest.mark.parametrize("method", [None, "minmax", "percentile", "mse", "entropy"])
def test_the_range_ends_below_the_scores(flavour: str, method: str | None, tmp_path: Path) -> None:
    keras = builders.fresh(keras_of(flavour))
    model = _model(keras, KNOWN["attention"])
    x = normal(64, 6, 8)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, method=method, progress=False)
    low, high = _range(qat)
    assert -60 < low < high < 50
    assert decibels(model.predict(x, verbose=0), qat.predict(x, verbose=0)) > 20
    qat.save(tmp_path / "q.keras")
    again = rewriter.load_model(tmp_path / "q.keras")
    assert _range(again) == (low, high)
    rewriter.calibrate(again, x, method=method, progress=False)
    assert _range(again) == (low, high)
    again.compile(keras.optimizers.SGD(1e-4), "mse")
    again.fit(x, normal(64, 3), epochs=3, verbose=0)
    moved, _ = _range(again)
    assert -80 < moved < -5 and (moved != low or method != "minmax")


@both
@pytest.mark.parametrize("other", ["output", "relu"])
def test_what_something_else_reads_keeps_its_range(flavour: str, other: str) -> None:
    keras = builders.fresh(keras_of(flavour))
    inputs = keras.Input((6, 8), name="rows")
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(6, name="mixed")(inputs))
    x = _own(keras, lambda x: x + np.where(SEES, 0, -100.0).astype(np.float32))(x)
    soft = keras.layers.Softmax(name="soft")(x)
    beside = {"output": lambda: x, "relu": lambda: keras.layers.ReLU(negative_slope=0.1)(x)}
    if flavour == "tf_keras":
        beside["relu"] = lambda: keras.layers.LeakyReLU(0.1)(x)
    model = keras.Model(inputs, [soft, beside[other]()])
    data = normal(64, 6, 8)
    qat = rewriter.rewrite(model, calibration_data=data)
    assert all(getattr(layer, "floor", None) is None for layer in qat.layers)
    expected, found = (m.predict(data, verbose=0)[1] for m in (model, qat))
    assert decibels(expected, found) > 35


@both
def test_windows_of_which_some_are_masked(flavour: str, tmp_path: Path) -> None:
    """Scores are moved and dropped between the mask and the softmax (Liu et al. 2021)."""
    hidden = np.where(np.arange(2)[:, None, None] * ~np.tri(3, dtype=bool), -100.0, 0.0)

    def attend(k: Any, x: Any) -> Any:
        layers = k.layers
        scores = layers.Dot((2, 2))([x, x])[:, :, :3]
        scores = layers.Reshape((2, 3, 3))(scores)
        scores = _own(k, lambda x: x + hidden[None].astype(np.float32))(scores)
        scores = layers.Dropout(0.0)(layers.Permute((1, 3, 2))(layers.Reshape((2, 3, 3))(scores)))
        weights = layers.Reshape((6, 3))(layers.Softmax(axis=-1)(scores))
        return layers.Dot((2, 1))([weights, x[:, :3]])

    plan = everything(flavour, lambda k: _model(k, attend), {"norm": "mixed"}, tmp_path)
    assert plan.float_layers == ()
    qat = rewriter.rewrite(_model(builders.fresh(keras_of(flavour)), attend))
    rewriter.calibrate(qat, normal(64, 6, 8), progress=False)
    low, high = _range(qat)
    assert -60 < low < high < 50


@both
def test_places_that_are_made_zeros(flavour: str, tmp_path: Path) -> None:
    places = np.arange(48).reshape(1, 6, 8) % 3 > 0

    def build(k: Any) -> Any:
        return _model(k, lambda k, x: _own(k, lambda x: tf.where(places, x, 0.0))(x))

    assert everything(flavour, build, {"norm": "mixed"}, tmp_path).float_layers == ()


@both
def test_other_choices_stay_in_float(flavour: str) -> None:
    """Five beside a tensor is no sum and no product with one constant."""
    keras = builders.fresh(keras_of(flavour))
    model = _model(keras, lambda k, x: _own(k, lambda x: tf.where(SEES[:, :, :1], x, 5.0))(x))
    assert rewriter.plan(model).float_layers == ("own",)


@both
@pytest.mark.parametrize("how", ["where", "added"])
def test_a_mask_before_a_maximum_is_refused(flavour: str, how: str, tmp_path: Path) -> None:
    """The range would hold the mask's number, and nothing of the values."""
    keras = builders.fresh(keras_of(flavour))
    places = np.arange(48).reshape(1, 6, 8) % 3 > 0
    hidden = np.where(places, 0, -1e9).astype(np.float32)
    functions = {"where": lambda x: tf.where(places, x, -1e9), "added": lambda x: x + hidden}
    own = _own(keras, functions[how])
    model = _model(keras, lambda k, x: k.layers.GlobalMaxPooling1D()(own(x)))
    assert "leaves nothing of the others" in rewriter.plan(model).float_reasons["own"]
    x = normal(16, 6, 8)
    qat = rewriter.rewrite(model, calibration_data=x)
    rewriter.set_phase(qat, "float")
    np.testing.assert_array_equal(qat.predict(x, verbose=0), model.predict(x, verbose=0))
    rewriter.set_phase(qat, "quantize")
    with pytest.raises(ExportError, match="'own' has no integer form.* a softmax"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")


@both
def test_a_mask_that_is_data_is_warned_of(flavour: str) -> None:
    keras = builders.fresh(keras_of(flavour))
    layers = keras.layers
    inputs, mask = keras.Input((6, 8), name="rows"), keras.Input((1, 6), name="mask")
    x = layers.BatchNormalization(name="norm")(layers.Dense(8, name="mixed")(inputs))
    hidden = layers.Rescaling(1e9, -1e9, name="hidden")(mask)
    scores = layers.Add()([layers.Dot((2, 2))([x, x]), hidden])
    scores = layers.Dropout(0.5)(layers.Permute((2, 1))(scores))
    model = keras.Model([inputs, mask], layers.Softmax(name="soft")(scores))
    data = [normal(64, 6, 8), (normal(64, 1, 6, seed=1) > -1).astype(np.float32)]
    qat = rewriter.rewrite(model)
    with pytest.warns(
        rewriter.RewriterWarning, match=r"'soft' reads values from -1e\+09.*use_causal"
    ):
        rewriter.calibrate(qat, data, progress=False)
    data[1][:] = 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rewriter.calibrate(qat, data, progress=False)
    assert not any("softmax" in str(each.message) for each in caught)
