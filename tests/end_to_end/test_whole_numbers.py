"""Places and words: tensors of whole numbers in a model, its twin and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both, call, everything
from rewriter.checking import reading
from rewriter.errors import ExportError, VerificationError
from rewriter.lowering.lower import lower

SHAPE = (6, 5)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _argmax(keras: Any, x: Any, axis: int = -1) -> Any:
    return keras.ops.argmax(x, axis) if hasattr(keras, "ops") else tf.argmax(x, axis)


def _classes(flavour: str, beside: bool = False) -> Any:
    """A class for each place, and the scores too where ``beside``."""
    keras = KERASES[flavour]
    keras.utils.set_random_seed(1)
    inputs = keras.Input(SHAPE, name="x")
    scores = keras.layers.Dense(7, name="scores")(inputs)
    named = _argmax(keras, scores)
    return keras.Model(inputs, [named, scores] if beside else named)


def _calibrated(model: Any, data: Any) -> Any:
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    return qat


def _scores() -> np.ndarray:
    return _rng().normal(size=(24, *SHAPE)).astype(np.float32)


def _details(path: Path) -> tuple[list[Any], list[Any]]:
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter.get_input_details(), interpreter.get_output_details()


@both
@pytest.mark.parametrize("options", [{}, {"float_io": True}, {"output_type": "uint8"},
                                     {"batch_size": None}, {"batch_size": 3}])  # fmt: skip
def test_an_output_of_places(flavour: str, options: dict[str, Any], tmp_path: Path) -> None:
    """int32 or int64, as in the model, whatever else is asked for at the border."""
    data, path = _scores(), tmp_path / "m.tflite"
    model = _classes(flavour, beside=True)
    qat = _calibrated(model, data)
    report = rewriter.export_tflite(qat, path, **options)
    assert report.ops["ARG_MAX"] == 1 and "argmax" not in str(report.scales)
    _, outputs = _details(path)
    wanted = np.int32 if flavour == "keras" else np.int64
    (found,) = [o for o in outputs if o["dtype"] is wanted]
    assert found["quantization"] == (0.0, 0)
    result = rewriter.verify(qat, path, data, progress=False)
    assert result.parts_at is None and result.comparison.differences == ()
    assert all(row.identical == 1.0 for row in result.comparison.operator_by_operator)
    emulated = call(qat, [data], training=False)
    twin = rewriter.fold(qat)
    for ours, theirs in zip(call(twin, [data]), emulated, strict=True):
        assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(call(twin, [data])[0], emulated[0])
    assert np.mean(emulated[0] == call(model, [data])[0]) > 0.9


@both
def test_a_twin_is_saved(flavour: str, tmp_path: Path) -> None:
    data = _scores()
    twin = rewriter.fold(_calibrated(_classes(flavour), data))
    twin.save(tmp_path / "twin.keras")
    again = rewriter.load_model(tmp_path / "twin.keras")
    np.testing.assert_array_equal(call(again, [data])[0], call(twin, [data])[0])
    assert call(again, [data])[0].dtype == call(twin, [data])[0].dtype


@both
def test_what_is_computed_with_places_stays_in_float(flavour: str, tmp_path: Path) -> None:
    data, path, keras = _scores(), tmp_path / "m.tflite", KERASES[flavour]
    inputs = keras.Input(SHAPE)
    places = _argmax(keras, keras.layers.Dense(7)(inputs))
    model = keras.Model(inputs, places * 2 + 1)
    qat = _calibrated(model, data)
    assert len(rewriter.plan(model).float_layers) == 2
    with pytest.raises(ExportError, match="no integer form"):
        rewriter.export_tflite(qat, path)
    rewriter.export_tflite(qat, path, allow_float=True)
    assert rewriter.verify(qat, path, data, progress=False).comparison.differences == ()


@both
def test_a_whole_batch_has_no_place(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input(SHAPE)
    model = keras.Model(inputs, _argmax(keras, keras.layers.Dense(7)(inputs), 0))
    qat = _calibrated(model, _scores())
    assert rewriter.plan(model).float_layers
    with pytest.raises(ExportError, match="no integer form"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")


def test_in_16_bits_it_is_refused_by_layer() -> None:
    model = _classes("keras")
    qat = rewriter.rewrite(model, "int16x8")
    rewriter.calibrate(qat, _scores(), progress=False)
    with pytest.raises(ExportError, match="argmax.* ARG_MAX: LiteRT has none"):
        lower(qat)


def test_a_header_in_c_says_the_type(tmp_path: Path) -> None:
    data = _scores()
    qat = _calibrated(_classes("tf_keras"), data)
    rewriter.export_tflite(qat, tmp_path / "m.tflite", c_array=tmp_path / "m.c")
    assert "int64_t, 1 x 6." in (tmp_path / "m.h").read_text()
    assert reading.census((tmp_path / "m.tflite").read_bytes()).integer_only


# Rows of a table, by the numbers of an input: ``look_up(keras, numbers)``.

TABLE = np.random.default_rng(5).normal(size=(11, 4)).astype(np.float32)


def _embedding(k: Any, **options: Any) -> Any:
    return k.layers.Embedding(11, 4, embeddings_initializer="random_normal", **options)


def _own(k: Any, function: Any) -> Any:
    """A layer of the user's with a table."""

    class Table(k.layers.Layer):  # type: ignore[name-defined]
        def build(self, _: Any) -> None:
            self.table = self.add_weight(name="table", shape=(11, 4), initializer="random_normal")

        def call(self, x: Any) -> Any:
            return function(k, self.table, x)

    return Table()


