"""Models of bytes, as cameras give them, and the types of a file's inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import litert_programs
import rewriter
from checks import KERASES, both
from rewriter.checking import reading
from rewriter.errors import ExportError
from rewriter.litert import borders
from rewriter.program import Quantization

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)


def _cast(keras: Any, x: Any) -> Any:
    ops = keras.ops if hasattr(keras, "ops") else tf
    return ops.cast(x, "float32") / 255.0


def _cast_inside(keras: Any, x: Any) -> Any:
    return keras.layers.Lambda(lambda t: tf.cast(t, tf.float32) / 127.5 - 1.0)(x)


# How a model gets from bytes to numbers.
STARTS: dict[str, Callable[[Any, Any], Any]] = {
    "rescaling": lambda k, x: k.layers.Rescaling(1 / 255)(x),
    "rescaling_offset": lambda k, x: k.layers.Rescaling(1 / 127.5, offset=-1)(x),
    "channels": lambda k, x: k.layers.Normalization(mean=[120, 130, 140], variance=[900, 800, 700])(x),
    "cast": _cast,
    "lambda": _cast_inside,
    "moved": lambda k, x: k.layers.Rescaling(1 / 255)(
        k.layers.Permute((2, 1, 3))(k.layers.ZeroPadding2D(1, dtype="uint8")(x))
        if k.__name__ == "keras" else x[:, ::2]
    ),
}  # fmt: skip


def camera(flavour: str, start: str, dtype: str = "uint8") -> Any:
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), dtype=dtype, name="pixels")
    x = STARTS[start](keras, inputs)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(x))


def run(path: Path, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """LiteRT's own outputs, in real values, and what it says of input and output."""
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for sample in data:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(made["index"])[0].astype(np.float64))
    result = np.stack(found)
    scale, zero = made["quantization"]
    return (result - zero) * scale if scale else result, given, made


@both
@pytest.mark.parametrize("start", STARTS)
def test_bytes_in_bytes_out(flavour: str, start: str, tmp_path: Path) -> None:
    """The file takes the camera's own bytes, holds no float, and computes what was trained."""
    model = camera(flavour, start)
    qat = rewriter.rewrite(model)
    np.testing.assert_allclose(np.asarray(qat(PIXELS)), np.asarray(model(PIXELS)), atol=1e-5)
    # Statistics that are not trained: of what is exported as it is.
    rewriter.calibrate(qat, PIXELS, progress=False, for_training=False)
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path)
    found, given, _ = run(path, PIXELS)
    assert given["dtype"] is np.uint8 and given["quantization"] == (1.0, 0)
    census = reading.census(path.read_bytes())
    assert census.integer_only and not census.float_tensors
    assert not census.conversions
    twin = np.asarray(rewriter.fold(qat)(PIXELS))
    np.testing.assert_allclose(found, twin, rtol=1e-6, atol=1e-6)
    wanted = np.asarray(model(PIXELS))
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    result = rewriter.verify(qat, path, PIXELS, progress=False)
    assert result.comparison.worst.identical == 1.0
    assert result.parts_at is None


@both
def test_every_type_of_input_and_output(flavour: str, tmp_path: Path) -> None:
    """The same integers behind every border."""
    qat = rewriter.rewrite(camera(flavour, "rescaling"), calibration_data=PIXELS)
    twin = np.asarray(rewriter.fold(qat)(PIXELS))
    shifted = (PIXELS.astype(np.int32) - 128).astype(np.int8)
    stored = {"uint8": PIXELS, "int8": shifted, "float32": PIXELS.astype(np.float32)}
    for number, (kind, data) in enumerate(stored.items()):
        for made in ("int8", "uint8", "float32"):
            path = tmp_path / f"{number}_{made}.tflite"
            rewriter.export_tflite(qat, path, input_type=kind, output_type=made)
            found, given, output = run(path, data)
            assert given["dtype"] is np.dtype(kind).type
            assert output["dtype"] is np.dtype(made).type
            np.testing.assert_allclose(found, twin, rtol=1e-6, atol=1e-6)
            result = rewriter.verify(qat, path, PIXELS, progress=False)
            assert result.comparison.worst.identical == 1.0
            assert not result.comparison.differences and not result.comparison.missing


@both
def test_a_float_model_reads_bytes(flavour: str, tmp_path: Path) -> None:
    """Its input's grid, moved to uint8: what a camera's driver is told."""
    data = PIXELS.astype(np.float32) / 255
    qat = rewriter.rewrite(camera(flavour, "rescaling", "float32"), calibration_data=data)
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path, input_type="uint8")
    _, given, _ = run(path, PIXELS)
    scale, zero = given["quantization"]
    bytes_ = np.clip(np.rint(data / np.float32(scale)) + zero, 0, 255).astype(np.uint8)
    found, _, _ = run(path, bytes_)
    np.testing.assert_allclose(found, np.asarray(rewriter.fold(qat)(data)), rtol=1e-6, atol=1e-6)
    assert rewriter.verify(qat, path, data, progress=False).comparison.worst.identical == 1.0


@both
def test_signed_bytes(flavour: str, tmp_path: Path) -> None:
    data = (PIXELS.astype(np.int32) - 128).astype(np.int8)
    qat = rewriter.rewrite(camera(flavour, "rescaling", "int8"), calibration_data=data)
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path)
    found, given, _ = run(path, data)
    assert given["dtype"] is np.int8 and given["quantization"] == (1.0, 0)
    np.testing.assert_allclose(found, np.asarray(rewriter.fold(qat)(data)), rtol=1e-6, atol=1e-6)


@both
def test_types_that_do_not_fit(flavour: str, tmp_path: Path) -> None:
    qat = rewriter.rewrite(camera(flavour, "rescaling"), calibration_data=PIXELS)
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="input_type must be one of.*'int16'"):
        rewriter.export_tflite(qat, path, input_type="int16")
    with pytest.raises(ValueError, match="beside float_io"):
        rewriter.export_tflite(qat, path, float_io=True, output_type="uint8")
    assert not path.exists()


def test_a_wide_grid_is_no_byte() -> None:
    program = litert_programs.residual()
    name = program.inputs[0]
    tensor = dataclasses.replace(program.tensors[name], quantization=Quantization(0.01, 0, 16))
    program = dataclasses.replace(program, tensors={**program.tensors, name: tensor})
    with pytest.raises(ExportError, match=f"{name!r} has 16 bits"):
        borders.types(program, False, "uint8", None)
