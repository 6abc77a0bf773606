"""What the code in the documentation takes for granted: names, and files beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from PIL import Image

import rewriter
from rewriter.cli import demo

MODULE = "my_data"
_SAMPLES = 160


def names() -> dict[str, Any]:
    """What a page may use without having made it: data, and a trained model of digits."""
    data = demo.digits()
    rng = np.random.default_rng(0)
    return {
        "__name__": "documentation",
        "keras": tf_keras,
        "tf": tf,
        "np": np,
        "rewriter": rewriter,
        "model": rewriter.load_model(demo.MODEL),
        "x_train": data.x_train[:_SAMPLES],
        "y_train": data.y_train[:_SAMPLES],
        "x_test": data.x_test[:_SAMPLES],
        "y_test": data.y_test[:_SAMPLES],
        "samples": data.x_train[:64],
        "test": data.x_test[:64],
        "data": tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train)).batch(32).take(3),
        "optimizer": "sgd",
        "loss": "sparse_categorical_crossentropy",
        "images": rng.uniform(0, 1, (64, 32, 32, 3)).astype(np.float32),
        "classes": rng.integers(0, 10, 64),
        "masks": rng.integers(0, 2, (64, 32, 32, 1)).astype(np.float32),
        "windows": rng.normal(size=(128, 128, 6)).astype(np.float32),
        "gestures": rng.integers(0, 5, 128),
        "photos": rng.uniform(0, 255, (32, 64, 64, 3)).astype(np.float32),
        "kinds": rng.integers(0, 2, 32),
        "build_model": lambda: rewriter.load_model(demo.MODEL),
        "MyKerasLayer": lambda: tf_keras.layers.Activation("tanh"),
    }


def files(folder: Path) -> Path:
    """The files that pages speak of, in ``folder``."""
    data = demo.digits()
    model = rewriter.load_model(demo.MODEL)
    model.save(folder / "trained.keras")
    model.save(folder / "trained.h5")
    for name in ("trained_saved_model", "saved_model"):
        model.save(folder / name)
    x, y = data.x_train[:_SAMPLES], data.y_train[:_SAMPLES]
    np.savez(folder / "train.npz", x=x, y=y)
    np.savez(folder / "test.npz", x=data.x_test[:_SAMPLES], y=data.y_test[:_SAMPLES])
    np.savez(
        folder / "data.npz", x_train=x, y_train=y, x_test=data.x_test[:64], y_test=data.y_test[:64]
    )
    for number, (image, label) in enumerate(zip(x[:40], y[:40], strict=True)):
        place = folder / "images" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * image[..., 0]).astype(np.uint8)).save(place / f"{number}.png")
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    qat.save(folder / "qat.keras")
    rewriter.export_tflite(qat, folder / "model.tflite")
    (folder / "recipe.json").write_text(rewriter.Recipe.named("int8").to_json())
    (folder / "spec.json").write_text(
        json.dumps({"picture": {"type": "image"}, "label": {"type": "int64", "shape": []}})
    )
    _sensors(folder)
    return folder


def _sensors(folder: Path) -> None:
    inputs = keras.Input((128, 6), name="accelerometer")
    x = keras.layers.Conv1D(8, 9, padding="same", use_bias=False, name="conv1")(inputs)
    x = keras.layers.BatchNormalization(name="bn1")(x)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.ReLU()(x))
    keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x)).save(
        folder / "sensors.keras"
    )
    windows = np.random.default_rng(0).normal(size=(64, 128, 6)).astype(np.float32)
    np.savez(folder / "windows.npz", x=windows)
