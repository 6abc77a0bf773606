"""Numbers computed from sizes, numbers for all samples, and what keeps a division from 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import builders
import rewriter
from rewriter.errors import ExportError, VerificationError
from rewriter.litert import affine
from rewriter.program import Quantization

CASES = {
    "a root of a size": lambda x: x * tf.cast(tf.shape(x)[1] * tf.shape(x)[2], x.dtype) ** 0.5,
    "all sizes at once": lambda x: x + tf.cast(tf.unstack(tf.shape(x))[3] // 2, tf.float32),
    "a size from the end": lambda x: x / tf.cast(tf.shape(x)[-1], tf.float32),
    "the extreme of both": lambda x: x * tf.cast(tf.maximum(tf.shape(x)[1], 3), tf.float32),
}


def model_of(function: Any) -> tuple[Any, np.ndarray]:
    """A calibrated network around a function of its tensors, and data for it."""
    builders.fresh(tf_keras, 0)
    inputs = tf_keras.Input((8, 8, 3))
    x = tf_keras.layers.Conv2D(4, 3, padding="same")(inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.Conv2D(2, 1)(function(x)))
    data = builders.normal(8, 8, 8, 3, seed=1)
    found = rewriter.rewrite(model)
    assert np.array_equal(model(data), found(data))
    rewriter.calibrate(found, data, progress=False)
    return found, data


@pytest.mark.parametrize("case", CASES)
def test_a_number_computed_from_sizes_is_a_constant(case: str, tmp_path: Path) -> None:
    model, data = model_of(CASES[case])
    rewriter.export_tflite(model, tmp_path / "m.tflite")
    found = rewriter.verify(model, tmp_path / "m.tflite", data, progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    assert found.parts_at is None
    model.save(tmp_path / "m.keras")
    assert np.array_equal(rewriter.load_model(tmp_path / "m.keras")(data), model(data))


def test_the_size_of_the_batch_is_none(tmp_path: Path) -> None:
    model, _ = model_of(lambda x: x * tf.cast(tf.shape(x)[0], tf.float32))
    with pytest.raises(ExportError, match=r"one number for all samples.*keepdims=True"):
        rewriter.export_tflite(model, tmp_path / "m.tflite", allow_float=True)
    assert not list(tmp_path.iterdir())


def test_a_random_number_is_not_kept(tmp_path: Path) -> None:
    model, _ = model_of(
        lambda x: x + 0 * tf.random.uniform([], 0.0, tf.cast(tf.shape(x)[1], tf.float32))
    )
    with pytest.raises(ExportError, match="no integer form"):
        rewriter.export_tflite(model, tmp_path / "m.tflite")


@pytest.mark.parametrize(
    "guard", [lambda total: total + 1e-7, lambda total: tf.maximum(total, 1e-6)]
)
def test_what_keeps_a_division_from_0_stays(guard: Any, tmp_path: Path) -> None:
    """Where the sum is 0 for whole rows, as after a relu."""

    def function(x: Any) -> Any:
        total = tf.reduce_sum(tf.nn.relu(x), -1, keepdims=True)
        return x * 0.5 * tf.nn.relu(x) / guard(total)

    model, data = model_of(function)
    rewriter.set_phase(model, "quantize")
    assert np.isfinite(model(data)).all()
    rewriter.export_tflite(model, tmp_path / "m.tflite", allow_float=True)
    found = rewriter.verify(model, tmp_path / "m.tflite", data, progress=False)
    for tensor in found.comparison.operator_by_operator:
        assert tensor.identical == 1.0 or tensor.maximum <= 1e-5, tensor
    assert found.parts_at is None


def test_a_model_that_computes_no_number_is_said_to(tmp_path: Path) -> None:
    """Calibrated where nothing is divided by 0, and verified where something is."""

    def function(x: Any) -> Any:
        total = tf.reduce_sum(tf.abs(x), -1, keepdims=True)
        return tf.math.floormod(total, tf.reduce_max(tf.abs(x), -1, keepdims=True))

    model, data = model_of(function)
    rewriter.export_tflite(model, tmp_path / "m.tflite", allow_float=True)
    rewriter.verify(model, tmp_path / "m.tflite", data, progress=False)
    with pytest.raises(VerificationError, match=r"'tf.math.floormod': .*not a number.*phase"):
        rewriter.verify(model, tmp_path / "m.tflite", 0 * data, progress=False)


def test_what_is_not_a_number_is_the_highest_integer() -> None:
    """As XNNPACK has it; a cast would give the lowest int32, which no table has."""
    stored = affine.quantize(np.float32([np.nan, np.inf, -np.inf, 0]), Quantization(0.5, 3))
    assert stored.numpy().tolist() == [127, 127, -128, 3]