def _take(k: Any, table: Any, x: Any) -> Any:
    return k.ops.take(table, x, axis=0) if hasattr(k, "ops") else tf.gather(table, x)


LOOK_UPS: dict[str, Any] = {
    "Embedding": lambda k, x: _embedding(k)(x),
    "Embedding_with_a_mask": lambda k, x: _embedding(k, mask_zero=True)(x),
    "gather": lambda k, x: _take(k, TABLE, x),
    "gather_numbers": lambda k, x: _take(k, TABLE[:, 0], x),
    "Lambda": lambda k, x: k.layers.Lambda(
        lambda t: tf.gather(TABLE, t), output_shape=(5, 4))(x),
    "own": lambda k, x: _own(k, _take)(x),
    "own_tensorflow": lambda k, x: _own(k, lambda k, v, t: tf.gather(v, t))(x),
    "moved": lambda k, x: _embedding(k)(k.layers.Reshape((3, 1))(x[:, 1:4])),
    "twice": lambda k, x: k.layers.Concatenate()([_embedding(k)(x), _embedding(k)(x)]),
    "averaged": lambda k, x: k.layers.Average()([_embedding(k)(x), _embedding(k)(x)]),
    "activated": lambda k, x: k.layers.ReLU()(_embedding(k)(x)),
    "normalized": lambda k, x: k.layers.LayerNormalization(name="still")(_embedding(k)(x)),
}  # fmt: skip


@both
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
@pytest.mark.parametrize("name", LOOK_UPS)
def test_rows_of_a_table(name: str, dtype: str, flavour: str, tmp_path: Path) -> None:
    """By an integer input of the file, of whatever type the model's is."""
    if dtype == "float32" and "mbedding" not in name:
        pytest.skip("only Embedding takes such")

    def build(keras: Any) -> Any:
        inputs = keras.Input((5,), dtype=dtype, name="numbers")
        rows = LOOK_UPS[name](keras, inputs)
        outputs = keras.layers.Dense(3, activation="relu", name="dense")(rows)
        return keras.Model(inputs, outputs)

    if dtype == "float32":
        model = build(KERASES[flavour])
        numbers = _rng().integers(0, 11, (16, 5)).astype(np.float32)
        qat = _calibrated(model, numbers)
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
        assert rewriter.verify(qat, tmp_path / "m.tflite", numbers, progress=False).parts_at is None
        np.testing.assert_allclose(call(rewriter.fold(qat), [numbers])[0],
                                   call(qat, [numbers])[0], atol=0.02)  # fmt: skip
    else:
        assert everything(flavour, build, {}, tmp_path).float_layers == ()
    inputs, _ = _details(tmp_path / "m.tflite")
    wanted = np.int64 if dtype == "int64" else np.int32
    assert [(i["dtype"], i["quantization"]) for i in inputs] == [(wanted, (0.0, 0))]


