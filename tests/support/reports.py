"""A model to report on, and what its report must hold."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import builders
from rewriter.cli import demo

HEADINGS = [
    "Summary", "Fine-tuning", "What became of every BatchNormalization", "Tensors", "Kernels",
    "The network", "Operators", "Confusion matrix", "Where file and twin part", "Inputs and outputs",
]  # fmt: skip
EVIL = "<script>alert('x')</script>\"&"


def hostile(value: Any, more: str = "") -> Any:
    """A report in which every text, wherever it comes from, is markup too."""
    if isinstance(value, str):
        return f"{EVIL}{value}{more}"
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: hostile(getattr(value, n), more) for n in names})
    if isinstance(value, dict):
        return {key: hostile(each, more) for key, each in value.items()}
    return tuple(hostile(each, more) for each in value) if isinstance(value, tuple) else value


def classifier(keras: ModuleType) -> Any:
    """A classifier of digits that has learned a little, with one channel that computes nothing."""
    keras = builders.fresh(keras)
    layers = keras.layers
    x = image = keras.Input((8, 8, 1), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="first")(x)
    x = layers.ReLU(name="act")(layers.BatchNormalization(name="first_bn")(x))
    x = layers.DepthwiseConv2D(3, use_bias=False, name="deep")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="deep_bn")(x))
    x = layers.Dense(10, activation="softmax", name="digit")(layers.Flatten()(x))
    model = keras.Model(image, x, name="small")
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy())
    data = demo.digits()
    model.fit(data.x_train[:500], data.y_train[:500], epochs=4, batch_size=32, verbose=0)
    (kernel,) = model.get_layer("first").get_weights()
    kernel[..., 5] = 0
    model.get_layer("first").set_weights([kernel])
    return model
