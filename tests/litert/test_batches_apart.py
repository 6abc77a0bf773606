"""Layers that compute something of several samples together are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both, run_file
from no_integers import cosine, sine
from rewriter.errors import ExportError, UnsupportedModelError

X = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)

MIXED = {
    "mean of all": (lambda t: t - tf.reduce_mean(t), (4, 4, 3)),
    "mean over the batch": (lambda t: tf.reduce_mean(t, 0, keepdims=True), (4, 4, 3)),
    "without a batch": (lambda t: tf.reduce_mean(t, 0), (4, 3)),
    "largest of all": (lambda t: t / (tf.reduce_max(t) + 1.0), (4, 4, 3)),
    "unit over the batch": (lambda t: tf.nn.l2_normalize(t, 0), (4, 4, 3)),
    "reversed": (lambda t: tf.reverse(t, [0]), (4, 4, 3)),
    "tiled": (lambda t: tf.tile(t, [2, 1, 1, 1]), (4, 4, 3)),
    "shares": (lambda t: tf.nn.softmax(tf.reduce_mean(t, [1, 2, 3])), ()),
    "summed up": (lambda t: tf.cumsum(tf.reduce_mean(t, [1, 2, 3])), ()),
}
# What the layer after them undoes; at the end of a model they are refused.
MOVED = {
    "batch second": (
        lambda t: tf.transpose(sine(t), [1, 0, 2, 3]),
        lambda t: tf.transpose(cosine(t), [1, 0, 2, 3]),
    ),
    "halves in a batch of their own": (
        lambda t: tf.concat(tf.split(sine(t), 2, axis=1), axis=0),
        lambda t: tf.concat(tf.split(cosine(t), 2, axis=0), axis=1),
    ),
}
APART = {
    "a number for each": (lambda t: tf.norm(tf.reshape(t, [-1, 48]), axis=-1), ()),
    "windows as samples": (
        lambda t: tf.reshape(tf.reshape(sine(t), [-1, 2, 8, 3]), [-1, 4, 4, 3]),
        (4, 4, 3),
    ),
    "what does not depend on it": (lambda t: sine(t) + tf.zeros_like(t[:1]), (4, 4, 3)),
    "places of the largest": (
        lambda t: tf.cast(tf.argmax(tf.reshape(t, [-1, 48]), -1), tf.float32),
        (),
    ),
}


def model_of(flavour: str, function: Any, shape: tuple[int, ...]) -> Any:
    keras = KERASES[flavour]
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(3, 1, name="conv")(x)
    x = keras.layers.Lambda(function, output_shape=shape, name="odd")(x)
    qat = rewriter.rewrite(keras.Model(inputs, x))
    return rewriter.calibrate(qat, X, progress=False)


@both
@pytest.mark.parametrize("case", MIXED)
def test_refused(flavour: str, case: str, tmp_path: Path) -> None:
    qat = model_of(flavour, *MIXED[case])
    with pytest.raises(ExportError, match=r"'odd' has no integer form"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    with pytest.raises(ExportError, match=r"Layer 'odd': .* depends on the others.*axes from 1"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    assert not list(tmp_path.iterdir())


@both
@pytest.mark.parametrize("case", APART)
def test_taken(flavour: str, case: str, tmp_path: Path) -> None:
    qat = model_of(flavour, *APART[case])
    rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)


@both
@pytest.mark.parametrize("case", MOVED)
def test_samples_that_are_moved(flavour: str, case: str, tmp_path: Path) -> None:
    there, back = MOVED[case]
    shape = (4, 4, 3)
    with pytest.raises(ExportError, match=r"Layer 'odd': .* depends on the others"):
        qat = model_of(flavour, there, shape)
        rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    keras = KERASES[flavour]
    x = inputs = keras.Input((4, 4, 3))
    for function in (there, back):
        x = keras.layers.Lambda(function, output_shape=shape)(x)
    x = keras.layers.Dense(2)(keras.layers.Flatten()(x)) if case != "batch second" else x
    qat = rewriter.calibrate(rewriter.rewrite(keras.Model(inputs, x)), X, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)


@both
def test_samples_that_belong_together(flavour: str, tmp_path: Path) -> None:
    """In a file for so many of them."""
    qat = model_of(flavour, *MIXED["unit over the batch"])
    options = {"allow_float": True, "float_io": True, "batch_size": len(X)}
    rewriter.export_tflite(qat, tmp_path / "m.tflite", **options)
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, np.asarray(qat(X)), atol=0.05)


@both
def test_a_number_for_each_sample(flavour: str, tmp_path: Path) -> None:
    """Tensors of one axis, the batch's, all the way: ``output_shape=()``."""
    keras = KERASES[flavour]
    x = inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(3, 1)(x)
    mean = keras.layers.Lambda(lambda t: tf.reduce_mean(t, [1, 2, 3]), output_shape=())(x)
    most = keras.layers.Lambda(lambda t: tf.reduce_max(t, [1, 2, 3]), output_shape=())(x)
    both_of_them = keras.layers.Add()([mean, keras.layers.ReLU()(most)])
    scaled = keras.layers.Multiply()([x, keras.layers.Reshape((1, 1, 1))(mean)])
    qat = rewriter.rewrite(keras.Model(inputs, [both_of_them, scaled]))
    rewriter.calibrate(qat, X, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    assert [each.shape for each in run_file(tmp_path / "m.tflite", [X])] == [(16,), (16, 4, 4, 3)]


def test_a_shape_that_is_not_what_is_returned(tmp_path: Path) -> None:
    """Keras 3 believes it."""
    qat = model_of("keras", lambda t: t * 2.0, ())
    with pytest.raises(ExportError, match=r"'odd'.*\(1, 4, 4, 3\).*output_shape of a Lambda"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def test_an_unknown_number_of_axes() -> None:
    keras = KERASES["tf_keras"]
    inputs = keras.Input((4, 4, 3))
    x = tf.reduce_mean(keras.layers.Conv2D(3, 1)(inputs), [1, 2, 3])
    model = keras.Model(inputs, tf.squeeze(x))
    with pytest.raises(UnsupportedModelError, match=r"squeeze.*number of axes.*Name the axes"):
        rewriter.rewrite(model)
