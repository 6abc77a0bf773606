"""Models of the benchmarks of the training step, and the variants of each that are compared."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

import rewriter

SHAPES = {  # name -> (input shape, batch, classes)
    "mobilenet_v2": ((96, 96, 3), 32, 10),
    "resnet50_64": ((64, 64, 3), 16, 10),
    "resnet50_128": ((128, 128, 3), 16, 10),
    "efficientnet_b0": ((96, 96, 3), 32, 10),
    "densenet121": ((64, 64, 3), 16, 10),
    "kws01": ((49, 10, 1), 32, 12),
    "conv1d": ((256, 16), 32, 10),
}


def build(keras: Any, name: str) -> Any:
    """A float model of this Keras with random weights."""
    shape, _, classes = SHAPES[name]
    apps = keras.applications
    options = {"weights": None, "classes": classes, "input_shape": shape}
    if name == "mobilenet_v2":
        return apps.MobileNetV2(alpha=0.5, **options)
    if name.startswith("resnet50"):
        return apps.ResNet50(**options)
    if name == "efficientnet_b0":
        return apps.EfficientNetB0(**options)
    if name == "densenet121":
        return apps.DenseNet121(**options)
    if name == "kws01":
        return _kws(keras, shape, classes)
    return _conv1d(keras, shape, classes)


def _kws(keras: Any, shape: tuple[int, ...], classes: int) -> Any:
    """The DS-CNN of MLPerf Tiny (same layers as kws01)."""
    k = keras.layers
    x = inputs = keras.Input(shape)

    def norm(x: Any) -> Any:
        return k.Activation("relu")(k.BatchNormalization()(x))

    x = norm(k.Conv2D(64, (10, 4), strides=2, padding="same")(x))
    for _ in range(4):
        x = norm(k.DepthwiseConv2D(3, padding="same")(x))
        x = norm(k.Conv2D(64, 1, padding="same")(x))
    x = k.Flatten()(k.AveragePooling2D((25, 5))(x))
    return keras.Model(inputs, k.Dense(classes, activation="softmax")(x))


def _conv1d(keras: Any, shape: tuple[int, ...], classes: int) -> Any:
    k = keras.layers
    x = inputs = keras.Input(shape)
    for filters in (32, 64, 64, 128):
        x = k.ReLU()(k.BatchNormalization()(k.Conv1D(filters, 5, strides=2, padding="same")(x)))
    x = k.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, k.Dense(classes, activation="softmax")(x))


def with_moments(keras: Any, model: Any) -> Any:
    """The model with every BatchNormalization made of ``tf.nn.moments``: the first version."""

    class MomentsBatchNormalization(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            add = self.add_weight
            size = (shape[-1],)
            self.gamma = add(name="gamma", shape=size, initializer="ones")
            self.beta = add(name="beta", shape=size, initializer="zeros")
            self.mean = add(name="mean", shape=size, initializer="zeros", trainable=False)
            self.var = add(name="var", shape=size, initializer="ones", trainable=False)

        def call(self, x: Any, training: bool = False, mask: Any = None) -> Any:
            gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
            mean, var = tf.convert_to_tensor(self.mean), tf.convert_to_tensor(self.var)
            if training:
                batch_mean, batch_var = tf.nn.moments(x, list(range(len(x.shape) - 1)))
                self.mean.assign(mean * 0.99 + batch_mean * 0.01)
                self.var.assign(var * 0.99 + batch_var * 0.01)
                mean, var = batch_mean, batch_var
            return tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3)

    def swap(layer: Any) -> Any:
        if isinstance(layer, keras.layers.BatchNormalization):
            return MomentsBatchNormalization(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=swap)


PHASES: dict[str, dict[str, Any]] = {
    "ours quantize": {"phase": "quantize"},
    "ours frozen": {"phase": "quantize", "freeze_ranges": True},
    "ours float": {"phase": "float"},
}


# By name: what each is measured with, and whether its ranges are learned.
RECIPES: dict[str, tuple[Any, bool]] = {
    "int8-per-tensor": ("int8-per-tensor", False),
    "w4a8": ("w4a8", False),
    "w4a8-small": ("w4a8-small", False),
    "w2-dense": ("w2-dense", False),
    "int16x8": ("int16x8", False),
    "lsq": (rewriter.Recipe(ranges="lsq"), True),
    "lsq+": (rewriter.Recipe(ranges="lsq+"), True),
    "tqt": (rewriter.Recipe(ranges="tqt"), True),
}


def variants(keras: Any, name: str, data: Any) -> dict[str, Callable[[], Any]]:
    """Functions that build each model; ``ours`` comes in phase ``quantize``."""

    def ours(recipe: Any = None) -> Any:
        model = rewriter.rewrite(build(keras, name), recipe)
        rewriter.calibrate(model, data[:2], progress=False)
        return model

    found: dict[str, Callable[[], Any]] = {
        "float": lambda: build(keras, name),
        "ours": ours,
        "moments": lambda: with_moments(keras, build(keras, name)),
        **{label: functools.partial(ours, recipe) for label, (recipe, _) in RECIPES.items()},
    }
    if keras.__name__ == "tf_keras":
        found["tfmot"] = lambda: _tfmot(build(keras, name))
    return found


def _tfmot(model: Any) -> Any:
    import tensorflow_model_optimization as tfmot

    return tfmot.quantization.keras.quantize_model(model)


def batch(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and labels."""
    shape, size, classes = SHAPES[name]
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, classes, size)


def compiled(keras: Any, make: Callable[[], Any], data: Any) -> tuple[Any, Any]:
    """One training step as ``fit`` runs it, not traced yet, and the model that it trains.

    The step is a function without arguments; the data are ready before it.
    """
    model = make()
    model.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy")
    iterator = iter(tf.data.Dataset.from_tensors(data).repeat())
    function = model.make_train_function() or model.train_function
    return lambda: function(iterator), model
