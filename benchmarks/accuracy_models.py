"""The networks of the accuracy benchmark that we trained ourselves, and how they were trained.

``resnet20`` is that of He et al. (arXiv:1512.03385, section 4.2), ``mobilenetv2`` has its inverted
residuals (arXiv:1801.04381) at a width for images of 32x32, ``mnist`` is a small network with a
batch normalization after each convolution. Their weights are kept beside this file, rounded to
float16: those of the tasks are the rounded ones, so that nobody needs to train again. To do it
nonetheless, over all of the training data with flips and shifts:

    python benchmarks/accuracy_models.py resnet20

What was trained is kept after each epoch in ``--work``, and a run that was cut off goes on there.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tf_keras
from PIL import Image
from tf_keras import layers

SHARED = Path(os.environ.get("REWRITER_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TRAINED = Path(__file__).resolve().parent / "trained"
BATCH = 128


def _normalized(x: Any, activation: str | None = "relu") -> Any:
    x = layers.BatchNormalization()(x)
    if activation == "relu6":
        return layers.ReLU(6.0)(x)
    return x if activation is None else layers.Activation(activation)(x)


def _convolution(x: Any, channels: int, size: int, stride: int = 1) -> Any:
    return layers.Conv2D(
        channels, size, stride, "same", use_bias=False, kernel_initializer="he_normal"
    )(x)


def resnet20() -> Any:
    """Nine blocks of two convolutions each, 0.27 million weights; images (N, 32, 32, 3)."""
    image = x = layers.Input((32, 32, 3))
    x = _normalized(_convolution(x, 16, 3))
    for stage, channels in enumerate((16, 32, 64)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            y = _normalized(_convolution(x, channels, 3, stride))
            y = _normalized(_convolution(y, channels, 3), None)
            if stride > 1:
                x = _normalized(_convolution(x, channels, 1, stride), None)
            x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return tf_keras.Model(image, x, name="resnet20")


# Channels, factor by which a block widens inside, stride.
_BLOCKS = ((16, 1, 1), (24, 4, 2), (24, 4, 1), (48, 4, 2), (48, 4, 1), (48, 4, 1), (112, 4, 2))
_BLOCKS += ((112, 4, 1), (112, 4, 1))


def mobilenetv2() -> Any:
    """Nine inverted residuals; images (N, 32, 32, 3)."""
    image = x = layers.Input((32, 32, 3))
    x = _normalized(_convolution(x, 16, 3), "relu6")
    for channels, factor, stride in _BLOCKS:
        y = x
        if factor > 1:
            y = _normalized(_convolution(y, factor * x.shape[-1], 1), "relu6")
        y = layers.DepthwiseConv2D(3, stride, "same", use_bias=False)(y)
        y = _normalized(_convolution(_normalized(y, "relu6"), channels, 1), None)
        x = layers.Add()([x, y]) if stride == 1 and x.shape[-1] == channels else y
    x = _normalized(_convolution(x, 512, 1), "relu6")
    x = layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    return tf_keras.Model(image, x, name="mobilenetv2")


def mnist() -> Any:
    """Three convolutions and a dense layer; images (N, 28, 28, 1)."""
    image = x = layers.Input((28, 28, 1))
    for channels, stride in ((16, 2), (32, 2), (32, 1)):
        x = _normalized(_convolution(x, channels, 3, stride))
    x = layers.Dense(10, activation="softmax")(layers.Flatten()(layers.MaxPooling2D()(x)))
    return tf_keras.Model(image, x, name="mnist")


MODELS: dict[str, Callable[[], Any]] = {
    "resnet20": resnet20,
    "mobilenetv2": mobilenetv2,
    "mnist": mnist,
}
EPOCHS = {"resnet20": 20, "mobilenetv2": 12, "mnist": 8}


def images(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes (N, height, width, channels) and labels (N,) of ``train`` or ``test``."""
    if name == "mnist":
        data = np.load(SHARED / "datasets/mnist/mnist.npz")
        return data[f"x_{part}"][..., None], data[f"y_{part}"]
    data = np.load(SHARED / "datasets/cifar10_jpeg/cifar10_jpeg.npz")
    files, ends = data[f"jpeg_{part}"].tobytes(), data[f"offsets_{part}"]
    pairs = itertools.pairwise(ends)
    pixels = [np.asarray(Image.open(io.BytesIO(files[a:b]))) for a, b in pairs]
    return np.stack(pixels), data[f"y_{part}"].ravel()


