"""Containers that declare what they cannot hold, and names in files that are harmless."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edited_files import plain
from rewriter import keras_compat
from rewriter.errors import LoadError
from rewriter.keras_compat import trust
from rewriter.reading.load import load_model

# Containers


def test_a_zip_bomb(tmp_path: Path) -> None:
    path = plain(keras, tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("assets/zeros", bytes(200 << 20))
    with pytest.raises(LoadError, match=r"m\.keras.*declares 209,\d+,\d+ bytes"):
        load_model(path)


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "config.json"])
def test_entries_outside_of_the_archive(name: str, tmp_path: Path) -> None:
    path = plain(tf_keras, tmp_path / "m.keras")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, "x")
    with pytest.raises(LoadError, match="an entry of the name"):
        load_model(path)


def _huge(file: h5py.File) -> None:
    file.create_dataset("huge", (1 << 40,), "float32", chunks=(1024,))


def _elsewhere(file: h5py.File) -> None:
    file.create_dataset("other", (4,), "uint8", external=[("/etc/hostname", 0, 4)])


def _linked(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("/etc/hostname", "x")


HDF5 = {_huge: "declares", _elsewhere: "another file", _linked: "another file"}


@pytest.mark.parametrize("change", HDF5, ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_hdf5_that_declares_more(change: Any, suffix: str, tmp_path: Path) -> None:
    path = plain(keras, tmp_path / f"m{suffix}")
    if suffix == ".h5":
        with h5py.File(path, "a") as file:
            change(file)
    else:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        (tmp_path / "w.h5").write_bytes(parts["model.weights.h5"])
        with h5py.File(tmp_path / "w.h5", "a") as file:
            change(file)
        parts["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
    with pytest.raises(LoadError, match=HDF5[change]):
        load_model(path)


# What is harmless still loads


def test_functions_of_tensorflow_load(tmp_path: Path) -> None:
    image = tf_keras.layers.Input((4, 4, 3))
    x = tf.image.resize(tf.nn.relu6(image * 2.0 - 1.0), (8, 8))[:, 1:, :, :2]
    x = (
        tf_keras.backend.mean(x, axis=1)
        + tf.reduce_mean(x, 1)
        + tf.random.normal(tf.shape(x[:, 0]))
    )
    model = tf_keras.Model(image, tf.concat([x, tf.ones_like(x)], -1))
    for suffix in (".keras", ".h5", ""):
        model.save(tmp_path / f"m{suffix}")
        loaded = load_model(tmp_path / f"m{suffix}")
        assert loaded.output_shape == model.output_shape


def test_tables_load(tmp_path: Path) -> None:
    text = tf_keras.layers.Input((1,), dtype="string")
    numbers = tf_keras.layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot")(text)
    model = tf_keras.Model(text, tf_keras.layers.Dense(2)(numbers))
    for suffix in (".keras", ""):
        model.save(tmp_path / f"m{suffix}")
        loaded = load_model(tmp_path / f"m{suffix}")
        x = tf.constant([["b"], ["c"]])
        np.testing.assert_array_equal(loaded(x), model(x))


def test_functions_of_keras_load(tmp_path: Path) -> None:
    """By name, without the code of a lambda."""
    image = keras.layers.Input((3,))
    x = keras.layers.Lambda(keras.activations.tanh, output_shape=(3,))(image)
    keras.Model(image, x).save(tmp_path / "m.keras")
    assert load_model(tmp_path / "m.keras").layers[-1].function is keras.activations.tanh
    for module in ("keras.activations", "keras.ops"):  # two functions of one name
        named = {"module": module, "class_name": "function", "config": "tanh"}
        trust.check({**named, "registered_name": "tanh"}, keras_compat.KERAS3, "a test")


def test_stock_objects_load(tmp_path: Path) -> None:
    """Every kind of object that a layer's configuration may hold."""
    for k in (tf_keras, keras):
        image = k.layers.Input((6, 6, 3))
        x = k.layers.Conv2D(
            4, 3, activation=k.layers.LeakyReLU(), kernel_initializer=k.initializers.HeNormal(),
            kernel_regularizer=k.regularizers.L1L2(0.1, 0.1), bias_regularizer="l2",
            kernel_constraint=k.constraints.MaxNorm(2), dtype="mixed_float16",
        )(image)  # fmt: skip
        x = k.layers.TimeDistributed(k.layers.Dense(3, activation="softmax"))(x)
        x = k.layers.Reshape((-1, 3))(x)
        x = k.layers.Bidirectional(k.layers.LSTM(2, recurrent_activation="hard_sigmoid"))(x)
        inner = k.Sequential([k.layers.Input((4,)), k.layers.Dense(2), k.layers.Activation("gelu")])
        inner.compile("adam", k.losses.MeanSquaredError(), metrics=["mae", k.metrics.Accuracy()])
        model = k.Model(image, inner(x))
        model.compile("sgd", "mse")
        for suffix in (".keras", ".h5", "" if k is tf_keras else ".h5"):
            model.save(tmp_path / f"m{suffix}")
            assert load_model(tmp_path / f"m{suffix}").count_params() == model.count_params()
