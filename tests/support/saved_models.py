"""Small models of both Kerases, and how each is saved."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tf_keras

KERASES = {"tf_keras": tf_keras, "keras": keras}
# Every format that each Keras writes; "" is a SavedModel folder.
FORMATS = [
    ("tf_keras", ""),
    ("tf_keras", ".keras"),
    ("tf_keras", ".h5"),
    ("tf_keras", ".hdf5"),
    ("keras", ".keras"),
    ("keras", ".h5"),
]
X = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype(np.float32)


def build(k: ModuleType, *more: Any) -> Any:
    """Conv2D, BatchNormalization with statistics unlike 0 and 1, ``more`` layers, Dense."""
    image = k.layers.Input((6, 6, 3), name="image")
    x = k.layers.Conv2D(4, 3, name="conv")(image)
    x = k.layers.BatchNormalization(name="bn")(x)
    for layer in more:
        x = layer(x)
    x = k.layers.GlobalAveragePooling2D(name="pool")(k.layers.ReLU(name="relu")(x))
    model = k.Model(image, k.layers.Dense(5, name="scores")(x), name="small")
    generator = np.random.default_rng(1)
    model.set_weights([generator.uniform(0.1, 1.5, w.shape) for w in model.get_weights()])
    return model


def save(model: Any, path: Path) -> Path:
    """Save in the format of the suffix."""
    model.save(path)
    return path


def custom_layer(k: ModuleType) -> Any:
    """A layer of a class that no Keras knows."""

    class Doubling(k.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return x * 2

    return Doubling(name="mine")
