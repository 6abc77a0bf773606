"""Values of a layer's own that are joined to every sample, such as the class tokens of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from builders import KERASES, keras_of, normal
from rewriter.checking import interpreter
from rewriter.reading.traces import trace

REPEATED: dict[str, Callable[[Any, Any], Any]] = {
    "repeat": lambda token, x: tf.repeat(token, tf.shape(x)[0], axis=0),
    "tile": lambda token, x: tf.tile(token, (tf.shape(x)[0], 1, 1)),
    "broadcast": lambda token, x: tf.broadcast_to(token, (tf.shape(x)[0], 1, x.shape[-1])),
}
JOINED: dict[str, Callable[[Any, Any], Any]] = {
    "before": lambda token, x: tf.concat([token, x], 1),
    "after": lambda token, x: tf.concat([x, token], 1),
    "around": lambda token, x: tf.concat([token, x, token, token], 1),
}


def tokens(keras: Any, repeat: str, join: str, opened: bool) -> Any:
    """A model of a small transformer's first layers; ``opened``: with a normalization in the layer."""
    layers = keras.layers

    class Tokens(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(name="tokens")
            self.patch = layers.Conv2D(6, 3, name="patch")
            self.norm = layers.BatchNormalization(name="norm")

        def build(self, shape: Any) -> None:
            if opened:
                self.patch.build(shape)
                self.norm.build((None, 6, 6, 6))
            width = 6 if opened else shape[-1]
            self.token = self.add_weight(name="token", shape=(1, 1, width), initializer="normal")
            self.built = True

        def call(self, x: Any) -> Any:
            if opened:
                x = tf.reshape(self.norm(self.patch(x)), (-1, 36, 6))
            return JOINED[join](REPEATED[repeat](self.token, x), x)

    x = image = keras.Input((8, 8, 3), name="image")
    if not opened:
        x = layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, name="patch")(x))
        x = layers.Reshape((36, 6), name="rows")(x)
    x = layers.Flatten(name="flat")(layers.Dense(4, name="mixed")(Tokens()(x)))
    return keras.Model(image, layers.Dense(3, name="scores")(x))


@pytest.mark.parametrize("name", KERASES)
@pytest.mark.parametrize("opened", [False, True], ids=["alone", "in a block"])
@pytest.mark.parametrize("join", JOINED)
@pytest.mark.parametrize(
    "repeat",
    ["repeat", *(pytest.param(name, marks=pytest.mark.wide) for name in ("tile", "broadcast"))],
)
def test_the_whole_way(name: str, opened: bool, join: str, repeat: str, tmp_path: Path) -> None:
    keras = builders.fresh(keras_of(name))
    model = tokens(keras, repeat, join, opened)
    data = normal(32, 8, 8, 3, seed=1)
    qat = rewriter.rewrite(model)
    rewriter.set_phase(qat, "float")
    np.testing.assert_array_equal(qat.predict(data, verbose=0), model.predict(data, verbose=0))
    qat.compile("sgd", "mse")
    before = [np.asarray(v) for v in qat.trainable_variables]
    assert sum(v.shape == (1, 1, 6) for v in before) == 1
    qat.fit(data, normal(32, 3), verbose=0)
    for variable, value in zip(qat.trainable_variables, before, strict=True):
        assert value.shape != (1, 1, 6) or (np.asarray(variable) != value).all()
    rewriter.set_phase(qat, "quantize")
    rewriter.calibrate(qat, data, progress=False)
    file = tmp_path / "model.tflite"
    outputs = []
    for batch in (1, None):
        rewriter.export_tflite(qat, file, batch_size=batch)  # refused where anything stays in float
        found = rewriter.verify(qat, file, data[:5], progress=False)
        assert all(each.identical == 1 for each in found.comparison.operator_by_operator)
        assert found.training.fault is None
        outputs += interpreter.run(file.read_bytes(), [data[:5]])
    np.testing.assert_array_equal(*outputs)
    qat.save(tmp_path / "qat.keras")
    again = rewriter.load_model(
        tmp_path / "qat.keras",
        custom_objects={"Tokens": type(model.get_layer("tokens"))} if not opened else None,
    )
    np.testing.assert_array_equal(again.predict(data, verbose=0), qat.predict(data, verbose=0))


NOT_FOR_EVERY_SAMPLE: dict[str, Callable[[Any], Any]] = {
    "numbers of the samples": lambda x: tf.concat(
        [tf.zeros_like(x[:, :1]) + tf.reshape(tf.cast(tf.range(tf.shape(x)[0]), tf.float32), (-1, 1, 1)), x], 1
    ),
    "a share of the batch": lambda x: tf.concat(
        [tf.fill((tf.shape(x)[0], 1, 4), 1 / tf.cast(tf.shape(x)[0], tf.float32)), x], 1
    ),
    "more samples": lambda x: tf.concat([tf.ones((1, 3, 4)), x], 0),
    "twice as many": lambda x: x + tf.repeat(tf.ones((1, 1, 4)), 2 * tf.shape(x)[0], 0)[::2],
}  # fmt: skip


def test_what_is_not_the_same_for_every_sample() -> None:
    """The first two depend on the batch: read as constants they would be wrong in silence."""
    found = {key: trace(f, [(None, 3, 4)]) for key, f in NOT_FOR_EVERY_SAMPLE.items()}
    assert found["numbers of the samples"] is None and found["a share of the batch"] is None
    assert found["more samples"] is not None  # the reader refuses it, by its axis
    assert found["twice as many"] is not None  # after all the same for each


TRANSPOSED: dict[str, Callable[[Any, Any], Any]] = {
    "once": lambda x, w: tf.matmul(x, w, transpose_b=True),
    "both ways": lambda x, w: tf.matmul(tf.nn.relu(tf.matmul(x, w)), w, transpose_b=True),
}


@pytest.mark.parametrize("name", KERASES)
@pytest.mark.parametrize("how", TRANSPOSED)
def test_a_weight_that_is_read_transposed_is_trained_as_one(name: str, how: str) -> None:
    """By a Dense layer where nothing else reads it, whose kernel is its transpose."""
    keras = builders.fresh(keras_of(name))

    class Back(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(name="w", shape=(4, 4), initializer="glorot_uniform")
            super().build(shape)

        def call(self, x: Any) -> Any:
            return TRANSPOSED[how](x, self.w)

    inputs = keras.Input((6, 4), name="rows")
    model = keras.Model(inputs, Back(name="back")(inputs))
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables) == 1
    x = normal(16, 6, 4)
    for each in (model, qat):
        each.compile(keras.optimizers.SGD(0.5), "mse")
        each.fit(x, -x, batch_size=16, epochs=3, shuffle=False, verbose=0)
    found, expected = (np.asarray(m.trainable_variables[0]) for m in (qat, model))
    np.testing.assert_allclose(found, expected, atol=1e-6)
