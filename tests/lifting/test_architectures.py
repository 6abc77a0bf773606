"""Models of both Kerases, written as graphs and lifted: outputs, plans and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from builders import KERASES, keras_of, randomise
from graph_files import WRITERS, write
from rewriter import keras_compat
from rewriter.lifting import lift

FLAVOURS = {f.name: f for f in (keras_compat.TF_KERAS, keras_compat.KERAS3) if f}
_SIDES = {"InceptionResNetV2": 75, "InceptionV3": 75, "Xception": 71}
_NAMES = ("MobileNetV2", "MobileNetV3Small", "ResNet50", "EfficientNetB0", "EfficientNetV2B0",
          "DenseNet121", "InceptionV3", "Xception", "NASNetMobile", "ConvNeXtTiny", "MobileNet",
          "ResNet50V2", "VGG16", "RegNetX002", "ResNetRS50", "InceptionResNetV2", "VGG19",
          "MobileNetV3Large", "EfficientNetV2S", "ResNet101")  # fmt: skip
_CORE = {
    ("MobileNetV2", "keras", "export", "keras"),
    ("MobileNetV2", "tf_keras", "module", "keras"),
}


def _parameters() -> list[Any]:
    every = [
        (name, source, how, target)
        for name in _NAMES
        for source in KERASES
        for how in WRITERS
        for target in FLAVOURS
        if hasattr(keras_of(source).applications, name)
    ]
    return [
        pytest.param(*one, marks=() if one in _CORE else (pytest.mark.wide, pytest.mark.slow))
        for one in every
    ]


def _close(found: Any, wanted: Any, share: float = 1e-5) -> None:
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= share * np.abs(wanted).max()


def _floor(model: Any, x: np.ndarray) -> float:
    """How far the outputs go, in shares of the largest, where weights are off by two roundings.

    Networks of random weights make up to a million times as much of it. The other Keras computes
    normalizations in another order, and may be as far off as that.
    """
    generator, before = np.random.default_rng(0), np.asarray(model(x, training=False))
    weights = model.get_weights()
    model.set_weights([w * (1 + 2e-7 * generator.choice([-1, 1], w.shape)) for w in weights])
    off = np.abs(np.asarray(model(x, training=False)) - before).max() / np.abs(before).max()
    model.set_weights(weights)
    return float(off)


def _counts(model: Any) -> dict[str, int]:
    planned = rewriter.plan(model)
    return {kind: planned.count(kind) for kind in ("fused", "standalone", "refused")}


@pytest.mark.parametrize(("name", "source", "how", "target"), _parameters())
def test_architectures(name: str, source: str, how: str, target: str, tmp_path: Path) -> None:
    side = _SIDES.get(name, 32)
    build = getattr(keras_of(source).applications, name)
    keras_of(source).utils.set_random_seed(0)  # softmax of large numbers makes roundings large
    model = build(weights=None, input_shape=(side, side, 3), classes=10)
    x = np.random.default_rng(0).uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    if target != source:  # as Keras makes it: nothing there makes roundings large
        lifted = lift.lift(write(model, how, tmp_path / "fresh"), FLAVOURS[target])
        _close(lifted(x, training=False), model(x, training=False))
    randomise(model, 0, low=0.3, high=3.0)
    lifted = lift.lift(write(model, how, tmp_path / "model"), FLAVOURS[target])
    share = 1e-5 if target == source else max(1e-5, _floor(model, x))
    _close(lifted(x, training=False), model(x, training=False), share)
    assert _counts(lifted) == _counts(model)
    # The same numbers are trained; a lifted model has no others.
    sizes = [sum(int(np.prod(w.shape)) for w in m.trainable_weights) for m in (lifted, model)]
    assert sizes[0] == sizes[1]


def _small(k: Any) -> Any:
    """With what trains otherwise than it predicts: normalizations, but no dropout."""
    image = k.layers.Input((8, 8, 3), name="image")
    x = k.layers.Conv2D(6, 3, padding="same", use_bias=False)(image)
    x = k.layers.Activation("swish")(k.layers.BatchNormalization()(x))
    y = k.layers.DepthwiseConv2D(3, padding="same")(x)
    x = k.layers.Add()([x, k.layers.ReLU()(k.layers.BatchNormalization()(y))])
    x = k.layers.GlobalAveragePooling2D()(x)
    return k.Model(image, k.layers.Dense(4, activation="softmax")(x))


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("keras", KERASES)
def test_training_follows_the_original(keras: str, how: str, tmp_path: Path) -> None:
    """Twenty steps with the statistics of each batch: the same losses, and statistics after it."""
    k = keras_of(keras)
    model = _small(k)
    randomise(model, 0, low=0.3, high=3.0)
    lifted = lift.lift(write(model, how, tmp_path / "model"), FLAVOURS[keras])
    generator = np.random.default_rng(5)
    x = generator.normal(size=(160, 8, 8, 3)).astype(np.float32)
    y = generator.integers(0, 4, 160)
    losses = []
    for one in (model, lifted):
        one.compile(k.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
        losses.append(
            [float(one.train_on_batch(x[i : i + 8], y[i : i + 8])) for i in range(0, 160, 8)]
        )
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    _close(lifted(x[:8], training=False), model(x[:8], training=False), 1e-3)
