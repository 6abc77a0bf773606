"""Models with the channels first: computed with the channels last, on any machine.

The oracle is the same model built with the channels last, on the transposed image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import builders
import claims
import rewriter
from builders import KERASES, keras_of, normal


@pytest.fixture(params=KERASES)
def keras(request: Any) -> Any:
    return builders.fresh(keras_of(request.param))


def network(keras: Any, layout: str) -> Any:
    """Blocks, a squeeze and excitation, a concatenation, and a Flatten that sees the layout."""
    layers, first = keras.layers, layout == "channels_first"
    axis, kept = (1, {"data_format": layout}) if first else (-1, {"data_format": layout})
    image = keras.Input((3, 8, 6) if first else (8, 6, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv", **kept)(image)
    x = layers.ReLU()(layers.BatchNormalization(axis=axis, name="bn")(x))
    gate = layers.GlobalAveragePooling2D(keepdims=True, **kept)(x)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate", **kept)(gate)
    x = layers.Concatenate(axis=axis)([layers.Multiply()([x, gate]), x])
    x = layers.ZeroPadding2D(((0, 1), (1, 0)), **kept)(x)
    x = layers.DepthwiseConv2D(3, strides=2, name="depthwise", **kept)(x)
    x = layers.BatchNormalization(axis=axis, name="last_bn")(x) * 2.0
    x = layers.MaxPooling2D(2, **kept)(x)
    if not first:
        x = layers.Permute((3, 1, 2))(x)
    return keras.Model(image, layers.Dense(3, name="scores")(layers.Flatten()(x)))


def test_a_model_with_the_channels_first(keras: Any, tmp_path: Path) -> None:
    model, oracle = network(keras, "channels_first"), network(keras, "channels_last")
    builders.randomise_all(oracle, 1)
    model.set_weights(oracle.get_weights())
    plan = rewriter.plan(model)
    assert [(e.name, e.action) for e in plan.entries] == [("bn", "fused"), ("last_bn", "fused")]
    qat = rewriter.rewrite(model)
    x = normal(8, 3, 8, 6)
    transposed = np.transpose(x, (0, 2, 3, 1))
    claims.assert_close(qat(x, training=False), oracle(transposed, training=False), 1e-5)
    batches = [(normal(8, 3, 8, 6, seed=i), normal(8, 3, seed=9 + i)) for i in range(3)]
    losses = claims.train(qat, keras, batches, "mse", 1e-3)
    others = [(np.transpose(x, (0, 2, 3, 1)), y) for x, y in batches]
    claims.assert_close(losses, claims.train(oracle, keras, others, "mse", 1e-3), 1e-4)
    rewriter.calibrate(qat, x, progress=False)
    assert not rewriter.export_tflite(qat, tmp_path / "m.tflite").float_tensors
    found = rewriter.verify(qat, tmp_path / "m.tflite", x, progress=False).comparison
    assert not found.differences
