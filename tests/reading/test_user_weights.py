"""Layers of users' with weights of their own: products in any order, slopes, other functions.

Against the model in float, its training, LiteRT's interpreter and NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both, call, decibels
from rewriter.lowering.lower import lower

Function = Callable[[Any, Any], Any]


def _own(keras: Any, function: Function, shape: tuple[int, ...] | None = None) -> Any:
    """A layer with a weight of this shape; None: one number for each channel."""

    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, given: Any) -> None:
            start = keras.initializers.RandomUniform(-0.5 if shape else 0.1, 0.6, seed=1)
            sizes = (given[-1],) if shape is None else shape
            self.w = self.add_weight(name="w", shape=sizes, initializer=start)
            super().build(given)

        def call(self, x: Any) -> Any:
            return function(x, tf.convert_to_tensor(self.w))

    return Own(name="own")


def _model(flavour: str, sizes: tuple[int, ...], layer: Callable[[Any], Any]) -> Any:
    keras = KERASES[flavour]
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    inputs = keras.Input(sizes)
    x = keras.layers.BatchNormalization()(keras.layers.Dense(sizes[-1])(inputs))
    return keras.Model(inputs, layer(keras)(x))


def _data(*sizes: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(32, *sizes)).astype(np.float32)


def _exported(model: Any, x: np.ndarray, path: Path, least: float) -> list[str]:
    """The operators of the file, which is held against its twin and the float model."""
    assert not rewriter.plan(model).float_layers
    qat = rewriter.calibrate(rewriter.rewrite(model), x, progress=False)
    rewriter.export_tflite(qat, path)
    found = rewriter.verify(qat, path, x, progress=False)
    assert found.comparison.differences == () and found.parts_at is None, str(found)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    assert decibels(call(rewriter.fold(qat), [x])[0], call(model, [x])[0]) > least
    return [step.operator.kind for step in lower(qat).steps]


def _einsum(equation: str, swapped: bool = False) -> Function:
    def function(x: Any, w: Any) -> Any:
        return tf.einsum(equation, w, x) if swapped else tf.einsum(equation, x, w)

    return function


PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Function]] = {
    "last axis": ((6, 4), (4, 5), _einsum("btc,cd->btd")),
    "rows": ((4,), (4, 5), _einsum("bc,cd->bd")),
    "kernel turned": ((6, 4), (5, 4), _einsum("btc,dc->btd")),
    "kernel first": ((6, 4), (4, 5), _einsum("cd,btc->btd", True)),
    "dots": ((3, 6, 4), (4, 5), _einsum("...c,cd->...d")),
    "to heads": ((6, 4), (4, 2, 3), _einsum("btc,chd->bthd")),
    "from heads": ((6, 2, 3), (2, 3, 5), _einsum("bthd,hdc->btc")),
    "other order": ((6, 2, 3), (5, 3, 2), _einsum("bthd,cdh->bct")),
    "steps": ((6, 4), (6, 5), _einsum("btc,ts->bsc")),
    "each head": ((6, 2, 3), (2, 3, 5), _einsum("bthd,hdc->bthc")),
    "each head moved": ((6, 2, 3), (3, 2, 5), _einsum("bthd,dhc->bhct")),
    "each head to one": ((6, 2, 3), (2, 3), _einsum("bthd,hd->bth")),
    "matmul turned": ((6, 4), (5, 4), lambda x, w: tf.matmul(x, w, transpose_b=True)),
    "turned square": ((6, 4), (4, 4), _einsum("btc,dc->btd")),
    "steps turned": ((6, 4), (6, 6), _einsum("btc,st->bsc")),
    "of the transposed": ((6, 4), (5, 4), lambda x, w: tf.matmul(x, tf.transpose(w))),
}


@both
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_in_any_order(name: str, flavour: str, tmp_path: Path) -> None:
    sizes, weight, function = PRODUCTS[name]
    model = _model(flavour, sizes, lambda keras: _own(keras, function, weight))
    kinds = _exported(model, _data(*sizes), tmp_path / "m.tflite", 25)
    assert {"FULLY_CONNECTED", "CONV_2D"} >= {*kinds} - {"RESHAPE", "TRANSPOSE"}


@both
@pytest.mark.parametrize(
    "name", ["other order", "each head moved", "steps turned", "of the transposed"]
)
def test_they_train_as_the_layer_does(name: str, flavour: str) -> None:
    sizes, weight, function = PRODUCTS[name]
    keras, x = KERASES[flavour], _data(*sizes)
    model = _model(flavour, sizes, lambda keras: _own(keras, function, weight))
    qat = rewriter.rewrite(model)
    rewriter.set_phase(qat, "float")
    for each in (model, qat):
        each.compile(keras.optimizers.SGD(0.1), "mse")
        each.fit(x, 0 * call(model, [x])[0], batch_size=32, epochs=3, shuffle=False, verbose=0)
    np.testing.assert_allclose(call(qat, [x])[0], call(model, [x])[0], atol=1e-5)


@both
def test_a_weight_in_two_orders_is_no_weight_of_two_layers(flavour: str) -> None:
    def both_ways(x: Any, w: Any) -> Any:
        return tf.matmul(tf.matmul(x, w), tf.transpose(w))

    model = _model(flavour, (6, 4), lambda keras: _own(keras, both_ways, (4, 4)))
    plan = rewriter.plan(model)
    assert plan.float_layers == ("own",) and "several places" in plan.float_reasons["own"]


SLOPES: dict[str, Function] = {
    "where": lambda x, a: tf.where(x > 0, x, a * x),
    "where less": lambda x, a: tf.where(tf.less_equal(x, 0.0), a * x, x),
    "maximum": lambda x, a: tf.maximum(x, a * x),
    "relu": lambda x, a: tf.nn.relu(x) - a * tf.nn.relu(-x),
    "minimum": lambda x, a: tf.nn.relu(x) + a * tf.minimum(x, 0.0),
    "half": lambda x, a: tf.nn.relu(x) + a * (x - tf.abs(x)) * 0.5,
}


@both
@pytest.mark.parametrize("name", SLOPES)
def test_a_learned_slope_is_a_prelu(name: str, flavour: str, tmp_path: Path) -> None:
    model = _model(flavour, (6, 4), lambda keras: _own(keras, SLOPES[name]))
    kinds = _exported(model, _data(6, 4), tmp_path / "m.tflite", 30)
    assert kinds == ["FULLY_CONNECTED", "PRELU"]


NUMBERS = np.array([0.5, 1.0, 2.0, 3.0], np.float32)
FUNCTIONS: dict[str, Function] = {
    "powers": lambda x, a: tf.abs(x) ** (a * 4),
    "snake": lambda x, a: x + tf.square(tf.sin(4 * a * x)) / (a + 0.5),
    "constants": lambda x, a: tf.math.softplus(x) ** NUMBERS + 0 * a,
}


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_for_each_channel_is_a_table_for_each(
    name: str, flavour: str, tmp_path: Path
) -> None:
    model = _model(flavour, (6, 4), lambda keras: _own(keras, FUNCTIONS[name]))
    kinds = _exported(model, _data(6, 4), tmp_path / "m.tflite", 25)
    assert kinds[-1] == "GATHER"


@both
def test_the_tables_are_of_what_the_weights_have_become(flavour: str, tmp_path: Path) -> None:
    """Against the function in NumPy, of each integer, channel by channel."""
    x = _data(6, 4)
    model = _model(flavour, (6, 4), lambda keras: _own(keras, FUNCTIONS["snake"]))
    qat = rewriter.calibrate(rewriter.rewrite(model), x, progress=False)
    weight = np.array([0.1, 0.3, 0.5, 0.9], np.float32)
    qat.get_layer("own_unquantized").w.assign(weight)
    program = lower(qat)
    (step,) = [s for s in program.steps if s.operator.kind == "GATHER"]
    source = next(s for s in program.steps if s.operator.kind == "CAST").operator.inputs[0]
    real = (np.arange(-128, 128) - source.zero_point) * np.float64(source.scale)
    wanted = real + np.sin(4 * weight[:, None] * real) ** 2 / (weight[:, None] + 0.5)
    grid = step.operator.output
    stored = (
        np.reshape(step.operator.attributes["table"], (4, 256)).astype(float) - grid.zero_point
    ) * grid.scale
    inside = (wanted > grid.range[0]) & (wanted < grid.range[1])
    assert np.abs(stored - wanted)[inside].max() < 0.51 * grid.scale


def _norm(keras: Any) -> Callable[..., Any]:
    return keras.ops.norm if hasattr(keras, "ops") else tf.norm


UNITS: dict[str, Callable[[Any, Any], Any]] = {
    "norm": lambda keras, x: x / _norm(keras)(x, axis=-1, keepdims=True),
    "guarded": lambda keras, x: x / (_norm(keras)(x, axis=-1, keepdims=True) + 1e-6),
    "in a Lambda": lambda keras, x: keras.layers.Lambda(
        lambda t: t / tf.norm(t, axis=-1, keepdims=True)
    )(x),
    "l2_normalize": lambda keras, x: keras.layers.Lambda(lambda t: tf.math.l2_normalize(t, -1))(x),
    "other axis": lambda keras, x: x / _norm(keras)(x, axis=1, keepdims=True),
}


@both
@pytest.mark.parametrize("name", UNITS)
def test_vectors_of_length_1(name: str, flavour: str, tmp_path: Path) -> None:
    """Those much shorter than others too, whose squares no grid would tell from 0."""
    keras = KERASES[flavour]
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, UNITS[name](keras, inputs))
    x = _data(6, 8)
    kinds = _exported(model, x, tmp_path / "m.tflite", 30)
    assert "L2_NORMALIZATION" in kinds and {*kinds} <= {"L2_NORMALIZATION", "TRANSPOSE"}


@both
def test_another_length_is_no_unit(flavour: str) -> None:
    """By the sum of magnitudes, and behind a constant that counts."""
    keras = KERASES[flavour]
    inputs = keras.Input((6, 8))
    size = _norm(keras)
    outputs = [
        inputs / size(inputs, ord=1, axis=-1, keepdims=True),
        inputs / (size(inputs, axis=-1, keepdims=True) + 0.5),
    ]
    model = keras.Model(inputs, outputs)
    x = _data(6, 8)
    qat = rewriter.calibrate(rewriter.rewrite(model), x, progress=False)
    assert "L2_NORMALIZATION" not in [step.operator.kind for step in lower(qat).steps]
    for found, wanted in zip(call(rewriter.fold(qat), [x]), call(model, [x]), strict=True):
        assert decibels(found, wanted) > 25


@both
@pytest.mark.parametrize("name", ["dot", "loss"])
def test_the_cosine_of_two_vectors(name: str, flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8,))
    pair = [keras.layers.Dense(8)(inputs), keras.layers.Dense(8)(inputs)]
    if name == "dot":
        outputs = keras.layers.Dot(1, normalize=True)(pair)
    else:
        similar = keras.losses.cosine_similarity
        outputs = keras.layers.Lambda(lambda t: similar(*t), output_shape=())(pair)
    _exported(keras.Model(inputs, outputs), _data(8), tmp_path / "m.tflite", 25)


@both
def test_backwards_and_every_second(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((6, 5, 4))
    model = keras.Model(inputs, [inputs[:, ::-1], inputs[:, 4:1:-2, ::-1], inputs[:, :, 1::2]])
    kinds = _exported(model, _data(6, 5, 4), tmp_path / "m.tflite", 30)
    assert kinds == ["STRIDED_SLICE"] * 3


# What a scalar does, where it changes nothing, and what training makes of it.
SCALARS: dict[str, tuple[Function, float, float]] = {
    "gain": (lambda x, w: x * w, 1.0, 0.5),
    "offset": (lambda x, w: x + w, 0.0, 0.5),
    "slope": (lambda x, w: tf.where(x > 0, x, w * x), 0.0, 0.4),
    "tanh": (lambda x, w: tf.tanh(w * x), 1.0, 0.5),
    "swish": (lambda x, w: x * tf.sigmoid(w * x), 1.0, 0.5),
    "relu": (lambda x, w: tf.nn.relu(w * x), 1.0, 0.5),
    "power": (lambda x, w: tf.abs(x) ** w, 1.0, 0.5),
}


@both
@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_is_learned_from_where_it_changes_nothing(name: str, flavour: str) -> None:
    """Written down when it had another value than at the export."""
    function, start, end = SCALARS[name]
    keras = KERASES[flavour]
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)

    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.w = self.add_weight(
                name="w", shape=(), initializer=keras.initializers.Constant(start)
            )
            super().build(shape)

        def call(self, x: Any) -> Any:
            return function(x, tf.convert_to_tensor(self.w))

    inputs = keras.Input((6, 4))
    x = Own(name="own")(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    qat = rewriter.rewrite(model)
    for each in (model, qat):
        (weight,) = [w for w in each.trainable_weights if int(np.prod(w.shape)) == 1]
        weight.assign(np.full(weight.shape, end, np.float32))
    x = _data(6, 4)
    rewriter.calibrate(qat, x, progress=False)
    assert decibels(call(rewriter.fold(qat), [x])[0], call(model, [x])[0]) > 25
