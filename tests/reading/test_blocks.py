"""Layers of users' own with normalizations inside: opened, or refused with the reason.

The oracle is the original model, layer and all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
import user_blocks
from builders import KERASES, keras_of, normal
from rewriter.errors import UnsupportedModelError


@pytest.fixture(params=KERASES)
def keras(request: Any) -> Any:
    return builders.fresh(keras_of(request.param))


def functional(keras: Any, block: Any) -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(block(x))
    return keras.Model(image, layers.Dense(3, name="scores")(x))


def subclassed(keras: Any, block: Any) -> Any:
    layers = keras.layers

    class Net(keras.Model):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = layers.Conv2D(4, 3, padding="same", name="stem")
            self.block = block
            self.pool = layers.GlobalAveragePooling2D(name="pool")
            self.scores = layers.Dense(3, name="scores")

        def call(self, x: Any, training: bool = False) -> Any:
            x = self.block(self.stem(x), training=training)
            return self.scores(self.pool(x))

    model = Net()
    model(normal(2, 8, 8, 3))
    return model


def follows(keras: Any, model: Any, qat: Any, steps: int = 20) -> None:
    """Both models have the same outputs, the same losses in training, and the same outputs after."""
    x = normal(4, 8, 8, 3, seed=99)
    claims.check_float_phase(model, qat, x)
    batches = [(normal(8, 8, 8, 3, seed=i), normal(8, 3, seed=50 + i)) for i in range(steps)]
    losses = [claims.train(m, keras, batches, "mse", 1e-2) for m in (model, qat)]
    assert losses[0][-1] != losses[0][0]
    claims.assert_close(losses[1], losses[0], 1e-4, "losses")
    claims.check_float_phase(model, qat, x, 1e-4)


def on_the_device(qat: Any, tmp_path: Path) -> None:
    """Calibrated, trained, saved, loaded, exported in integers, verified."""
    data = normal(32, 8, 8, 3, seed=5)
    rewriter.calibrate(qat, data, progress=False)
    qat.compile("sgd", "mse")
    qat.fit(data, normal(32, 3, seed=6), verbose=0)
    qat.save(tmp_path / "qat.keras")
    again = rewriter.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(again.predict(data, verbose=0), qat.predict(data, verbose=0))
    rewriter.export_tflite(again, tmp_path / "m.tflite")
    found = rewriter.verify(again, tmp_path / "m.tflite", data[:8], progress=False).comparison
    assert not found.differences
    assert all(t.identical >= 0.999 for t in found.operator_by_operator)


@pytest.mark.wide
@pytest.mark.parametrize("name", user_blocks.OPENED)
def test_a_block_is_opened(keras: Any, name: str, tmp_path: Path) -> None:
    model = functional(keras, user_blocks.OPENED[name](keras))
    builders.randomise_all(model, 1)
    plan = rewriter.plan(model)
    assert plan.entries and not plan.count("refused"), str(plan)
    qat = rewriter.rewrite(model)
    claims.check_no_batch_norm(qat)
    follows(keras, model, qat)
    on_the_device(qat, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raw", "scaled", "stopped", "default_false", "held"])
def test_a_subclassed_model_of_blocks(keras: Any, name: str, tmp_path: Path) -> None:
    model = subclassed(keras, user_blocks.OPENED[name](keras))
    builders.randomise_all(model, 1)
    before = model.get_weights()
    assert not rewriter.plan(model).count("refused")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    qat = rewriter.rewrite(model)
    follows(keras, model, qat)
    if name == "raw":
        on_the_device(qat, tmp_path)


def test_names_are_paths(keras: Any) -> None:
    model = functional(keras, user_blocks.nested(keras))
    names = [entry.name for entry in rewriter.plan(model).entries]
    deepest = "level_3/level_2/level_1"
    assert names == [f"{deepest}/block/bn", f"{deepest}/bn", "level_3/level_2/bn", "level_3/bn"]


def test_a_variable_of_a_shared_block_stays_one(keras: Any) -> None:
    model = functional(keras, user_blocks.shared(keras))
    qat = rewriter.rewrite(model)
    assert len(model.trainable_variables) == len(qat.trainable_variables)


@pytest.mark.parametrize(
    ("one", "other", "opened"),
    [(tf.multiply, tf.add, False), (tf.multiply, tf.multiply, True), (tf.add, tf.add, True)],
)
def test_a_variable_read_in_several_places(keras: Any, one: Any, other: Any, opened: bool) -> None:
    """One layer for all of them, or the block stays closed: two weights would train apart."""
    layers = keras.layers

    class Block(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(name="block")
            self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
            self.norm = layers.BatchNormalization(name="bn")

        def build(self, shape: Any) -> None:
            self.conv.build(shape)
            self.norm.build((*shape[:-1], 4))
            self.gain = self.add_weight(name="gain", shape=(4,), initializer="normal")
            self.built = True

        def call(self, x: Any) -> Any:
            y = self.norm(self.conv(x))
            return other(tf.nn.relu(one(y, self.gain)), self.gain)

    model = functional(keras, Block())
    if not opened:
        with pytest.raises(
            UnsupportedModelError, match="reads its variable '.*gain.*several places"
        ):
            rewriter.rewrite(model)
        return
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    follows(keras, model, qat)


def test_a_frozen_block_stays_frozen(keras: Any) -> None:
    block = user_blocks.scaled(keras)
    model = functional(keras, block)
    block.trainable = False
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables) == 4


@pytest.mark.parametrize("name", user_blocks.REFUSED)
def test_what_cannot_be_opened_is_refused_by_name(keras: Any, name: str) -> None:
    build, reason = user_blocks.REFUSED[name]
    model = functional(keras, build(keras))
    with pytest.raises(UnsupportedModelError, match=f"'block/bn'.*inside.*'block'.*{reason}.*make"):
        rewriter.rewrite(model)


def test_a_layer_that_returns_a_constant_stays_as_it_is(keras: Any) -> None:
    """As one that makes anchors of the sizes of what it is given."""

    class Anchors(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return tf.reshape(tf.range(float(x.shape[1] * x.shape[2] * 4)), (1, 8, 8, 4)) / 256

        def compute_output_shape(self, shape: Any) -> Any:
            return (1, *shape[1:])

    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x)
    model = keras.Model(image, layers.Add(name="add")([x, Anchors(name="anchors")(x)]))
    builders.randomise_all(model, 1)
    qat = rewriter.rewrite(model)
    claims.check_no_batch_norm(qat)
    claims.check_float_phase(model, qat, normal(2, 8, 8, 3))


def test_a_size_of_the_batch_that_a_call_reads(keras: Any, tmp_path: Path) -> None:
    """It is not known where the call is opened: it is inferred, or the layer stays as it is."""
    layers = keras.layers

    class Rows(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(name="rows")
            self.norm = layers.BatchNormalization(name="norm")

        def call(self, x: Any) -> Any:
            if keras.__name__ == "keras":
                batch, height, width, channels = keras.ops.shape(x)
                rows = keras.ops.reshape(x, (batch, height * width, channels))
                return keras.ops.reshape(self.norm(rows), (batch, height, width, channels))
            batch, (height, width, channels) = tf.shape(x)[0], x.shape[1:]
            rows = tf.reshape(x, [batch, height * width, channels])
            return tf.reshape(self.norm(rows), [batch, height, width, channels])

    model = builders.randomise_all(functional(keras, Rows()), 0)
    qat = rewriter.rewrite(model)
    claims.check_no_batch_norm(qat)
    x = normal(6, 8, 8, 3)
    np.testing.assert_allclose(np.asarray(qat(x)), np.asarray(model(x)), rtol=1e-5, atol=1e-6)
    rewriter.calibrate(qat, x, progress=False)
    rewriter.export_tflite(qat, tmp_path / "model.tflite")
    found = rewriter.verify(qat, tmp_path / "model.tflite", x, progress=False)
    assert found.comparison.worst.identical == 1.0


def test_a_lambda_with_a_closure_inside(keras: Any, tmp_path: Path) -> None:
    """As keras-tcn has it: it trains, is saved, and is loaded where code is trusted."""
    layers = keras.layers

    class Last(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, place: int = -1, **kwargs: Any):
            super().__init__(**kwargs)
            self.place = place
            self.conv = layers.Conv2D(4, 3, padding="same")
            self.norm = layers.BatchNormalization()
            self.cut = layers.Lambda(lambda t: t[:, place:, :, :])

        def build(self, shape: Any) -> None:
            self.conv.build(shape)
            self.norm.build((*shape[:-1], 4))
            super().build(shape)

        def call(self, x: Any, training: Any = None) -> Any:
            return self.cut(self.norm(self.conv(x), training=training))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "place": self.place}

    model = builders.randomise_all(functional(keras, Last(-2, name="last")), 0)
    data = normal(8, 8, 8, 3)
    qat = builders.calibrated(model, data)
    qat.compile("sgd", "mse")
    qat.fit(data, np.zeros((8, 3), np.float32), verbose=0)
    qat.save(tmp_path / "m.keras")
    loaded = rewriter.load_model(
        tmp_path / "m.keras", allow_lambda=True, custom_objects={"Last": Last}
    )
    np.testing.assert_array_equal(loaded(data), qat(data))
