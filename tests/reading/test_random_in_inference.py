"""Layers that are random in inference too, because they are called so: no integers, and no silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from builders import fresh, keras_of
from checks import both
from rewriter.errors import ExportError, UnsupportedModelError

X = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
RANDOM = ["Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout", "RandomFlip"]


def net(keras: Any, name: str, *given: Any, **flags: Any) -> Any:
    layers = fresh(keras).layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    random = layers.RandomFlip() if name == "RandomFlip" else getattr(layers, name)(0.5)
    random = random.__class__.from_config({**random.get_config(), "name": "random"})
    x = layers.BatchNormalization(name="norm")(random(x, *given, **flags))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("by_name", [True, False])
def test_always_random(name: str, by_name: bool, tmp_path: Path) -> None:
    """tf_keras keeps the flag of such a call, as for Monte Carlo dropout."""
    keras = keras_of("tf_keras")
    model = net(keras, name, training=True) if by_name else net(keras, name, True)
    runs = [model.predict(X, verbose=0) for _ in range(2)]
    assert np.abs(runs[0] - runs[1]).max() > 1e-3  # the original is
    plan = rewriter.plan(model)
    assert list(plan.float_layers) == ["random"] and plan.entries[0].action == "standalone"
    quantized = rewriter.rewrite(model)
    rewriter.calibrate(quantized, X)
    with pytest.raises(ExportError, match=r"random.*training=True"):
        rewriter.export_tflite(quantized, tmp_path / "model.tflite")


@both
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("flags", [{}, {"training": False}])
def test_random_in_training_only(
    flavour: str, name: str, flags: dict[str, bool], tmp_path: Path
) -> None:
    """Others are nothing in the file."""
    quantized = rewriter.rewrite(net(keras_of(flavour), name, **flags))
    rewriter.calibrate(quantized, X)
    rewriter.export_tflite(quantized, tmp_path / "model.tflite")
    result = rewriter.verify(quantized, tmp_path / "model.tflite", X, progress=False)
    assert result.snr is not None and result.snr > 25


def test_a_rate_of_nothing() -> None:
    keras = keras_of("tf_keras")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dropout(0.0)(keras.layers.Conv2D(4, 3)(inputs), training=True)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    assert not rewriter.plan(model).float_layers


@pytest.mark.parametrize(
    ("flavour", "kind"), [("tf_keras", "sparse"), ("tf_keras", "ragged"), ("keras", "sparse")]
)
def test_inputs_that_are_not_dense(flavour: str, kind: str) -> None:
    keras = fresh(keras_of(flavour))
    inputs = keras.Input((6,), name="words", **{kind: True})
    x = keras.layers.Dense(4)(inputs) if kind == "sparse" else inputs
    model = keras.Model(inputs, x)
    with pytest.raises(UnsupportedModelError, match=f"'words' is {kind}.*dense"):
        rewriter.rewrite(model)


def attending(keras: Any, **flags: Any) -> Any:
    layers = fresh(keras).layers
    inputs = keras.Input((6, 8))
    x = layers.BatchNormalization(name="norm")(layers.Conv1D(8, 3, name="conv")(inputs))
    x = layers.Attention(dropout=0.5, name="attention")([x, x], **flags)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


@both
def test_attention_drops_weights_in_training(flavour: str, tmp_path: Path) -> None:
    model = attending(keras_of(flavour))
    x = np.random.default_rng(1).normal(size=(64, 6, 8)).astype(np.float32)
    quantized = rewriter.rewrite(model)
    np.testing.assert_allclose(quantized(x), model(x), atol=1e-6)
    for each in (model, quantized):
        runs = np.stack([np.asarray(each(x, training=True)) for _ in range(2)])
        assert np.abs(runs[0] - runs[1]).max() > 1e-2
    rewriter.calibrate(quantized, x)
    rewriter.export_tflite(quantized, tmp_path / "model.tflite")
    result = rewriter.verify(quantized, tmp_path / "model.tflite", x, progress=False)
    assert result.snr is not None and result.snr > 25


def test_attention_that_always_drops_weights(tmp_path: Path) -> None:
    quantized = rewriter.rewrite(attending(keras_of("tf_keras"), training=True))
    rewriter.calibrate(quantized, X[:, :6, :8, 0].copy())
    with pytest.raises(ExportError, match=r"attention.*training=True"):
        rewriter.export_tflite(quantized, tmp_path / "model.tflite")
