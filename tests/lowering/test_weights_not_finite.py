"""Weights of a training that has diverged: an error that names the layer, and no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, keras_of, normal
from rewriter.errors import ExportError


@pytest.mark.parametrize("name", KERASES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("layer", "attribute"),
    [("conv", "kernel"), ("conv", "bias"), ("conv_bn", "gamma"), ("conv_bn", "moving_variance"),
     ("alone", "beta"), ("scores", "kernel"), ("per_tensor", "kernel"), ("mixed", "gamma"), ("mixed", "beta")],
)  # fmt: skip
def test_named(name: str, value: float, layer: str, attribute: str, tmp_path: Path) -> None:
    keras = builders.fresh(keras_of(name))
    layers = keras.layers
    x = image = keras.Input((8, 8, 3), name="image")
    x = layers.BatchNormalization(name="conv_bn")(layers.Conv2D(4, 3, name="conv")(x))
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="relu")(x))
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.LayerNormalization(name="mixed")(x)
    x = layers.Conv2D(4, 1, name="per_tensor")(x)
    x = layers.Dense(3, name="scores")(layers.Flatten(name="flat")(x))
    recipe = rewriter.Recipe(layers=[{"match": "per_tensor", "per_tensor": True}])
    qat = rewriter.rewrite(keras.Model(image, x), recipe)
    rewriter.calibrate(qat, normal(16, 8, 8, 3), progress=False)
    file = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, file)
    before = file.read_bytes()
    found = next(
        getattr(inner, attribute)
        for inner in qat._flatten_layers()
        if inner.name == layer and hasattr(inner, attribute)
    )
    broken = np.array(found)
    broken.flat[1] = value
    found.assign(broken)
    with pytest.raises(ExportError, match=f"weights of '{layer}' are not finite"):
        rewriter.export_tflite(qat, file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.tflite"]
