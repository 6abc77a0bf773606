"""A small model, its batches, and its variables by name."""

from __future__ import annotations

from typing import Any

import numpy as np

import builders

VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


def small(keras: Any, *, seed: int = 0, softmax: bool = True, dropout: float | None = None) -> Any:
    """A convolution with a normalization fused into it, and a normalization alone.

    Between them a pool, or a dropout if its rate is given.
    """
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="relu")(x)
    if dropout is None:
        x = layers.MaxPooling2D(name="pool")(x)
    else:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(5, activation="softmax" if softmax else None, name="scores")(x)
    return keras.Model(image, x, name="small")


def batches(count: int, size: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and labels for :func:`small`."""
    rng = np.random.default_rng(0)
    return [(builders.residual_data(size, s), rng.integers(0, 5, size)) for s in range(count)]


def with_dropout(keras: Any, rate: float = 0.0) -> Any:
    """:func:`small` with a dropout and with statistics that nothing else has."""
    return builders.randomise_all(small(keras, dropout=rate), 0)


def compiled(kind: str, model: Any, rate: float = 0.02) -> Any:
    """Compiled with plain SGD."""
    keras = builders.keras_of(kind)
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    return model
