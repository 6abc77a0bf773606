"""Small models of either Keras, with batch normalizations as real and as nasty as they come."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import numpy as np

import oracles
import rewriter
from rewriter import keras_compat

KERASES = tuple(flavour.name for flavour in keras_compat.usable())


def keras_of(name: str) -> ModuleType:
    """The Keras module called ``"tf_keras"`` or ``"keras"``."""
    return next(flavour.keras for flavour in keras_compat.usable() if flavour.name == name)


def fresh(keras: ModuleType, seed: int = 0) -> ModuleType:
    """Seed, and forget earlier models (tf_keras keeps the graph of all of them)."""
    if keras.__name__ == "tf_keras":
        keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    return keras


def batch_norms(model: Any) -> list[Any]:
    """Every stock BatchNormalization, those of nested models and inside other layers included."""
    return [
        layer
        for layer in model._flatten_layers()
        if "BatchNormalization" in type(layer).__name__
        and not type(layer).__module__.startswith("rewriter")
    ]


def hosts(model: Any) -> list[Any]:
    """The quantization-aware linear layers."""
    layers = model._flatten_layers()
    return [layer for layer in layers if type(layer).__name__ == "QuantizedHost"]


def randomise(model: Any, seed: int, *, low: float = 1e-3, high: float = 1e3) -> Any:
    """Give every BatchNormalization statistics that nothing else would get right by chance.

    Signs of both kinds, a zero and a tiny gamma, variances over ``low`` to ``high`` (drawn on a
    logarithmic scale), means of the size of the standard deviations.
    """
    rng = np.random.default_rng(seed)
    for layer in batch_norms(model):
        channels = layer.moving_mean.shape[0]
        variance = np.exp(rng.uniform(np.log(low), np.log(high), channels))
        gamma = rng.uniform(0.3, 2.0, channels) * rng.choice([-1, 1], channels)
        if channels > 3:
            gamma[1], gamma[2] = 0.0, 1e-7
        set_statistics(
            layer,
            gamma=gamma,
            beta=rng.normal(0, 0.5, channels),
            moving_mean=rng.normal(0, 1, channels) * np.sqrt(variance),
            moving_variance=variance,
        )
    return model


def set_statistics(layer: Any, **values: Any) -> None:
    """Assign the variables of a BatchNormalization by name; those that it lacks are left out."""
    for name, value in values.items():
        variable = getattr(layer, name, None)
        if variable is not None:
            variable.assign(np.asarray(value, np.float32))


def randomise_all(model: Any, seed: int) -> Any:
    """Random biases too (Keras starts them at 0, which would prove nothing)."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        bias = getattr(layer, "bias", None)
        if bias is not None:
            bias.assign(rng.normal(0, 0.5, bias.shape).astype(np.float32))
    return randomise(model, seed + 1, low=0.1, high=10)


