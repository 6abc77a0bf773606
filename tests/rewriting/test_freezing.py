"""Frozen copies: the same numbers, in a form that TensorFlow's own tools take."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError, UnsupportedModelError
from saved_models import save

X = np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype(np.float32)


def original(flavour: str) -> Any:
    """Every kind of host with kernels of its own layout, every place of a normalization."""
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 8, 3), name="image")

    def norm(x: Any, **options: Any) -> Any:
        made = layers.BatchNormalization(**options)
        y = made(x)
        count = x.shape[-1]
        made.gamma.assign(np.linspace(0.7, -1.3, count))
        made.moving_variance.assign(np.linspace(0.5, 1.5, count))
        made.moving_mean.assign(np.linspace(-0.2, 0.2, count))
        return y

    x = layers.ReLU()(norm(layers.Conv2D(4, 3, name="conv")(inputs)))
    x = layers.ReLU(6.0)(norm(layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)))
    y = norm(layers.SeparableConv2D(4, 3, padding="same", name="separable")(x))
    x = layers.ReLU()(norm(layers.Add()([x, y]), name="alone", epsilon=0.5))
    x = norm(layers.Conv2DTranspose(3, 2, strides=2, use_bias=False, name="transposed")(x))
    x = layers.AveragePooling2D(2)(x)
    x = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(x)
    x = layers.TimeDistributed(layers.Dense(4), name="steps")(layers.Reshape((-1, 4))(x))
    x = layers.Flatten()(layers.LayerNormalization(name="layer_norm")(norm(x)))
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="scores")(x))


def calibrated(flavour: str) -> Any:
    return rewriter.rewrite(original(flavour), calibration_data=X)


@both
def test_every_layer_computes_the_same(flavour: str) -> None:
    """Layer by layer: the normalization near the end would hide a wrong scale before it."""
    keras = KERASES[flavour]
    qat = calibrated(flavour)
    frozen = rewriter.freeze(qat)
    there = {layer.name for layer in frozen.layers}
    names = [layer.name for layer in qat.layers[1:] if layer.name in there]
    assert {"conv", "depthwise", "separable", "alone", "transposed", "gate", "steps"} <= set(names)
    outputs = [
        keras.Model(model.inputs, [model.get_layer(name).output for name in names])(X)
        for model in (qat, frozen)
    ]
    for name, wanted, found in zip(names, *outputs, strict=True):
        wanted, found = (np.asarray(value, np.float64) for value in (wanted, found))
        noise = np.sum((found - wanted) ** 2)
        assert 10 * np.log10(np.sum(wanted**2) / max(noise, 1e-30)) > 35, name


@both
def test_the_same_numbers(flavour: str, tmp_path: Path) -> None:
    """As the model in phase quantize, which stays as it is; and after saving."""
    qat = calibrated(flavour)
    before = [np.array(v) for v in qat.variables]
    wanted = np.asarray(qat(X))
    frozen = rewriter.freeze(qat)
    found = np.asarray(frozen(X))
    noise = found.astype(np.float64) - wanted
    assert 10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / np.sum(noise**2)) > 40
    assert rewriter.get_phase(qat) == "quantize"
    np.testing.assert_array_equal(np.asarray(qat(X)), wanted)
    for variable, value in zip(qat.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)
    assert not frozen.trainable_variables
    assert frozen.layers[-1].name == "scores"
    loaded = rewriter.load_model(save(frozen, tmp_path / "m.keras"))
    np.testing.assert_allclose(np.asarray(loaded(X)), found, atol=1e-6)


def graph_of(model: Any) -> set[str]:
    """The operations that a model runs, those of functions inside it included."""
    function = tf.function(lambda x: model(x, training=False))
    graph = function.get_concrete_function(tf.TensorSpec((1, 8, 8, 3))).graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    return {node.op for node in nodes}


@both
def test_no_conditions_are_left(flavour: str) -> None:
    conditions = {"If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile"}
    qat = calibrated(flavour)
    assert graph_of(qat) & conditions
    operations = graph_of(rewriter.freeze(qat))
    assert not operations & conditions
    assert "FakeQuantWithMinMaxArgs" in operations
    assert not {name for name in operations if name.startswith("Assign")}


@both
def test_the_stock_converter(flavour: str, tmp_path: Path) -> None:
    """``from_keras_model`` makes an integer file of it: int8 kernels, the trained ranges."""
    qat = calibrated(flavour)
    frozen = rewriter.freeze(qat)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = tf.lite.TFLiteConverter.from_keras_model(frozen)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        content = converter.convert()
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    kernels = [t for t in interpreter.get_tensor_details() if len(t["shape"]) == 4]
    assert any(t["dtype"] is np.int8 for t in kernels)
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for sample in X:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(made["index"])[0])
    wanted = np.asarray(qat(X))
    noise = np.stack(found).astype(np.float64) - wanted
    assert 10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / np.sum(noise**2)) > 20


@both
def test_model_export(flavour: str, tmp_path: Path) -> None:
    frozen = rewriter.freeze(calibrated(flavour))
    frozen.export(str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))  # its variables live as long as it
    served = loaded.serve(tf.constant(X))
    np.testing.assert_allclose(np.asarray(served), np.asarray(frozen(X)), atol=1e-6)


@both
def test_what_cannot_be_frozen(flavour: str) -> None:
    model = original(flavour)
    with pytest.raises(UnsupportedModelError, match="not quantization-aware, or a twin or frozen"):
        rewriter.freeze(model)
    qat = rewriter.rewrite(model)
    with pytest.raises(ExportError, match=r"ranges of \d+ activations have not been set"):
        rewriter.freeze(qat)
    rewriter.calibrate(qat, X, progress=False)
    with pytest.raises(UnsupportedModelError, match="not quantization-aware, or a twin or frozen"):
        rewriter.freeze(rewriter.fold(qat))


@both
def test_copies_are_neither_rewritten_nor_exported(flavour: str, tmp_path: Path) -> None:
    """They were taken for models with float layers, and the advice led in a circle."""
    qat = calibrated(flavour)
    for copy, what in ((rewriter.freeze(qat), "rewriter.freeze"), (rewriter.fold(qat), "a twin")):
        with pytest.raises(UnsupportedModelError, match="a twin or a frozen copy"):
            rewriter.rewrite(copy)
        for allow in (False, True):
            with pytest.raises(ExportError, match=f"is .*{what}.*Give the quantization-aware mod"):
                rewriter.export_tflite(copy, tmp_path / "m.tflite", allow_float=allow)
    with pytest.raises(UnsupportedModelError, match="frozen already"):
        rewriter.freeze(rewriter.freeze(qat))
