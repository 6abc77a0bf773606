"""Roots and reciprocal ones: what is never below 0 in a file, and what stays in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both, call, decibels
from rewriter.errors import ExportError

Function = Any


def _of(keras: Any, name: str) -> Function:
    return getattr(keras.ops if hasattr(keras, "ops") else tf.math, name)


def _data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)


def _exported(model: Any, path: Path, **options: Any) -> tuple[Any, Any]:
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, _data(), progress=False)
    return qat, rewriter.export_tflite(qat, path, **options)


@both
@pytest.mark.parametrize("name", ["sqrt", "rsqrt"])
def test_a_grid_with_numbers_below_zero(name: str, flavour: str, tmp_path: Path) -> None:
    """LiteRT stops at the first of them; here none is read, on a grid that has them."""
    keras = KERASES[flavour]
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12,))
    positive = keras.layers.ReLU()(keras.layers.Dense(6)(inputs)) + 0.5
    both_sides = keras.layers.Concatenate()([positive, keras.layers.Dense(6)(inputs)])
    model = keras.Model(inputs, keras.layers.Dense(3)(_of(keras, name)(both_sides[:, :6])))
    qat, report = _exported(model, tmp_path / "m.tflite")
    assert report.ops["MAXIMUM"] == 1 and report.ops[name.upper()] == 1
    result = rewriter.verify(qat, tmp_path / "m.tflite", _data(), progress=False)
    assert result.comparison.differences == () and result.comparison.skipped == {}
    assert all(row.identical == 1.0 for row in result.comparison.operator_by_operator)
    assert result.parts_at is None
    assert decibels(call(model, [_data()])[0], call(rewriter.fold(qat), [_data()])[0]) > 25


@both
@pytest.mark.parametrize("name", ["sqrt", "rsqrt"])
def test_a_guard_against_zero_is_part_of_the_root(name: str, flavour: str, tmp_path: Path) -> None:
    """A grid between them would round the constant away."""
    keras = KERASES[flavour]
    inputs = keras.Input((12,))
    squares = keras.layers.Dense(4)(inputs) ** 2
    model = keras.Model(inputs, keras.layers.Dense(3)(_of(keras, name)(squares + 0.01)))
    assert rewriter.plan(model).float_layers == ()
    qat, report = _exported(model, tmp_path / "m.tflite")
    assert report.ops["GATHER"] == 1 and name.upper() not in report.ops
    result = rewriter.verify(qat, tmp_path / "m.tflite", _data(), progress=False)
    assert result.comparison.differences == () and result.comparison.skipped == {}
    assert all(row.identical == 1.0 for row in result.comparison.operator_by_operator)
    assert decibels(call(model, [_data()])[0], call(rewriter.fold(qat), [_data()])[0]) > 20
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(qat(_data(), training=True) ** 2)
    variables = [getattr(v, "value", v) if flavour == "keras" else v
                 for v in qat.trainable_variables]  # fmt: skip
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, variables) if g is not None)


@both
def test_a_guard_that_others_read_too_stays_in_float(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((12,))
    guarded = keras.layers.Dense(4)(inputs) ** 2 + 1e-6
    root = keras.layers.Concatenate()([_of(keras, "sqrt")(guarded), guarded])
    model = keras.Model(inputs, keras.layers.Dense(3)(root))
    assert len(rewriter.plan(model).float_layers) == 1
    with pytest.raises(ExportError, match="no integer form"):
        _exported(model, tmp_path / "m.tflite")
