"""Train the model that ``rewriter demo`` starts from, and save it where the package ships it.

    python samples/train_demo_model.py

Takes about a minute. The test images of ``rewriter.cli.demo.digits`` are not seen in training.
"""

from __future__ import annotations

import sys

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers

from rewriter.cli import demo
from rewriter.files.replacing import replacing


def build() -> tf_keras.Model:
    """A small residual network with depthwise convolutions; one BN follows an Add."""

    def norm(x: tf.Tensor, name: str) -> tf.Tensor:
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))

    def conv(x: tf.Tensor, filters: int, size: int, name: str) -> tf.Tensor:
        return layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)

    image = layers.Input((8, 8, 1), name="image")
    x = norm(conv(image, 16, 3, "stem"), "stem")
    x = norm(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="dw1")(x), "dw1")
    x = shortcut = norm(conv(x, 32, 1, "pw1"), "pw1")
    x = norm(conv(x, 32, 3, "res1"), "res1")
    x = layers.BatchNormalization(name="res2_bn")(conv(x, 32, 3, "res2"))
    x = norm(layers.Add(name="add")([x, shortcut]), "add")
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="dw2")(x)
    x = norm(conv(norm(x, "dw2"), 64, 1, "pw2"), "pw2")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    scores = layers.Dense(10, activation="softmax", name="digit")(x)
    return tf_keras.Model(image, scores, name="digits")


def shifted(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each image moved by up to one pixel, as augmentation."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = generator.integers(0, 3, (len(images), 2))
    return np.stack([p[r : r + 8, c : c + 8] for p, (r, c) in zip(padded, corners, strict=True)])


def main() -> None:
    epochs, batch = 60, 32
    tf_keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    data = demo.digits()
    model = build()
    steps = epochs * -(-len(data.x_train) // batch)
    rate = tf_keras.optimizers.schedules.CosineDecay(0.003, steps)
    model.compile(
        tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    for _ in range(epochs):
        model.fit(shifted(data.x_train, generator), data.y_train, batch_size=batch, verbose=0)
    _, accuracy = model.evaluate(data.x_test, data.y_test, verbose=0)
    sys.stdout.write(f"{model.count_params():,} parameters, test accuracy {accuracy:.4f}\n")
    with replacing(demo.MODEL) as path:
        # Without the traced functions and the optimizer: the layers' configurations are enough.
        model.save(path, save_format="tf", save_traces=False, include_optimizer=False)


if __name__ == "__main__":
    main()
