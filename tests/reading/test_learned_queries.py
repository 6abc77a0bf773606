"""Rows of a layer's own that every sample has, handed on by themselves: queries of attention."""

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
from checks import everything

Repeat = Callable[[Any, Any], Any]

REPEATED: dict[str, tuple[tuple[int, ...], Repeat]] = {
    "tile": ((1, 5, 8), lambda q, x: tf.tile(q, [tf.shape(x)[0], 1, 1])),
    "tile of an axis more": ((5, 8), lambda q, x: tf.tile(q[None], [tf.shape(x)[0], 1, 1])),
    "broadcast": ((5, 8), lambda q, x: tf.broadcast_to(q[tf.newaxis, ...], [tf.shape(x)[0], 5, 8])),
    "repeat": ((1, 5, 8), lambda q, x: tf.repeat(q, tf.shape(x)[0], axis=0)),
    "zeros": ((1, 5, 8), lambda q, x: q + tf.zeros_like(x[:, :5])),
}


BESIDE = {"first": "mixed"}
INSIDE = {**BESIDE, "own/norm": "own/attend/attention_output"}


def _layer(
    k: Any, shape: tuple[int, ...], call: Callable[[Any, Any], Any], inside: bool = True
) -> Any:
    class Own(k.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(name="own")
            if inside:
                self.attend = k.layers.MultiHeadAttention(2, 4, name="attend")
                self.norm = k.layers.BatchNormalization(name="norm")

        def build(self, _: Any) -> None:
            self.q = self.add_weight(name="q", shape=shape, initializer="uniform")
            self.built = True

        def call(self, x: Any) -> Any:
            return call(self, x)

    return Own()


def _model(k: Any, layer: Any, beside: bool) -> Any:
    """``beside``: what attends stands after the layer, and not in it."""
    inputs = k.Input((6, 8), name="rows")
    x = k.layers.BatchNormalization(name="first")(k.layers.Dense(8, name="mixed")(inputs))
    y = layer(x)
    if beside:
        y = k.layers.Add()([y, k.layers.MultiHeadAttention(2, 4, name="after")(y, x)])
    return k.Model(inputs, k.layers.Dense(3, name="end")(k.layers.Flatten()(y)))


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a block"])
@pytest.mark.parametrize("how", REPEATED)
@pytest.mark.parametrize("flavour", KERASES)
def test_rows_for_every_sample(flavour: str, how: str, inside: bool, tmp_path: Path) -> None:
    shape, repeat = REPEATED[how]

    def build(k: Any) -> Any:
        if not inside:
            return _model(k, _layer(k, shape, lambda own, x: repeat(own.q, x), False), True)
        return _model(k, _layer(k, shape, lambda o, x: o.norm(o.attend(repeat(o.q, x), x))), False)

    assert everything(flavour, build, INSIDE if inside else BESIDE, tmp_path).float_layers == ()


@pytest.mark.parametrize("flavour", KERASES)
def test_they_are_trained_as_one_variable(flavour: str) -> None:
    shape, repeat = REPEATED["tile of an axis more"]
    keras = builders.fresh(keras_of(flavour))
    model = _model(keras, _layer(keras, shape, lambda own, x: repeat(own.q, x), False), True)
    qat = rewriter.rewrite(model)
    rewriter.set_phase(qat, "float")
    x = normal(16, 6, 8)
    for each in (model, qat):
        each.compile(keras.optimizers.SGD(0.5), "mse")
        each.fit(x, normal(16, 3, seed=1), batch_size=16, epochs=3, shuffle=False, verbose=0)
    found, expected = (
        next(np.asarray(v) for v in m.trainable_variables if int(np.prod(v.shape)) == 40)
        for m in (qat, model)
    )
    np.testing.assert_allclose(found.reshape(5, 8), expected, atol=1e-6)
    np.testing.assert_allclose(qat.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)


def _added(k: Any, shape: tuple[int, ...], view: Callable[[Any], Any]) -> Any:
    def call(own: Any, x: Any) -> Any:
        x = x + view(own.q)
        return own.norm(own.attend(x, x))

    return _model(k, _layer(k, shape, call), False)


ADDED: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "first": ((6, 8), lambda q: q[None]),
    "first of all": ((6, 8), lambda q: q[tf.newaxis, :, :]),
    "two": ((8,), lambda q: q[None, None]),
}
PARTS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "one of an axis": ((1, 6, 8), lambda q: q[:, None][:, 0]),
    "some": ((9, 8), lambda q: q[None, :6]),
    "from the third": ((9, 8), lambda q: q[None, 3:]),
    "turned": ((6, 8), lambda q: q[None, ::-1]),
    "every second": ((12, 8), lambda q: q[None, ::2]),
}


@pytest.mark.parametrize("how", ADDED)
@pytest.mark.parametrize("flavour", KERASES)
def test_places_with_axes_more_in_a_block(flavour: str, how: str, tmp_path: Path) -> None:
    """``x[None]`` is a slice in a graph; it is the variable as it is, which is trained."""
    plan = everything(flavour, lambda k: _added(k, *ADDED[how]), INSIDE, tmp_path)
    assert plan.float_layers == ()


@pytest.mark.parametrize("how", PARTS)
@pytest.mark.parametrize("flavour", KERASES)
def test_parts_of_a_variable_are_the_weights_of_no_layer(flavour: str, how: str) -> None:
    model = _added(builders.fresh(keras_of(flavour)), *PARTS[how])
    plan = rewriter.plan(model)
    assert [entry.action for entry in plan.entries if entry.name != "first"] == ["refused"]
    assert "StridedSlice" in str(plan)


@pytest.mark.parametrize("kind", ["constant", "not trainable"])
@pytest.mark.parametrize("flavour", KERASES)
def test_rows_that_never_train(flavour: str, kind: str) -> None:
    keras = builders.fresh(keras_of(flavour))
    rows = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)

    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, _: Any) -> None:
            self.q = rows
            if kind != "constant":
                self.q = self.add_weight(name="q", shape=rows.shape, trainable=False)
                self.q.assign(rows)
            self.built = True

        def call(self, x: Any) -> Any:
            return tf.tile(self.q, [tf.shape(x)[0], 1, 1])

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], 5, 8)

    model = _model(keras, Own(name="own"), True)
    qat = rewriter.rewrite(model)
    assert not rewriter.plan(model).float_layers
    qat.trainable = True
    count = [sum(int(np.prod(v.shape)) for v in m.trainable_variables) for m in (model, qat)]
    assert count[0] == count[1]
    x = normal(16, 6, 8)
    np.testing.assert_allclose(qat.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