@dataclasses.dataclass(frozen=True)
class HostCase:
    """A linear layer: how it is made, and what it reads.

    Attributes:
      name: class name.
      options: arguments of the constructor.
      shape: of its input, without the batch.
    """

    name: str
    options: dict[str, Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        extra = "-".join(
            f"{key}{value}".replace(" ", "")
            for key, value in self.options.items()
            if key in ("strides", "dilation_rate", "groups", "depth_multiplier", "padding")
        )
        return self.name + (f"-{extra}" if extra else "") + f"-rank{len(self.shape) + 1}"


HOST_CASES = (
    HostCase("Conv2D", {"filters": 6, "kernel_size": 3, "padding": "same"}, (7, 6, 6)),
    HostCase("Conv2D", {"filters": 5, "kernel_size": (3, 2), "strides": 2}, (8, 7, 3)),
    HostCase(
        "Conv2D", {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}, (8, 8, 4)
    ),
    HostCase("Conv2D", {"filters": 6, "kernel_size": 3, "groups": 2}, (6, 6, 4)),
    HostCase("DepthwiseConv2D", {"kernel_size": 3, "padding": "same"}, (7, 7, 5)),
    HostCase("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2, "strides": 2}, (7, 7, 4)),
    HostCase("SeparableConv2D", {"filters": 6, "kernel_size": 3, "padding": "same"}, (6, 6, 5)),
    HostCase("Conv1D", {"filters": 5, "kernel_size": 3, "padding": "causal"}, (9, 4)),
    HostCase("Conv1D", {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"}, (9, 4)),
    HostCase("Dense", {"units": 6}, (9,)),
    HostCase("Dense", {"units": 6}, (5, 4)),
)


@dataclasses.dataclass(frozen=True)
class NormOptions:
    """The arguments of the host and of the BatchNormalization that the algebra sees."""

    bias: bool = True
    scale: bool = True
    center: bool = True
    epsilon: float = 1e-3
    relu: bool = True


_PLAIN = NormOptions()


def host_model(keras: ModuleType, case: HostCase, options: NormOptions = _PLAIN) -> Any:
    """``Input -> host -> BatchNormalization (-> ReLU)``."""
    layers = keras.layers
    x = image = keras.Input(case.shape, name="image")
    x = getattr(layers, case.name)(use_bias=options.bias, name="host", **case.options)(x)
    x = layers.BatchNormalization(
        scale=options.scale, center=options.center, epsilon=options.epsilon, name="norm"
    )(x)
    x = layers.ReLU(name="relu")(x) if options.relu else layers.Flatten(name="flat")(x)
    return keras.Model(image, x, name="small")


def prepared(
    keras: ModuleType, case: HostCase, options: NormOptions, seed: int, **statistics: float
) -> tuple[Any, np.ndarray]:
    """A :func:`host_model` with random weights off the ties of their grids, and inputs for it."""
    fresh(keras, seed)
    model = randomise_all(host_model(keras, case, options), seed)
    randomise(model, seed, **statistics)
    host = model.get_layer("host")
    linear = oracles.linear_of(host)
    off = [oracles.off_ties(k, linear.axes(i)) for i, k in enumerate(linear.kernels)]
    host.set_weights([*off, *host.get_weights()[len(off) :]])
    x = np.random.default_rng(seed).normal(0.3, 1.0, (4, *case.shape)).astype(np.float32)
    return model, x


def kill_channels(model: Any, seed: int) -> None:
    """Give a :func:`host_model` channels that are dead in all the ways there are."""
    rng = np.random.default_rng(seed)
    norm, host = model.get_layer("norm"), model.get_layer("host")
    channels = norm.moving_mean.shape[0]
    variance = np.exp(rng.uniform(np.log(1e-3), np.log(1e3), channels))
    variance[0] = 0.0
    gamma = rng.uniform(0.5, 2.0, channels) * rng.choice([-1, 1], channels)
    gamma[1], gamma[2], gamma[3] = 0.0, 1e-30, -1e-7
    set_statistics(norm, gamma=gamma, moving_variance=variance, beta=rng.normal(0, 3, channels))
    weights = host.get_weights()
    if len(weights[0].shape) > 2 and weights[0].shape[-1] == channels:
        weights[0][..., 0] = 0.0  # a kernel of zeros, and the variance that goes with it
        host.set_weights(weights)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random data, float32."""
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype(np.float32)


def conv_bn_relu(layers: Any, x: Any, name: str, filters: int = 6, **norm: Any) -> Any:
    """A block; ``norm``: options of the normalization."""
    x = layers.Conv2D(filters, 3, padding="same", name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn", **norm)(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def residual(keras: ModuleType, *, classes: int = 5, softmax: bool = True) -> Any:
    """Convolutions, a residual sum, a normalization on its own, pools and a classifier."""
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = shortcut = layers.ReLU(name="stem_relu")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    x = layers.BatchNormalization(name="dw_bn")(x)
    x = layers.ReLU(6.0, name="dw_relu")(x)
    x = layers.Conv2D(8, 1, name="pw")(x)
    x = layers.BatchNormalization(name="pw_bn")(x)
    x = layers.Add(name="add")([x, shortcut])
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.ReLU(name="alone_relu")(x)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(classes, activation="softmax" if softmax else None, name="scores")(x)
    return keras.Model(image, x, name="residual")


def residual_data(count: int = 48, seed: int = 0) -> np.ndarray:
    """Inputs for :func:`residual`, float32 (count, 12, 12, 3), smooth as images are."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 4, 4, 3))
    return np.kron(coarse, np.ones((1, 3, 3, 1))).astype(np.float32)


def fit_statistics(model: Any, inputs: Any, steps: int = 3) -> Any:
    """Moving statistics that belong to the data, so that the signal does not collapse."""
    norms = batch_norms(model)
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.3
    for _ in range(steps):
        model(inputs, training=True)
    for layer, momentum in zip(norms, before, strict=True):
        layer.momentum = momentum
    return model


def trained_residual(keras: ModuleType, seed: int = 0, **options: Any) -> Any:
    """:func:`residual` with seeded weights, statistics of the data, and both signs of gamma."""
    keras.utils.set_random_seed(seed)
    model = randomise_all(residual(keras, **options), seed)
    return fit_statistics(model, residual_data(seed=seed))


def freeze(model: Any, name: str, value: bool = False) -> None:
    """Set ``trainable`` of the layer called ``name``."""
    next(layer for layer in model._flatten_layers() if layer.name == name).trainable = value


def weights_by_name(model: Any) -> dict[str, np.ndarray]:
    """Kernels, biases and statistics under ``layer/variable``, the same for both models.

    Looks into our layers as well, so that a model and its rewritten form have equal keys; phases
    and ranges are left out.
    """
    return {
        f"{layer.name}/{name}": np.asarray(getattr(layer, name))
        for layer in model._flatten_layers()
        if type(layer).__name__ != "QuantizedHost"  # shows the variables of the layer inside it
        for name in _VARIABLES
        if hasattr(getattr(layer, name, None), "assign")
    }


_VARIABLES = (
    "kernel",
    "depthwise_kernel",
    "pointwise_kernel",
    "bias",
    "gamma",
    "beta",
    "moving_mean",
    "moving_variance",
)


def without_dropout(model: Any) -> Any:
    """Set every dropout rate to 0, in place."""
    for layer in model._flatten_layers():
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    return model


def calibrated(model: Any, data: Any, recipe: Any = None) -> Any:
    """``model``, rewritten and calibrated without a progress bar.

    By all that was seen, where the recipe says nothing of ranges: they then follow the batches.
    """
    qat = rewriter.rewrite(model, recipe)
    plain = recipe is None or isinstance(recipe, rewriter.Recipe)
    if plain and recipe is not None:
        plain = not recipe.layers and recipe.calibration is None and recipe.ranges == "observed"
    return rewriter.calibrate(qat, data, progress=False, method="minmax" if plain else None)
