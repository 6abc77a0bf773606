"""Every layer that stays in float is named with its reason and what to do, by plan and export."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError

Build = Callable[[Any, Any], Any]


def _ops(keras: Any, name: str, other: Any) -> Any:
    return getattr(keras.ops, name) if hasattr(keras, "ops") else other


def _own(keras: Any, function: Callable[[Any, Any], Any]) -> Any:
    """A layer of a user's with a weight for each channel."""

    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(name="w", shape=(shape[-1],), initializer="ones")
            super().build(shape)

        def call(self, x: Any) -> Any:
            return function(x, tf.convert_to_tensor(self.w))

    return Own(name="own")


def _lambda(function: Callable[[Any], Any], shape: tuple[int, ...]) -> Build:
    return lambda keras, x: keras.layers.Lambda(function, output_shape=shape, name="own")(x)


def _place(keras: Any, x: Any) -> Any:
    return _ops(keras, "argmax", tf.argmax)(x, -1)


def _if_greater(keras: Any, x: Any) -> Any:
    other = keras.layers.Dense(4)(x)
    return _ops(keras, "where", tf.where)(x > 0.0, x, other)


def _masked(keras: Any, x: Any) -> Any:
    seen = keras.layers.Lambda(lambda x: x > 0.0, output_shape=(6, 4))(x)[:, :, :1]
    return keras.layers.MultiHeadAttention(2, 2, name="own")(x, x, attention_mask=seen)


def _shared_guard(keras: Any, x: Any) -> Any:
    total = x * x + 1e-4
    root = _ops(keras, "sqrt", tf.sqrt)(total)
    return keras.layers.Concatenate()([root, total])


# What is said of some layer: a pattern of the reason.
CASES: dict[str, tuple[Build, str]] = {
    "an operation": (
        lambda keras, x: _ops(keras, "cumsum", tf.cumsum)(x, 1),
        "there is no integer operator for [cC]umsum. Put another",
    ),
    "in a Lambda": (
        _lambda(lambda x: tf.cumsum(tf.nn.relu(x), 1), (6, 4)),
        "inside it [cC]umsum has no integer form. Write it with",
    ),
    "several in a Lambda": (
        _lambda(lambda x: tf.cumsum(x, 1) * tf.math.atan2(x, x * x + 1.0), (6, 4)),
        "inside it .*[aA]tan2.* have no integer form",
    ),
    "its variables": (
        lambda keras, x: _own(keras, lambda x, w: x * tf.reduce_sum(x * tf.cumsum(w), -1, True))(x),
        "computes with its own variables .Cumsum.*Write it with",
    ),
    "an activation": (
        lambda keras, x: keras.layers.Dense(4, activation="log_softmax", name="own")(x),
        "its activation 'log_softmax' has no integer form",
    ),
    "whole numbers": (lambda keras, x: _place(keras, x) + 1, "add computes with whole numbers"),
    "a cast of whole numbers": (
        lambda keras, x: _ops(keras, "cast", tf.cast)(_place(keras, x), "float32"),
        "it makes real numbers of whole ones",
    ),
    "places of the largest": (
        lambda keras, x: _ops(keras, "top_k", tf.math.top_k)(x, 2)[0],
        "top_?k computes with whole numbers",
    ),
    "booleans": (_if_greater, "greater works with bool"),
    "a mask": (_masked, "it works under a mask"),
    "a scale and a dropout": (
        lambda keras, x: keras.layers.AdditiveAttention(dropout=0.5, name="own")([x, x]),
        r"it has dropout=0\.5 and a variable.* one of the two",
    ),
    "a guard": (_shared_guard, "a root behind a constant.* a sum of its own"),
    "a convolution": (
        lambda keras, x: keras.layers.Conv3D(2, 1, name="own")(
            keras.layers.Reshape((6, 4, 1, 1))(x)
        ),
        "LiteRT has no integer kernel for Conv3D",
    ),
    "arguments": (
        lambda keras, x: _ops(keras, "roll", tf.roll)(x, 1, 0),
        "with these arguments roll has no integer form",
    ),
}


@both
@pytest.mark.parametrize("case", CASES)
def test_a_reason_and_what_to_do(case: str, flavour: str, tmp_path: Path) -> None:
    build, pattern = CASES[case]
    keras = KERASES[flavour]
    keras.backend.clear_session()
    inputs = keras.Input((6, 4))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Model(inputs, build(keras, x))
        plan = rewriter.plan(model)
        qat = rewriter.rewrite(model)
    assert plan.float_layers and set(plan.float_reasons) == set(plan.float_layers)
    told = " ".join(plan.float_reasons.values())
    assert re.search(pattern, told, re.IGNORECASE), told
    assert all(". " in reason for reason in plan.float_reasons.values())  # and the remedy
    data = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    rewriter.calibrate(qat, data, progress=False)
    with pytest.raises(ExportError) as refused:
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    for name, reason in plan.float_reasons.items():
        assert f" {name}: {reason}." in str(refused.value)


@both
def test_masks_that_no_value_depends_on_are_not_named(flavour: str) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 4, mask_zero=True)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    assert rewriter.plan(model).float_layers == ()


@both
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Bidirectional"])
@pytest.mark.parametrize("source", ["Masking", "Embedding"])
def test_recurrent_layers_under_masks(source: str, kind: str, flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    words = source == "Embedding"
    inputs = keras.Input((5,), dtype="int32") if words else keras.Input((5, 4))
    layer = keras.layers.Embedding(7, 4, mask_zero=True) if words else keras.layers.Masking()
    layers = {
        "Bidirectional": lambda: keras.layers.Bidirectional(keras.layers.GRU(3), name="rnn"),
        **{k: (lambda k=k: getattr(keras.layers, k)(3, name="rnn")) for k in ("LSTM", "GRU")},
    }
    model = keras.Model(inputs, layers[kind]()(layer(inputs)))
    plan = rewriter.plan(model)
    assert "under a mask" in plan.float_reasons["rnn"]
    assert "Build it without masks" in plan.float_reasons["rnn"]
    qat = rewriter.rewrite(model)
    data = np.ones((4, 5), np.int32) if words else np.ones((4, 5, 4), np.float32)
    rewriter.calibrate(qat, data, progress=False)
    for options in ({}, {"allow_float": True}):
        with pytest.raises(ExportError, match="'rnn'.*under a mask.*without masks"):
            rewriter.export_tflite(qat, tmp_path / "m.tflite", **options)
