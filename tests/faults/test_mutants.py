"""Damaged files of every format: an error of ours or success, whatever the bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tf_keras

import commands
import mutants
import rewriter
from commands import error_of
from rewriter.checking import hdf5, probe
from rewriter.errors import LoadError, RecipeError, VerificationError
from saved_models import build

folder, converted = commands.folder, commands.converted


def test_mutants() -> None:
    """``REWRITER_MUTANTS=10000`` for more of them."""
    count = int(os.environ.get("REWRITER_MUTANTS", "100"))
    assert mutants.try_all(count, seed=7) == []


@pytest.mark.parametrize(
    "text",
    [
        '{"kernel_quantizer": {"class": "rewriter.quantizers.PerTensorQuantizer", "config": "x"}}',
        '{"batch_norm_pipeline": {"gamma": null, "phases": 5}}',
        '{"batch_norm_pipeline": {"gamma": 7}}',
        '{"batch_norm_pipeline": {"layers": 5}}',
        '{"kernel_quantizer": 3}',
        '{"range_momentum": 1e999}',
        "[]",
        "{",
        "\ud800",
    ],
)
def test_recipes(text: str) -> None:
    with pytest.raises(RecipeError) as info:
        rewriter.Recipe.from_json(text)
    assert "\n" not in str(info.value)


def _with(path: Path, target: Path, name: str, change) -> Path:
    """A ``.keras`` file with one JSON entry changed."""
    import zipfile

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            part = old.read(entry)
            new.writestr(entry, json.dumps(change(json.loads(part))) if entry == name else part)
    return target


def _list_class(config):
    config["config"]["layers"][1]["class_name"] = ["Conv2D"]
    return config


def _other_version(metadata):
    return {**metadata, "keras_version": 3}


def _layer(config):
    return config["config"]["layers"][1]


@pytest.mark.parametrize("kind", ["tf_keras", "keras"])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metadata.json", _other_version),
        ("metadata.json", lambda metadata: []),
        ("config.json", _list_class),
        ("config.json", lambda config: 7),
        ("config.json", lambda config: {"class_name": "Conv2D"}),
    ],
)
def test_models(folder, tmp_path, kind, name, change) -> None:
    path = _with(folder / f"{kind}.keras", tmp_path / "m.keras", name, change)
    with pytest.raises(LoadError) as info:
        rewriter.load_model(path)
    assert "m.keras" in str(info.value) and "\n" not in str(info.value)


def test_a_file_whose_root_is_no_model(folder, tmp_path) -> None:
    path = _with(folder / "keras.keras", tmp_path / "m.keras", "config.json", _layer)
    with pytest.raises(LoadError, match=r"what it holds is no model.*Conv2D|cannot load it"):
        rewriter.load_model(path)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes on it, SIGSEGV"),
        ("import time; time.sleep(60)", "does not finish in 1 s"),
    ],
)
def test_what_crashes_or_hangs_is_one_line(
    folder, tmp_path, capsys, monkeypatch, program, message
) -> None:
    """HDF5 is read in a child process first, which has a time limit."""
    script = tmp_path / "script.py"
    script.write_text(program)
    monkeypatch.setattr(hdf5, "__file__", str(script))
    monkeypatch.setattr(probe, "PATIENCE_S", 1.0)
    for command in (["inspect"], ["export", "-o", tmp_path / "m.tflite"]):
        text = error_of(capsys, command[0], folder / "keras.keras", *command[1:])
        assert message in text and "keras.keras" in text
    assert not (tmp_path / "m.tflite").exists()


def test_the_program_reads_all_of_a_file(folder, tmp_path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["text"] = "x"
        file["a/scalar"] = 3.0
        file["a/empty"] = h5py.Empty("f")
        file["b"] = list(range(100))
        hdf5.read(file, 1000)
    hdf5.main(str(folder / "keras.keras"))
    probe.check(tmp_path / "m.h5")
    probe.check(tmp_path / "missing.h5")


def test_tflite(converted, folder, tmp_path, capsys) -> None:
    content = bytearray(converted[1].read_bytes())
    for place in (0, 9, 40, 60, len(content) // 2):
        damaged = bytearray(content)
        damaged[place : place + 8] = b"\xff" * 8
        (tmp_path / "bad.tflite").write_bytes(damaged)
        arguments = [converted[0], tmp_path / "bad.tflite", "--data", folder / "data.npz"]
        if place < 60:
            error_of(capsys, "verify", *arguments)
    with pytest.raises(VerificationError):
        rewriter.checking.reading.read(bytes(content[:200]))


def _wired(change):
    def changed(text: str) -> str:
        config = json.loads(text)
        change({layer["config"]["name"]: layer for layer in config["config"]["layers"]})
        return json.dumps(config)

    return changed


def _no_call(layers):
    layers["relu"]["inbound_nodes"][0][0][1] = 2**31


def _circle(layers):
    layers["conv"]["inbound_nodes"][0][0][0] = "relu"


def _true(layers):
    layers["relu"]["inbound_nodes"][0][0][1] = True


def _no_number(layers):
    layers["relu"]["inbound_nodes"][0][0][1] = None


def _text(layers):
    layers["relu"]["inbound_nodes"][0][0][1] = "0"


def _fraction(layers):
    layers["relu"]["inbound_nodes"][0][0][1] = 0.5


def _text_of_calls(layers):
    layers["relu"]["inbound_nodes"] = ""


def _mapping_of_calls(layers):
    layers["relu"]["inbound_nodes"] = {}


def _left_out(layers):
    del layers["relu"]["inbound_nodes"][0][0][1]


def _negative(layers):
    layers["relu"]["inbound_nodes"][0][0][1] = -2


def _second_output(layers):
    layers["relu"]["inbound_nodes"][0][0][2] = 1


def _not_called(layers):
    layers["conv"]["inbound_nodes"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_call, "reads call 2147483648"),
        (_circle, "its own output"),
        (_true, "reads call 1 of"),
        (_no_number, "a call of 'bn' that has no number"),
        (_text, "a call of 'bn' that has no number"),
        (_fraction, "a call of 'bn' that has no number"),
        (_left_out, "a call of 'bn' that has no number"),
        (_text_of_calls, "entry 3 of the layers has no list of calls"),
        (_mapping_of_calls, "entry 3 of the layers has no list of calls"),
        (_negative, "reads call -2 of"),
        (_second_output, "reads output 1 of 'bn', which has one"),
        (_not_called, "'bn' reads call 0 of 'conv', which there is not"),
    ],
)
def test_what_keras_would_wait_for_for_ever(tmp_path, change, message) -> None:
    path = tmp_path / "m.h5"
    build(tf_keras).save(path)
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = _wired(change)(file.attrs["model_config"])
    with pytest.raises(LoadError, match=message):
        rewriter.load_model(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_call_with_which_a_model_was_made(tmp_path, suffix) -> None:
    """tf_keras counts it, so that what a layer reads of a model within a model is call 1."""
    layers = tf_keras.layers
    inner_input = tf_keras.Input((4,))
    inner = tf_keras.Model(inner_input, layers.Dense(4)(inner_input), name="inner")
    inputs = tf_keras.Input((4,))
    path = tmp_path / f"m{suffix}"
    tf_keras.Model(inputs, layers.ReLU(name="relu")(inner(inputs))).save(path)
    if suffix == ".h5":
        with h5py.File(path, "a") as file:
            text = file.attrs["model_config"]
            assert json.loads(text)["config"]["layers"][2]["inbound_nodes"][0][0][1] == 1
            file.attrs["model_config"] = text.replace('["inner", 1', '["inner", 0')
    else:

        def change(config):
            config["config"]["layers"][2]["inbound_nodes"][0][0][1] = 0
            return config

        path = _with(path, tmp_path / "changed.keras", "config.json", change)
    with pytest.raises(LoadError, match="'relu' reads call 0 of 'inner', which there is not"):
        rewriter.load_model(path)


@pytest.mark.parametrize("k", [tf_keras, keras])
def test_nested_and_shared_models_are_wired(tmp_path, k) -> None:
    layers = k.layers
    inner_input = k.Input((4,))
    inner = k.Model(inner_input, layers.Dense(4)(layers.Dense(4)(inner_input)), name="inner")
    line = k.Sequential([layers.Dense(4), layers.Dense(4)], name="line")
    inputs = k.Input((4,))
    x = layers.Add()([inner(inputs), inner(line(inputs)), line(inner(inputs))])
    shared = layers.Dense(4)
    x = layers.Concatenate()([shared(x), shared(shared(x)), layers.ReLU()(x) + inputs])
    model = k.Model({"a": inputs}, {"b": x})
    outer = k.Input((4,))
    model = k.Model(outer, model({"a": outer}))
    # Keras 3 itself does not read such .h5 files.
    for suffix in (".keras", ".h5") if k is tf_keras else (".keras",):
        model.save(tmp_path / f"m{suffix}")
        assert rewriter.load_model(tmp_path / f"m{suffix}").count_params() == model.count_params()


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("k", [tf_keras, keras])
def test_a_model_that_reads_its_own_output(tmp_path, k, between) -> None:
    """tf_keras counts the calls of a model within a model from 1."""
    layers = k.layers
    inner_input = k.Input((4,))
    inner = k.Model(inner_input, layers.Dense(4)(layers.Dense(4)(inner_input)), name="inner")
    inputs = k.Input((4,))
    x = inner(inputs)
    model = k.Model(inputs, inner(layers.ReLU()(x) if between else x))
    data = np.ones((2, 4), np.float32)
    for suffix in (".keras", ".h5") if k is tf_keras else (".keras",):
        model.save(tmp_path / f"m{suffix}")
        loaded = rewriter.load_model(tmp_path / f"m{suffix}")
        np.testing.assert_array_equal(loaded(data), model(data))