def _words(flavour: str) -> Any:
    keras = KERASES[flavour]
    inputs = keras.Input((5,), dtype="int32", name="numbers")
    return keras.Model(inputs, keras.layers.Flatten()(_embedding(keras)(inputs)))


@both
def test_rows_are_those_of_the_table(flavour: str, tmp_path: Path) -> None:
    """The stored table is the rounded one, row by row, and so is what the file returns."""
    numbers = np.arange(10, dtype=np.int32).reshape(2, 5)
    model, path = _words(flavour), tmp_path / "m.tflite"
    qat = _calibrated(model, numbers)
    report = rewriter.export_tflite(qat, path)
    assert report.ops == {"GATHER": 1, "RESHAPE": 1}
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = made["quantization"]
    table = np.asarray(model.layers[1].embeddings)
    stored = np.clip(np.rint(table * (np.float32(1) / np.float32(scale))) + zero, -128, 127)
    for row in numbers:
        interpreter.set_tensor(given["index"], row[None])
        interpreter.invoke()
        found = interpreter.get_tensor(made["index"])
        np.testing.assert_array_equal(found.reshape(5, 4), stored[row])


@both
@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_number_beyond_the_table(flavour: str, wrong: int, tmp_path: Path) -> None:
    """LiteRT does not run with such, whatever a Keras makes of it."""
    numbers, path = _rng().integers(0, 11, (8, 5)).astype(np.int32), tmp_path / "m.tflite"
    qat = _calibrated(_words(flavour), numbers)
    rewriter.export_tflite(qat, path)
    numbers[3, 2] = wrong
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], numbers[3:4])
    with pytest.raises(RuntimeError, match="gather index out of bounds"):
        interpreter.invoke()
    with pytest.raises(VerificationError, match=f"'embedding.*Received: {wrong}.* 0 to 10"):
        rewriter.verify(qat, path, numbers, progress=False)


@both
def test_a_twin_with_a_table_is_saved(flavour: str, tmp_path: Path) -> None:
    numbers = _rng().integers(0, 11, (8, 5)).astype(np.int32)
    twin = rewriter.fold(_calibrated(_words(flavour), numbers))
    twin.save(tmp_path / "twin.keras")
    again = rewriter.load_model(tmp_path / "twin.keras")
    np.testing.assert_array_equal(call(again, [numbers])[0], call(twin, [numbers])[0])


@both
def test_another_table_in_the_file_is_a_difference(flavour: str, tmp_path: Path) -> None:
    numbers, path = _rng().integers(0, 11, (8, 5)).astype(np.int32), tmp_path / "m.tflite"
    model = _words(flavour)
    qat = _calibrated(model, numbers)
    rewriter.export_tflite(qat, path)
    table = qat.layers[1].embeddings
    table.assign(np.asarray(table)[::-1])
    found = rewriter.verify(qat, path, numbers, progress=False).comparison
    assert any("the table or its scale differs" in text for text in found.differences)
    assert min(row.identical for row in found.operator_by_operator) < 0.5


@both
def test_in_16_bits(flavour: str, tmp_path: Path) -> None:
    numbers, path = _rng().integers(0, 11, (8, 5)).astype(np.int32), tmp_path / "m.tflite"
    model = _words(flavour)
    qat = rewriter.rewrite(model, "int16x8")
    rewriter.calibrate(qat, numbers, progress=False)
    rewriter.export_tflite(qat, path)
    result = rewriter.verify(qat, path, numbers, progress=False)
    assert result.parts_at is None and result.comparison.differences == ()
    assert all(row.identical == 1.0 for row in result.comparison.operator_by_operator)
    np.testing.assert_allclose(call(rewriter.fold(qat), [numbers])[0],
                               call(model, [numbers])[0], atol=1e-4)  # fmt: skip


