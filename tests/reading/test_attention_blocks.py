"""Attention as users write it: in a layer that asks whether it trains, in windows of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import builders
import claims
import rewriter
from builders import KERASES, keras_of, normal
from rewriter.errors import ExportError


def attention(keras: Any, dropout: float, items: bool = False) -> Any:
    """Written with Keras's operations, or with TensorFlow's where this Keras has none."""
    layers = keras.layers

    class Attention(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, heads: int = 2, **kwargs: Any):
            super().__init__(**kwargs)
            self.heads = heads
            self.qkv = layers.Dense(48, name="qkv")
            self.project = layers.Dense(16, name="project")
            self.drop = layers.Dropout(dropout, name="drop")

        def call(self, x: Any, training: Any = None) -> Any:
            if hasattr(keras, "ops"):
                ops = keras.ops
                shape = ops.shape(x)
                qkv = ops.reshape(self.qkv(x), [shape[0], shape[1], 3, self.heads, 8])
                if items:
                    qkv = ops.transpose(qkv, [2, 0, 3, 1, 4])
                    q, k, v = qkv[0], qkv[1], qkv[-1]
                else:
                    q, k, v = ops.unstack(ops.transpose(qkv, [0, 3, 2, 1, 4]), 3, axis=2)
                scores = ops.softmax(ops.matmul(q / 8**0.5, ops.swapaxes(k, -2, -1)))
                scores = self.drop(scores, training=training)
                y = ops.reshape(ops.swapaxes(ops.matmul(scores, v), -3, -2), shape)
            else:
                shape = tf.shape(x)
                qkv = tf.reshape(self.qkv(x), [shape[0], shape[1], 3, self.heads, 8])
                qkv = tf.transpose(qkv, [2, 0, 3, 1, 4])
                q, k, v = (qkv[0], qkv[1], qkv[-1]) if items else tf.unstack(qkv, 3)
                scores = tf.nn.softmax(tf.matmul(q / 8**0.5, k, transpose_b=True))
                scores = self.drop(scores, training=training)
                y = tf.reshape(tf.transpose(tf.matmul(scores, v), [0, 2, 1, 3]), shape)
                y = tf.ensure_shape(y, [None, 6, 16])
            return self.drop(self.project(y), training=training)

    return Attention(name="attention")


@pytest.mark.parametrize("items", [False, True])
@pytest.mark.parametrize("flavour", KERASES)
def test_a_layer_that_asks_whether_it_trains(flavour: str, items: bool, tmp_path: Path) -> None:
    keras = builders.fresh(keras_of(flavour))
    inputs = keras.Input((6, 16))
    x = keras.layers.Add()([inputs, attention(keras, 0.5, items)(inputs)])
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(4, 6, 16))
    data = normal(32, 6, 16, seed=1)
    rewriter.calibrate(qat, data, progress=False)
    report = rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not report.float_tensors
    found = rewriter.verify(qat, tmp_path / "m.tflite", data[:8], progress=False).comparison
    assert not found.differences
    assert all(tensor.identical >= 0.999 for tensor in found.operator_by_operator)
    # The dropouts are there, in training alone.
    first, second = (np.array(qat(data, training=True)) for _ in range(2))
    assert abs(first - second).max() > 0.1
    np.testing.assert_array_equal(np.array(qat(data)), np.array(qat(data)))


@pytest.mark.parametrize("flavour", KERASES)
@pytest.mark.parametrize("other", ["output", "relu", "again", "slice"])
def test_a_batch_in_second_place_that_something_else_reads(
    flavour: str, other: str, tmp_path: Path
) -> None:
    """Only what splits the first axis is lowered there; the rest stays in float, and right."""
    keras = builders.fresh(keras_of(flavour))
    ops = keras.ops if hasattr(keras, "ops") else tf
    inputs = keras.Input((4, 6))
    x = ops.transpose(keras.layers.Dense(8, name="dense")(inputs), [1, 0, 2])
    more = {
        "output": lambda: x,
        "relu": lambda: keras.layers.ReLU()(x),
        "again": lambda: ops.transpose(x, [1, 0, 2]),
        "slice": lambda: x[1:3, :, :2],
    }[other]()
    model = keras.Model(inputs, [keras.layers.Dense(3, name="head")(x[2]), more])
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(5, 4, 6))
    rewriter.calibrate(qat, normal(32, 4, 6, seed=1), progress=False)
    with pytest.raises(ExportError, match="has no integer form"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    given = normal(32, 4, 6, seed=1)[:5]
    for found, expected in zip(rewriter.fold(qat)(given), model(given), strict=True):
        np.testing.assert_allclose(np.array(found), np.array(expected), atol=0.1)
    able = keras.Model(inputs, keras.layers.Dense(3, name="head")(x[2]))
    again = rewriter.rewrite(able, calibration_data=normal(32, 4, 6, seed=1))
    rewriter.export_tflite(again, tmp_path / "m.tflite")
    np.testing.assert_allclose(
        np.array(rewriter.fold(again)(given)), np.array(able(given)), atol=0.1
    )


def windows(keras: Any) -> Any:
    """Attention within windows of 4 x 4 pixels, which are rows of the batch."""
    layers, ops = keras.layers, keras.ops if hasattr(keras, "ops") else tf
    softmax = ops.softmax if hasattr(ops, "softmax") else tf.nn.softmax
    inputs = keras.Input((8, 8, 6))
    image = layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
    x = ops.transpose(ops.reshape(image, (-1, 2, 4, 2, 4, 8)), (0, 1, 3, 2, 4, 5))
    x = ops.reshape(x, (-1, 16, 8))
    q, k, v = (layers.Dense(8, name=name)(x) for name in "qkv")
    scores = softmax(ops.matmul(q, ops.transpose(k, (0, 2, 1))))
    x = layers.Dense(8, name="project")(ops.matmul(scores, v))
    x = ops.transpose(ops.reshape(x, (-1, 2, 2, 4, 4, 8)), (0, 1, 3, 2, 4, 5))
    x = layers.Add(name="add")([image, ops.reshape(x, (-1, 8, 8, 8))])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@pytest.mark.parametrize("flavour", KERASES)
def test_windows_of_an_image_are_rows(flavour: str, tmp_path: Path) -> None:
    keras = builders.fresh(keras_of(flavour))
    model = windows(keras)
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(4, 8, 8, 6))
    data = normal(32, 8, 8, 6, seed=1)
    rewriter.calibrate(qat, data, progress=False)
    report = rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not report.float_tensors
    found = rewriter.verify(qat, tmp_path / "m.tflite", data[:8], progress=False).comparison
    assert not found.differences and not found.skipped
    assert all(tensor.identical >= 0.999 for tensor in found.operator_by_operator)
    expected = np.array(rewriter.fold(qat)(data[:8]))
    for size in (4, None):  # of more samples at a time each has its own windows
        path = tmp_path / f"{size}.tflite"
        rewriter.export_tflite(qat, path, batch_size=size, output_type="float32")
        interpreter = Interpreter(str(path))
        interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (4, 8, 8, 6))
        interpreter.allocate_tensors()
        (entry,) = interpreter.get_input_details()
        scale, zero = entry["quantization"]
        values = np.clip(np.rint(data[:4] / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], values)
        interpreter.invoke()
        (out,) = interpreter.get_output_details()
        np.testing.assert_allclose(interpreter.get_tensor(out["index"]), expected[:4], rtol=1e-5)


@pytest.mark.parametrize("flavour", KERASES)
def test_a_reshaping_that_mixes_samples_stays_in_float(flavour: str, tmp_path: Path) -> None:
    keras = builders.fresh(keras_of(flavour))
    ops = keras.ops if hasattr(keras, "ops") else tf
    inputs = keras.Input((4, 6))
    x = keras.layers.Dense(6, name="dense")(inputs)
    pairs = keras.layers.Dense(6, name="pairs")(ops.reshape(x, (-1, 8, 6)))  # of two samples each
    model = keras.Model(inputs, ops.reshape(pairs, (-1, 4, 6)))
    qat = rewriter.rewrite(model, calibration_data=normal(32, 4, 6))
    with pytest.raises(ExportError, match=r"no integer form, and \d layer.*reshape"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
