"""Ranges that no sensible data has: the file loads with LiteRT's default kernels, or there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError

_RNG = np.random.default_rng(0)
USUAL = _RNG.normal(size=(16, 6, 6, 3)).astype(np.float32)


def _outlier(size: float) -> np.ndarray:
    data = USUAL.copy()
    data[3, 2, 2, 1] = size
    return data


DATA = {
    "outlier": _outlier(1e6),
    "large_outlier": _outlier(1e20),
    "zeros": np.zeros_like(USUAL),
    "tiny": USUAL * np.float32(1e-20),
}


def model(flavour: str) -> Any:
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", use_bias=False)(x))
    x = layers.Add()([x, y])
    x = layers.Concatenate()([layers.Activation("tanh")(x), layers.LeakyReLU()(y)])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@both
@pytest.mark.parametrize("case", DATA)
@pytest.mark.filterwarnings("ignore:The moving statistics")
def test_a_file_that_appears_can_be_loaded(flavour: str, case: str, tmp_path: Path) -> None:
    qat = rewriter.rewrite(model(flavour))
    rewriter.calibrate(qat, DATA[case], progress=False)
    path = tmp_path / "m.tflite"
    try:
        rewriter.export_tflite(qat, path)
    except ExportError as error:
        assert "ayer" in str(error)  # which one
        assert not list(tmp_path.iterdir())
        return
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.invoke()
    result = rewriter.verify(qat, path, USUAL, progress=False)
    assert result.comparison.worst.identical >= 0.999
