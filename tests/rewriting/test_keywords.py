"""Tensors given by keyword: the same model as by position."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from builders import fresh, keras_of

X = builders.normal(8, 6)
OPERATIONS = {
    "add": lambda a, b: keras.ops.add(x1=a, x2=b),
    "subtract": lambda a, b: keras.ops.subtract(a, x2=b),
    "concatenate": lambda a, b: keras.ops.concatenate(xs=[a, b], axis=-1),
    "stack": lambda a, b: keras.ops.stack(x=[a, b], axis=1),
    "relu": lambda a, b: keras.ops.relu(x=a),
    "maximum": lambda a, b: keras.ops.maximum(x2=a, x1=b),
    "clip": lambda a, b: keras.ops.clip(x_max=6.0, x=a, x_min=0.0),
    "mean": lambda a, b: keras.ops.mean(axis=1, x=keras.ops.reshape(newshape=(-1, 2, 2), x=a)),
    "softmax": lambda a, b: keras.ops.softmax(axis=-1, x=a),
}
SYMBOLS = {
    "add": lambda a, b: tf.add(y=a, x=b),
    "concat": lambda a, b: tf.concat(values=[a, b], axis=-1),
    "relu": lambda a, b: tf.nn.relu(features=a),
    "clip": lambda a, b: tf.clip_by_value(clip_value_min=0.0, t=a, clip_value_max=6.0),
    "reshape": lambda a, b: tf.reshape(shape=(-1, 2, 2), tensor=a),
}


def _inner(k):
    return k.Sequential([k.layers.Dense(4), k.layers.BatchNormalization()])


def _inner_of_dict(k):
    inputs = {name: k.Input((4,), name=name) for name in ("b", "a")}
    x = k.layers.Subtract()([inputs["a"], inputs["b"]])
    return k.Model(inputs, k.layers.BatchNormalization()(k.layers.Dense(3)(x)))


LAYERS = {
    "norm": lambda k, a, b: k.layers.BatchNormalization()(inputs=a),
    "fused": lambda k, a, b: k.layers.BatchNormalization()(inputs=k.layers.Dense(3)(inputs=a)),
    "frozen": lambda k, a, b: k.layers.BatchNormalization()(
        training=False, inputs=k.layers.Dense(3)(inputs=a)
    ),
    "relu": lambda k, a, b: k.layers.ReLU()(inputs=a),
    "concatenate": lambda k, a, b: k.layers.Concatenate()(inputs=[b, a]),
    "nested": lambda k, a, b: _inner(k)(inputs=a),
    "nested_dict": lambda k, a, b: _inner_of_dict(k)(inputs={"a": a, "b": b}),
}
CASES = [
    *[("keras", f"op_{n}", lambda k, a, b, f=f: f(a, b)) for n, f in OPERATIONS.items()],
    *[("tf_keras", f"op_{n}", lambda k, a, b, f=f: f(a, b)) for n, f in SYMBOLS.items()],
    *[(kind, name, make) for kind in ("tf_keras", "keras") for name, make in LAYERS.items()],
]


@pytest.mark.parametrize(("kind", "name", "make"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_the_whole_way(kind, name, make, tmp_path):
    k = fresh(keras_of(kind))
    image = k.Input((6,), name="image")
    a, b = (k.layers.BatchNormalization()(inputs=k.layers.Dense(4)(image)) for _ in range(2))
    model = builders.randomise_all(k.Model(image, make(k, a, b)), 0)
    qat = rewriter.rewrite(model)
    np.testing.assert_allclose(np.asarray(qat(X)), np.asarray(model(X)), atol=1e-5)
    rewriter.calibrate(qat, X, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    result = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert result.comparison.worst.identical == 1.0 and result.training.fault is None
