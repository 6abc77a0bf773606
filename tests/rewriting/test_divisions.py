"""Divisions by tensors, and functions without an operator: tables, against NumPy and the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both, call, decibels
from rewriter.errors import ExportError
from rewriter.lowering.lower import lower
from rewriter.program import Program, Step
from rewriter.reading import from_keras
from rewriter.reading.operations import Operation

X = np.random.default_rng(0).normal(size=(64, 4, 4, 3)).astype(np.float32)


def _in_a_lambda(keras: Any, x: Any, y: Any) -> Any:
    layer = keras.layers.Lambda(lambda p: p[0] / p[1], output_shape=(4, 4, 3), name="divide")
    return layer([x, y])


def _normalized(keras: Any, x: Any, y: Any) -> Any:
    """Global response normalization (arXiv:2301.00808), whose guard is far below a step."""
    pool = keras.layers.GlobalAveragePooling2D(keepdims=True)
    response = pool(x * x) ** 0.5
    mean = keras.ops.mean if hasattr(keras, "ops") else tf.reduce_mean
    return x * (response / (mean(response, -1, keepdims=True) + 1e-6))


def _standardized(keras: Any, x: Any, y: Any) -> Any:
    mean = keras.layers.GlobalAveragePooling2D(keepdims=True)
    deviation = x - mean(x)
    root = keras.ops.rsqrt if hasattr(keras, "ops") else tf.math.rsqrt
    return deviation * root(mean(deviation * deviation) + 1e-5)


# With the least of decibels against the model in float.
CASES: dict[str, tuple[Callable[[Any, Any, Any], Any], float]] = {
    "of two tensors": (lambda keras, x, y: x / y, 30),
    "in a Lambda": (_in_a_lambda, 30),
    "of a number": (lambda keras, x, y: 1.0 / y, 30),
    "reciprocal": (
        lambda keras, x, y: (
            keras.ops.reciprocal(y) if hasattr(keras, "ops") else tf.math.reciprocal(y)
        ),
        30,
    ),
    "guarded": (lambda keras, x, y: x / (y - 1.0 + 1e-6), 15),
    "response": (_normalized, 25),
    "standardized": (_standardized, 25),
}


def _model(flavour: str, function: Callable[[Any, Any, Any], Any]) -> Any:
    keras = KERASES[flavour]
    keras.utils.set_random_seed(3)
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(3, 1)(inputs)
    y = keras.layers.Conv2D(3, 1, activation="sigmoid")(inputs) + 1.0
    return keras.Model(inputs, function(keras, x, y))


@both
@pytest.mark.parametrize("case", CASES)
def test_by_a_tensor(flavour: str, case: str, tmp_path: Path) -> None:
    function, least = CASES[case]
    model = _model(flavour, function)
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert found.comparison.differences == () and found.parts_at is None, str(found)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    twin = call(rewriter.fold(qat), [X])[0]
    assert np.isfinite(twin).all() and decibels(call(model, [X])[0], twin) > least
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(qat(X, training=True) ** 2)
    variables = [getattr(v, "value", v) if flavour == "keras" else v
                 for v in qat.trainable_variables]  # fmt: skip
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, variables) if g is not None)


def _program(function: Callable[[Any], Any], activation: str, low: float, high: float) -> Program:
    """Of a function of inputs from ``low`` to ``high``."""
    keras = KERASES["keras"]
    inputs = keras.Input((8,))
    x = keras.layers.Activation(activation)(inputs)
    data = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    qat = rewriter.rewrite(keras.Model(inputs, function(x)))
    return lower(rewriter.calibrate(qat, data, progress=False))


def _table(program: Program) -> tuple[Step, np.ndarray]:
    (step,) = [s for s in program.steps if s.operator.kind == "GATHER"]
    return step, step.operator.attributes["table"]


def test_a_table_has_the_function_of_each_value() -> None:
    """Rounded once, the constants exact: against float64."""
    program = _program(lambda x: 2.0 / (x + 0.003) - 1.0, "linear", 0.001, 0.3)
    step, table = _table(program)
    (counted,) = [s for s in program.steps if s.output == step.inputs[0]]
    (cast,) = [s for s in program.steps if s.output == counted.inputs[0]]
    source, output = cast.operator.inputs[0], step.operator.output
    assert source is not None and output is not None and table.dtype == np.int8
    values = source.scale * (np.arange(-128, 128) - source.zero_point)
    values[values == 0] = source.scale / 4  # which is rounded to it
    wanted = (2 / (values + 0.003) - 1) / output.scale + output.zero_point
    assert np.abs(table - np.clip(wanted, -128, 127)).max() <= 0.501
    assert counted.operator.attributes["constant"] == [128]


def _ranged(recipe: str, low: float, high: float) -> Any:
    """A model of a root of what is from 0.6 to 2, on a grid of another range."""
    keras = KERASES["keras"]
    inputs = keras.Input((8,))
    x = keras.layers.Dense(8, name="dense")(inputs)
    model = keras.Model(inputs, keras.ops.sqrt(x - 0.5) ** 1.5 + 1.0)
    model.get_layer("dense").set_weights([np.eye(8, dtype=np.float32), np.zeros(8, np.float32)])
    qat = rewriter.rewrite(model, recipe)
    data = np.random.default_rng(0).uniform(0.6, 2, (32, 8)).astype(np.float32)
    rewriter.calibrate(qat, data, progress=False)
    for layer in qat.layers:
        quantize = getattr(layer, "output_quantizer", None) or layer
        if "dense" in layer.name and hasattr(quantize, "set_range"):
            quantize.set_range(low, high)
    return qat


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
def test_what_is_no_number_is_what_is_next_to_it(recipe: str) -> None:
    """The root of a number below 0 is that of the first one that has a root."""
    step, table = _table(lower(_ranged(recipe, -2.0, 2.0)))
    assert table.size == 2 ** (8 if recipe == "int8" else 16)
    real = np.linspace(-2, 2, table.size)
    assert len({*table[real < 0.49].tolist()}) == 1
    output = step.operator.output
    assert output is not None
    assert abs((int(table[0]) - output.zero_point) * output.scale - 1) < 0.06
    assert np.all(np.diff(table.astype(int)) >= 0) and table[-1] > table[0]


def test_a_number_nowhere_is_refused() -> None:
    with pytest.raises(ExportError, match="Layer .* computes what is not a number of all values"):
        lower(_ranged("int8", -2.0, 0.1))


def test_a_factor_reaches_as_far_as_the_output() -> None:
    """What takes a step of the other tensor beyond it saturates: there is no room for more."""

    def function(keras: Any, x: Any, y: Any) -> Any:
        return x / keras.layers.MaxPooling2D(1)(y)  # of which the grid is from 0 on

    qat = rewriter.rewrite(_model("keras", function))
    program = lower(rewriter.calibrate(qat, X, progress=False))
    (_, gather, source, product, output) = (step.operator for step in program.steps[-5:])
    kinds = [each.kind for each in (gather, source, product, output)]
    assert kinds == ["GATHER", "QUANTIZE", "MUL", "QUANTIZE"]
    grids = source.inputs[0], gather.output, output.output
    one, factor, made = (grid for grid in grids if grid is not None)
    reach = max(abs(end) for end in made.range)
    np.testing.assert_allclose(one.scale * factor.range[1], reach, rtol=1e-3)


def test_a_division_of_16_bits_is_refused() -> None:
    model = _model("keras", lambda keras, x, y: x / y)
    qat = rewriter.calibrate(rewriter.rewrite(model, "int16x8"), X, progress=False)
    with pytest.raises(ExportError, match="divides tensors of 16 bits.*int8"):
        lower(qat)


def _roles(model: Any) -> list[str]:
    return [
        call.role.name if isinstance(call.role, Operation) else type(call.role).__name__
        for call in from_keras.read(model).calls
    ]


@both
def test_a_chain_begins_behind_a_fused_activation(flavour: str) -> None:
    """Whose range has no negative numbers."""
    cos = KERASES[flavour].ops.cos if flavour == "keras" else tf.cos
    model = _model(flavour, lambda keras, x, y: cos(keras.layers.ReLU()(x) * 2.0) + 1.0)
    assert _roles(model)[-4:] == ["clamp", "Within", "Within", "function"]


@both
def test_a_factor_that_others_read_has_a_grid(flavour: str, tmp_path: Path) -> None:
    def function(keras: Any, x: Any, y: Any) -> Any:
        return keras.layers.Concatenate()([x / (y + 0.5), y + 0.5])

    def shared(keras: Any, x: Any, y: Any) -> Any:
        below = y + 0.001
        return keras.layers.Concatenate()([x / below, below])

    def both_divide(keras: Any, x: Any, y: Any) -> Any:
        below = y + 0.001
        return keras.layers.Add()([x / below, y / below])

    counts = {}
    for name, build in (("own", function), ("shared", shared), ("divides", both_divide)):
        model = _model(flavour, build)
        counts[name] = _roles(model).count("Within")
        qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
        rewriter.export_tflite(qat, tmp_path / f"{name}.tflite")
        assert decibels(call(model, [X])[0], call(rewriter.fold(qat), [X])[0]) > 25
    assert counts == {"own": 1, "shared": 0, "divides": 1}


@both
def test_operators_keep_their_own_functions(flavour: str) -> None:
    """A sigmoid or a GELU is no table, beside one either."""

    def function(keras: Any, x: Any, y: Any) -> Any:
        gate = keras.layers.Activation("sigmoid")(x)
        return keras.layers.Multiply()([gate, keras.layers.Activation("gelu")(y)])

    assert "function" not in _roles(_model(flavour, function))


@both
@pytest.mark.parametrize("guard", ["none", "small"])
def test_zeros_that_rounding_makes_are_none(flavour: str, guard: str, tmp_path: Path) -> None:
    """Model and file agree on what they are, and no gradient is infinite."""

    def function(keras: Any, x: Any, y: Any) -> Any:
        below = keras.layers.Activation("exponential")(y * 12.0 - 18.0)
        below = keras.layers.MaxPooling2D(1)(below)  # ends the chain of functions
        return x / (below + 1e-7) if guard == "small" else x / below

    model = _model(flavour, function)
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    (off,) = [layer for layer in qat.layers if type(layer).__name__ == "OffZero"]
    given, made = KERASES[flavour].Model(qat.inputs, [off.input, off.output])(X)
    zeros = np.asarray(given) == 0
    assert zeros.mean() > 0.01 and (np.asarray(made)[zeros] > 0).all()
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert found.parts_at is None and not found.comparison.differences, str(found)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(qat(X, training=True) ** 2)
    variables = [getattr(v, "value", v) if flavour == "keras" else v
                 for v in qat.trainable_variables]  # fmt: skip
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, variables) if g is not None)
    saved = tmp_path / "m.keras"
    qat.save(saved)
    again = rewriter.load_model(saved)
    np.testing.assert_array_equal(call(again, [X])[0], call(qat, [X])[0])


@both
def test_zeros_of_a_relu_stay(flavour: str) -> None:
    """Behind a constant that a grid has room for; half of the values are such."""
    model = _model(flavour, lambda keras, x, y: 1.0 / (keras.layers.ReLU()(x) + 0.05))
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    twin = call(rewriter.fold(qat), [X])[0]
    exact = call(model, [X])[0]
    assert np.isclose(exact, 20).mean() > 0.2
    assert np.isclose(twin[np.isclose(exact, 20)], 20, atol=0.1).mean() > 0.9
    assert decibels(exact, twin) > 25


@both
def test_a_layer_with_variables_is_its_operators(flavour: str, tmp_path: Path) -> None:
    """EvoNorm-S0 (arXiv:2004.02967): by the deviation of groups of channels."""
    keras = KERASES[flavour]

    class EvoNorm(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            def weight(name: str, mean: float) -> Any:
                start = keras.initializers.RandomNormal(mean, 0.2, seed=4)
                return self.add_weight(name=name, shape=(1, 1, 1, 8), initializer=start)

            self.gamma, self.beta, self.v = weight("g", 1), weight("b", 0), weight("v", 1)

        def call(self, x: Any) -> Any:
            grouped = tf.reshape(x, [-1, 4, 4, 2, 4])
            _, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
            root = tf.reshape(tf.repeat(tf.sqrt(variance + 1e-5), 4, axis=-1), [-1, 1, 1, 8])
            return x * tf.sigmoid(self.v * x) / root * self.gamma + self.beta

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    keras.utils.set_random_seed(2)
    inputs = keras.Input((4, 4, 3))
    x = EvoNorm()(keras.layers.Conv2D(8, 3, padding="same")(inputs))
    model = keras.Model(inputs, keras.layers.Conv2D(3, 1)(x))
    assert rewriter.plan(model).float_layers == ()
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    assert len(qat.trainable_variables) >= len(model.trainable_variables)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    assert decibels(call(model, [X])[0], call(rewriter.fold(qat), [X])[0]) > 25


@both
@pytest.mark.parametrize("guard", ["added", "least"])
def test_a_guarded_logarithm_is_one_table(flavour: str, guard: str, tmp_path: Path) -> None:
    """The grid of the square would round the guard away: as near as the function of 8 bits is."""
    keras = KERASES[flavour]
    ops = keras.ops if flavour == "keras" else tf.math

    def function(x: Any) -> Any:
        square = x * x
        return ops.log(square + 1e-3 if guard == "added" else ops.maximum(square, 1e-3))

    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, function(inputs))
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    assert [s.operator.kind for s in lower(qat).steps].count("GATHER") == 1
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    step = (X.max() - X.min()) / 255
    rounded = np.rint(X / step).astype(np.float64) * step
    plain = np.log(rounded**2 + 1e-3 if guard == "added" else np.maximum(rounded**2, 1e-3))
    expected = call(model, [X])[0]
    twin = call(rewriter.fold(qat), [X])[0]
    assert decibels(expected, twin) > decibels(expected, plain) - 3


def test_numbers_for_each_channel_are_those_of_the_file_again(tmp_path: Path) -> None:
    """A file of tf_keras has a list in the place of an array."""
    keras = KERASES["tf_keras"]
    inputs = keras.Input((8, 5))
    model = keras.Model(inputs, tf.cos(inputs * tf.constant([1.0, 2, 3, 4, 5])))
    data = np.random.default_rng(0).normal(size=(32, 8, 5)).astype(np.float32)
    qat = rewriter.calibrate(rewriter.rewrite(model), data, progress=False)
    qat.save(tmp_path / "m.keras")
    kinds = [[s.operator.kind for s in lower(m).steps]
             for m in (qat, rewriter.load_model(tmp_path / "m.keras"))]  # fmt: skip
    assert kinds[0] == kinds[1] and "GATHER" in kinds[0]


@both
def test_a_quotient_of_functions_of_one_tensor_is_one_table(flavour: str) -> None:
    """Neither the numerator nor the denominator is rounded by itself."""
    keras = KERASES[flavour]
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, inputs**2 / (inputs**2 + 0.1))
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    kinds = [s.operator.kind for s in lower(qat).steps]
    assert kinds.count("GATHER") == 1 and "MUL" not in kinds
    assert decibels(call(model, [X])[0], call(rewriter.fold(qat), [X])[0]) > 35