@both
def test_what_is_looked_up_and_counted(flavour: str, tmp_path: Path) -> None:
    """An input that is both a number of rows and a quantity: the second is in float."""
    keras = KERASES[flavour]
    inputs = keras.Input((5,), dtype="int32", name="numbers")
    cast = keras.ops.cast if flavour == "keras" else tf.cast
    counted = keras.layers.Dense(4)(keras.layers.Reshape((5, 1))(cast(inputs, "float32")))
    model = keras.Model(inputs, keras.layers.Add()([_embedding(keras)(inputs), counted]))
    numbers, path = _rng().integers(0, 11, (8, 5)).astype(np.int32), tmp_path / "m.tflite"
    qat = _calibrated(model, numbers)
    assert len(rewriter.plan(model).float_layers) == 1
    with pytest.raises(ExportError, match="cast"):
        rewriter.export_tflite(qat, path)
    rewriter.export_tflite(qat, path, allow_float=True)
    result = rewriter.verify(qat, path, numbers, progress=False)
    assert result.parts_at is None and result.comparison.differences == ()


def _one_hot(keras: Any, x: Any, depth: int) -> Any:
    return keras.ops.one_hot(x, depth) if hasattr(keras, "ops") else tf.one_hot(x, depth)


ONE_HOTS: dict[str, Any] = {
    "function": lambda k, x: _one_hot(k, x, 7),
    "Lambda": lambda k, x: k.layers.Lambda(
        lambda t: tf.one_hot(t, 7, 0.75, -0.25), output_shape=(5, 7))(x),
}  # fmt: skip


@both
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("name", ONE_HOTS)
def test_one_hot(name: str, dtype: str, flavour: str, tmp_path: Path) -> None:
    """Of the numbers of an input, those without a place among them, as the model has it."""
    keras, path = KERASES[flavour], tmp_path / "m.tflite"
    inputs = keras.Input((5,), dtype=dtype, name="numbers")
    model = keras.Model(inputs, ONE_HOTS[name](keras, inputs))
    assert rewriter.plan(model).float_layers == ()
    numbers = np.concatenate([_rng().integers(0, 7, (8, 5)), [[-1, 7, 6, 0, 100]]]).astype(dtype)
    qat = _calibrated(model, numbers)
    report = rewriter.export_tflite(qat, path)
    assert report.ops == {"ONE_HOT": 1}
    twin, wanted = call(rewriter.fold(qat), [numbers])[0], call(model, [numbers])[0]
    np.testing.assert_allclose(twin, wanted, atol=2e-3)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = made["quantization"]
    for row, expected in zip(numbers, twin, strict=True):
        interpreter.set_tensor(given["index"], row[None])
        interpreter.invoke()
        found = (interpreter.get_tensor(made["index"])[0].astype(np.float64) - zero) * scale
        np.testing.assert_allclose(found, expected, atol=1e-6)


@both
def test_one_hot_of_a_place(flavour: str, tmp_path: Path) -> None:
    def build(keras: Any) -> Any:
        inputs = keras.Input((6,))
        x = keras.layers.Dense(6, name="scores")(inputs)
        place = keras.ops.argmax(x, -1) if hasattr(keras, "ops") else tf.argmax(x, -1)
        return keras.Model(inputs, keras.layers.Dense(3)(_one_hot(keras, place, 6)))

    assert everything(flavour, build, {}, tmp_path, steps=0).float_layers == ()


@both
def test_one_hot_of_16_bits_is_refused(flavour: str, tmp_path: Path) -> None:
    """LiteRT's operator makes int8 and float32 numbers only."""
    keras = KERASES[flavour]
    inputs = keras.Input((5,), dtype="int32", name="numbers")
    x = ONE_HOTS["Lambda"](keras, inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="scores")(x))
    qat = rewriter.rewrite(model, "int16x8")
    rewriter.calibrate(qat, _rng().integers(0, 7, (64, 5)).astype(np.int32))
    with pytest.raises(ExportError, match=r"has activations of 16 bits and becomes ONE_HOT"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
