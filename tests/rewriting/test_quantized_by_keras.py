"""What ``quantize`` of Keras 3 has made integers of is refused: it is no trained weight."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import rewriter
from rewriter.errors import LoadError, UnsupportedModelError

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def build(*, nested: bool = False) -> keras.Model:
    inputs = keras.Input((6,), name="x")
    x = keras.layers.Dense(8, name="dense")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    inner = keras.Model(inputs, keras.layers.Dense(4, name="last")(x), name="inner")
    if not nested:
        return inner
    outer = keras.Input((2, 6), name="y")
    return keras.Model(outer, keras.layers.TimeDistributed(inner, name="steps")(outer))


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_models(mode, tmp_path):
    model = build()
    model.quantize(mode)
    for step in (rewriter.plan, rewriter.rewrite):
        with pytest.raises(UnsupportedModelError, match=f"'dense' is quantized by Keras.*{mode}"):
            step(model)
    model.save(tmp_path / "m.keras")
    with pytest.raises(LoadError, match="is quantized by Keras.*before model.quantize"):
        rewriter.load_model(tmp_path / "m.keras")


def test_a_layer_inside_another():
    model = build(nested=True)
    model.get_layer("steps").layer.get_layer("last").quantize("int8")
    with pytest.raises(UnsupportedModelError, match="'steps' is quantized by Keras"):
        rewriter.rewrite(model)


def test_a_policy():
    inputs = keras.Input((6,))
    layer = keras.layers.Dense(4, dtype="int8_from_float32", name="dense")
    model = keras.Model(inputs, keras.layers.BatchNormalization()(layer(inputs)))
    with pytest.raises(UnsupportedModelError, match="'dense' is quantized by Keras"):
        rewriter.rewrite(model)


def test_a_rewritten_model(tmp_path):
    qat = rewriter.rewrite(build(), calibration_data=X)
    qat.quantize("int8")
    with pytest.raises(UnsupportedModelError, match="'dense' is quantized by Keras"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
