"""Places and words: tensors of whole numbers in a model, its twin and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both, call
from rewriter.checking import reading
from rewriter.errors import ExportError
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
