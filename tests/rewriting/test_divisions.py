"""LiteRT divides no integers: a division by a tensor is refused by name, or stays in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError

X = np.random.default_rng(0).normal(size=(16, 4, 4, 3)).astype(np.float32)


def _in_a_lambda(keras: Any, x: Any, y: Any) -> Any:
    layer = keras.layers.Lambda(lambda p: p[0] / p[1], output_shape=(4, 4, 3), name="divide")
    return layer([x, y])


CASES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "of two tensors": lambda keras, x, y: x / y,
    "in a Lambda": _in_a_lambda,
    "of a number": lambda keras, x, y: 1.0 / y,
    "reciprocal": lambda keras, x, y: (
        keras.ops.reciprocal(y) if hasattr(keras, "ops") else tf.math.reciprocal(y)
    ),
}


@both
@pytest.mark.parametrize("case", CASES)
def test_by_a_tensor(flavour: str, case: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(3, 1)(inputs)
    y = keras.layers.Conv2D(3, 1, activation="sigmoid")(inputs) + 1.0
    model = keras.Model(inputs, CASES[case](keras, x, y))
    qat = rewriter.calibrate(rewriter.rewrite(model), X, progress=False)
    with pytest.raises(ExportError, match=r"Layer '.*(div|recip).*' has no integer form.*allow"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    found = rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