def scaled(pixels: np.ndarray) -> np.ndarray:
    """What the networks take: float32 in [-1, 1]."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def trained(name: str) -> Any:
    """The network with the weights beside this file."""
    model = MODELS[name]()
    data = np.load(TRAINED / f"{name}.npz")
    model.set_weights([data[str(i)].astype(np.float32) for i in range(len(data))])
    return model


class _Batches(tf_keras.utils.Sequence):  # type: ignore[misc]
    """An epoch in an order of its own; each image shifted by up to 4 pixels, and half flipped."""

    def __init__(self, x: np.ndarray, y: np.ndarray, epoch: int, flips: bool):
        self.random = np.random.default_rng(epoch)
        self.order = self.random.permutation(len(x))
        self.shift = self.random.integers(0, 9, (len(x), 2))
        self.flip = self.random.random(len(x)) < (0.5 if flips else 0)
        margin = ((0, 0), (4, 4), (4, 4), (0, 0))
        self.x, self.y, self.size = np.pad(x, margin), y, x.shape[1]

    def __len__(self) -> int:
        return len(self.y) // BATCH

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        across = np.arange(self.size)
        rows = self.shift[chosen, 0, None] + across
        columns = self.shift[chosen, 1, None] + across
        flip = self.flip[chosen, None]
        columns = np.where(flip, columns[:, ::-1], columns)
        pixels = self.x[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        return scaled(pixels), self.y[chosen]


def train(name: str, epochs: int, work: Path) -> None:
    """Train, from the last epoch in ``work``, and keep the weights beside this file."""
    work.mkdir(parents=True, exist_ok=True)
    x, y = images(name, "train")
    kept = sorted(work.glob(f"{name}-*.keras"))
    first = int(kept[-1].stem.split("-")[1]) if kept else 0
    tf_keras.utils.set_random_seed(1)
    if kept:
        model = tf_keras.models.load_model(kept[-1])
    else:
        model = MODELS[name]()
        rate = tf_keras.optimizers.schedules.CosineDecay(
            0.0, epochs * (len(x) // BATCH) - 200, warmup_target=0.1, warmup_steps=200
        )
        optimizer = tf_keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    for epoch in range(first, epochs):
        start = time.time()
        batches = _Batches(x, y, epoch, flips=name != "mnist")
        logs = model.fit(batches, epochs=epoch + 1, initial_epoch=epoch, verbose=0).history
        values = ", ".join(f"{key} {value[-1]:.4f}" for key, value in logs.items())
        print(f"epoch {epoch + 1}/{epochs}: {values}, {time.time() - start:.0f} s", flush=True)
        model.save(work / f"{name}-{epoch + 1:03d}.keras")
    TRAINED.mkdir(exist_ok=True)
    weights = {str(i): w.astype(np.float16) for i, w in enumerate(model.get_weights())}
    np.savez_compressed(TRAINED / f"{name}.npz", **weights)
    x, y = images(name, "test")
    decided = trained(name).predict(scaled(x), verbose=0, batch_size=256).argmax(-1)
    print(f"{name}: {100 * np.mean(decided == y):.2f} % of {len(y)}")


def main() -> None:
    """Train one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(MODELS))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--work", type=Path, default=Path("build/trained"))
    args = parser.parse_args()
    train(args.model, args.epochs or EPOCHS[args.model], args.work)


if __name__ == "__main__":
    main()
