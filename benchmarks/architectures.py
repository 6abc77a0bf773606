"""The architectures of ``tf_keras.applications`` and ``keras.applications``, with live signals.

Built without pretrained weights. The statistics of their batch normalizations come from data and
are then perturbed: identity statistics would prove nothing, and statistics drawn without regard
to the data collapse the signal.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

# family -> members, smallest first; `numbered` writes the names of a series.


def numbered(prefix: str, numbers: str) -> tuple[str, ...]:
    return tuple(prefix + number for number in numbers.split())


_REGNET = "002 004 006 008 016 032 040 064 080 120 160 320"
FAMILIES: dict[str, tuple[str, ...]] = {
    "mobilenet": ("MobileNet",),
    "mobilenet_v2": ("MobileNetV2",),
    "mobilenet_v3": ("MobileNetV3Small", "MobileNetV3Large"),
    "vgg": ("VGG16", "VGG19"),
    "regnet_x": numbered("RegNetX", _REGNET),
    "regnet_y": numbered("RegNetY", _REGNET),
    "resnet": ("ResNet50", "ResNet101", "ResNet152"),
    "resnet_v2": ("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    "xception": ("Xception",),
    "inception_v3": ("InceptionV3",),
    "convnext": numbered("ConvNeXt", "Tiny Small Base Large XLarge"),
    "efficientnet": numbered("EfficientNetB", "0 1 2 3 4 5 6 7"),
    "efficientnet_v2": numbered("EfficientNetV2", "B0 B1 B2 B3 S M L"),
    "densenet": numbered("DenseNet", "121 169 201"),
    "resnet_rs": numbered("ResNetRS", "50 101 152 200 270 350 420"),
    "inception_resnet_v2": ("InceptionResNetV2",),
    "nasnet": ("NASNetMobile", "NASNetLarge"),
}
FAMILY = {name: family for family, members in FAMILIES.items() for name in members}

# Those that take longest, in that order; everything else goes before them.
LARGEST = (
    "ResNetRS200",
    "EfficientNetB5",
    "EfficientNetV2M",
    "ResNetRS270",
    "EfficientNetB6",
    "EfficientNetV2L",
    "ResNetRS350",
    "EfficientNetB7",
    "NASNetLarge",
    "ResNetRS420",
)
_MINIMUM = {"xception": 71, "inception_v3": 75, "inception_resnet_v2": 75}
_USUAL = 64  # the deepest maps are 2x2, so that padding and strides mean something there


def available(keras: Any) -> list[str]:
    """The architectures that this Keras has, smallest of each family first, largest last."""
    names = [name for name in dir(keras.applications) if re.match(r"[A-Z]", name)]
    unknown = sorted(set(names) - set(FAMILY))
    if unknown:
        raise LookupError(f"These architectures of {keras.__name__} have no row: {unknown}.")

    def order(name: str) -> tuple[int, int]:
        late = LARGEST.index(name) + 1 if name in LARGEST else 0
        return late, FAMILIES[FAMILY[name]].index(name)

    rows = [name for members in FAMILIES.values() for name in members if name in names]
    return sorted(rows, key=order)


def side(name: str, *, smallest: bool = False) -> int:
    """Height and width of the input: the smallest allowed one, or 64 where that is allowed."""
    minimum = _MINIMUM.get(FAMILY[name], 32)
    return minimum if smallest else max(minimum, _USUAL)


def build(keras: Any, name: str, *, smallest: bool = False, **options: Any) -> Any:
    """A model of random weights with ten classes; its batch normalizations are as initialised."""
    keras.utils.set_random_seed(1)
    size = side(name, smallest=smallest)
    options = {"weights": None, "classes": 10, "input_shape": (size, size, 3), **options}
    return getattr(keras.applications, name)(**options)


def images(name: str, count: int, seed: int, *, smallest: bool = False) -> np.ndarray:
    """Smooth random images (count, side, side, 3), float32 in 0..255."""
    return smooth_images(count, side(name, smallest=smallest), seed)


def smooth_images(count: int, size: int, seed: int) -> np.ndarray:
    """Smooth random images (count, size, size, 3), float32 in 0..255."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, size // 8 + 1, size // 8 + 1, 3))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    fine = fine + 0.5 * rng.normal(size=fine.shape) + rng.normal(size=(count, 1, 1, 3))
    return np.clip(128 + 40 * fine, 0, 255).astype(np.float32)


def set_statistics(model: Any, data: np.ndarray, seed: int = 0) -> int:
    """Random gammas and betas, and perturbed statistics of ``data``; how many layers.

    Layer by layer in one inference pass: every normalization gets the statistics of what really
    reaches it, perturbed, and hands on what it makes of it. Otherwise the perturbations of a
    hundred layers add up to a chaotic network, in which rounding errors grow a thousandfold.
    """
    rng = np.random.default_rng(seed)
    norms = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]
    for layer in norms:
        layer.call = _calibrating(layer, rng)
    try:
        if norms:
            model(data, training=False)
    finally:
        for layer in norms:
            del layer.call
    return len(norms)


def _calibrating(layer: Any, rng: np.random.Generator) -> Any:
    """The call of a batch normalization (channels last) that sets its variables first."""
    stock = layer.call

    def call(inputs: Any, **kwargs: Any) -> Any:
        values = np.asarray(inputs, np.float64)
        axes = tuple(range(values.ndim - 1))
        mean, variance = values.mean(axes), values.var(axes)
        size = mean.shape
        layer.moving_mean.assign(mean + rng.normal(0, 0.1, size) * np.sqrt(variance))
        layer.moving_variance.assign(variance * np.exp(rng.uniform(-0.3, 0.3, size)))
        if layer.gamma is not None:
            layer.gamma.assign(rng.uniform(0.6, 1.4, size) * rng.choice([1, 1, 1, -1], size))
        if layer.beta is not None:
            layer.beta.assign(rng.normal(0, 0.3, size))
        return stock(inputs, **kwargs)

    return call


def signal(outputs: np.ndarray) -> float:
    """How much outputs (samples, classes) differ between samples, to the largest magnitude."""
    magnitude = float(np.abs(outputs).max())
    return float(outputs.std(axis=0).max() / magnitude) if magnitude else 0.0
