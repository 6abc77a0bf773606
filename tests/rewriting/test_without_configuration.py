"""Layers that their configurations do not build: copied in memory, and refused by name in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import no_integers
import rewriter
from builders import KERASES, keras_of, normal
from rewriter.errors import SaveError


@pytest.fixture(params=KERASES)
def keras(request: Any) -> Any:
    return builders.fresh(keras_of(request.param))


def _bare(keras: Any, function: Any) -> Any:
    """Neither a configuration nor an ``__init__`` that takes one; layers in a list, a variable."""

    class Bare(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, function: Any):
            super().__init__()
            self.function = function
            self.steps = [keras.layers.Conv2D(4, 1), keras.layers.Conv2D(4, 1)]

        def build(self, shape: Any) -> None:
            self.shift = self.add_weight(name="shift", shape=(4,), initializer="ones")
            super().build(shape)

        def call(self, x: Any) -> Any:
            for step in self.steps:
                x = step(x)
            return self.function(x) + self.shift

    return Bare(function)


def test_a_layer_without_a_configuration_is_copied(keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    image = keras.Input((6, 6, 4), name="image")
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(image))
    bare = _bare(keras, no_integers.sine)
    model = keras.Model(image, layers.Dense(2, name="scores")(layers.Flatten()(bare(x))))
    builders.randomise_all(model, 1)
    (note,) = [each for each in rewriter.plan(model).notes if bare.name in each]
    assert "cannot be saved" in note and "get_config" in note
    with pytest.warns(UserWarning, match="cannot be saved"):
        qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(4, 6, 6, 4))
    before = [np.asarray(v) for v in model.get_weights()]
    batches = [(normal(8, 6, 6, 4, seed=i), normal(8, 2, seed=9 + i)) for i in range(3)]
    losses = claims.train(qat, keras, batches, "mse", 1e-3)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)  # the original is left alone
    claims.assert_close(losses, claims.train(model, keras, batches, "mse", 1e-3), 1e-4)
    claims.check_float_phase(model, qat, normal(4, 6, 6, 4), 1e-4)
    with pytest.raises(SaveError, match=f"{bare.name!r}.*Bare.*cannot be saved"):
        qat.save(tmp_path / "qat.keras")


def _reshaped(keras: Any, x: Any) -> Any:
    """NumPy's numbers among the arguments."""
    shape = (-1, np.int64(36), 4)
    y = keras.ops.reshape(x, shape) if hasattr(keras, "ops") else tf.reshape(x, shape)
    return keras.layers.Reshape((6, 6, 4))(y)


def _with_policy(keras: Any, x: Any) -> Any:
    if hasattr(keras, "ops"):
        return keras.layers.Identity(dtype=keras.DTypePolicy("float32"))(x)
    return keras.layers.Activation("linear", dtype=keras.mixed_precision.Policy("float32"))(x)


def _sliced(keras: Any, x: Any) -> Any:
    return keras.layers.Concatenate()([x[..., 2:], x[:, ..., :2], x[:, None, ..., 1:][:, 0]])


@pytest.mark.parametrize("function", [_reshaped, _with_policy, _sliced])
def test_arguments_that_no_file_holds_are_written_as_others(
    keras: Any, function: Any, tmp_path: Path
) -> None:
    image = keras.Input((6, 6, 4), name="image")
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, padding="same")(image))
    model = keras.Model(image, keras.layers.Conv2D(2, 1, name="scores")(function(keras, x)))
    builders.randomise_all(model, 1)
    qat = rewriter.rewrite(model)
    data = normal(4, 6, 6, 4)
    claims.check_float_phase(model, qat, data)
    qat.save(tmp_path / "qat.keras")
    again = rewriter.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(np.asarray(again(data)), np.asarray(qat(data)))


def _says_itself(keras: Any, what: str) -> Any:
    """The configuration has a variable of the layer, or a layer inside it, where a value was.

    It is built from sizes as a call gives them: no lists, which a file has of Keras 3.
    """

    class SaysItself(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, factor: Any, inner: Any = None, **kwargs: Any):
            super().__init__(**kwargs)
            self.factor = factor
            self.inner = inner or keras.layers.Dense(4)

        def build(self, shape: Any) -> None:
            if not isinstance(shape, (tuple, tf.TensorShape)):
                raise TypeError(f"Not a tuple: {shape!r}")
            start = keras.initializers.Constant(self.factor)
            self.factor = self.add_weight(name="factor", shape=(1,), initializer=start)
            self.inner.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            return no_integers.sine(self.inner(x)) * self.factor

        def get_config(self) -> dict[str, Any]:
            own = (
                {"factor": self.factor}
                if what == "variable"
                else {"factor": 0.5, "inner": self.inner}
            )
            return {**super().get_config(), **own}

    return SaysItself


@pytest.mark.parametrize("what", ["variable", "layer"])
def test_a_configuration_of_the_layers_own_parts_shares_none(
    keras: Any, what: str, tmp_path: Path
) -> None:
    cls = _says_itself(keras, what)
    image = keras.Input((6, 6, 4), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(image)
    model = keras.Model(image, cls(0.5, name="own")(x))
    builders.randomise_all(model, 1)
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(4, 6, 6, 4))
    shared = {id(v) for v in model.variables} & {id(v) for v in qat.variables}
    assert not shared
    before = [np.asarray(v) for v in model.get_weights()]
    claims.train(qat, keras, [(normal(8, 6, 6, 4), normal(8, 4, 4, 4))], "mse", 1e-2)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    if what == "layer":
        with pytest.raises(SaveError, match="'own'.*SaysItself.*cannot be saved"):
            qat.save(tmp_path / "qat.keras")
        return
    known, again = {"SaysItself": cls}, qat
    for _ in range(2):  # what was loaded is saved, too
        again.save(tmp_path / "qat.keras")
        stock = keras.models.load_model(tmp_path / "qat.keras", custom_objects=known)
        again = rewriter.load_model(tmp_path / "qat.keras", custom_objects=known)
        for each in (stock, again):
            np.testing.assert_array_equal(each(normal(4, 6, 6, 4)), qat(normal(4, 6, 6, 4)))


def test_a_copied_layer_draws_on_its_own(keras: Any) -> None:
    """Seeds of dropouts inside a layer that is copied as an object are copies, too."""

    class Noisy(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, function: Any):
            super().__init__(name="noisy")
            self.function, self.drop = function, keras.layers.Dropout(0.5, seed=1)
            self.dense = keras.layers.Dense(4)

        def call(self, x: Any, training: Any = None) -> Any:
            return self.drop(self.function(self.dense(x)), training=training)

    image = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(image))
    model = keras.Model(image, Noisy(lambda x: tf.sin(x))(x))
    qat = rewriter.rewrite(model)
    x = normal(64, 6)
    np.testing.assert_array_equal(np.asarray(qat(x)), np.asarray(model(x)))
    before = [np.asarray(v) for v in model.variables]
    first, second = (np.asarray(qat(x, training=True)) for _ in range(2))
    assert ((first == 0) != (second == 0)).any()
    after = [np.asarray(v) for v in model.variables]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
