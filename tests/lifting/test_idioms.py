"""What Keras 3 writes around a lookup and around an argmax, in its own exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import rewriter
from rewriter import keras_compat
from rewriter.lifting import lift

FLAVOURS = {f.name: f for f in (keras_compat.TF_KERAS, keras_compat.KERAS3) if f}


def _exported(model: Any, path: Path) -> Path:
    model.export(path, verbose=False)
    return path


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_an_embedding(dtype: str, flavour: str, tmp_path: Path) -> None:
    inputs = keras.Input((5,), dtype=dtype)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Embedding(9, 4)(inputs)))
    lifted = lift.lift(_exported(model, tmp_path / "model"), FLAVOURS[flavour])
    kinds = [type(layer).__name__ for layer in lifted.layers]
    assert kinds == ["InputLayer", "Embedding", "Dense", "Activation"]
    assert rewriter.plan(lifted).float_layers == ()
    numbers = np.random.default_rng(0).integers(0, 9, (6, 5)).astype(dtype)
    np.testing.assert_allclose(lifted(numbers), model(numbers), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_place(flavour: str, tmp_path: Path) -> None:
    """By ties, too: a row of zeros."""
    inputs = keras.Input((7,))
    model = keras.Model(inputs, keras.ops.argmin(keras.layers.ReLU()(inputs), -1))
    lifted = lift.lift(_exported(model, tmp_path / "model"), FLAVOURS[flavour])
    assert len(lift.of(lifted).kept) == 1
    assert rewriter.plan(lifted).float_layers == ()
    x = np.random.default_rng(0).integers(-2, 3, (64, 7)).astype(np.float32)
    np.testing.assert_array_equal(lifted(x), model(x))


@pytest.mark.parametrize("other", ["another number", "another bound", "another size's"])
def test_what_only_looks_like_it_is_kept(other: str, tmp_path: Path) -> None:
    table = tf.constant(np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32))

    def look_up(i: Any) -> Any:
        j = i * 2 if other == "another number" else i
        bound = 1 if other == "another bound" else 0
        more = i * 2 if other == "another size's" else i + 9
        return tf.gather(table, tf.where(j < bound, more, i))

    module = tf.Module()
    module.call = tf.function(look_up, [tf.TensorSpec((None, 5), tf.int32, name="numbers")])
    tf.saved_model.save(module, str(tmp_path / "model"), module.call)
    lifted = lift.lift(tmp_path / "model", FLAVOURS["keras"])
    assert any("SelectV2" in kept for kept in lift.of(lifted).kept)
    numbers = np.random.default_rng(0).integers(1, 5, (6, 5)).astype(np.int32)
    np.testing.assert_allclose(lifted(numbers), module.call(numbers))
