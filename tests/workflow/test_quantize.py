"""``quantize``: from a trained model to a verified file, and what it does with what it is given."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import builders
import commands
import rewriter
from builders import KERASES, keras_of
from rewriter.checking import interpreter
from rewriter.cli import demo
from rewriter.errors import RewriterError
from rewriter.workflow import fine_tuning


@pytest.fixture(scope="module")
def data():
    return demo.digits()


def small(keras, data):
    """A classifier of digits that has learned a little."""
    keras = builders.fresh(keras)
    layers = keras.layers
    x = image = keras.Input((8, 8, 1), name="image")
    for name in ("a", "b"):
        x = layers.Conv2D(8, 3, use_bias=False, name=name)(x)
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_bn")(x))
    x = layers.Dense(10, activation="softmax", name="digit")(layers.Flatten()(x))
    model = keras.Model(image, x)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy())
    model.fit(data.x_train, data.y_train, epochs=4, batch_size=32, verbose=0)
    return model


@pytest.mark.parametrize("name", KERASES)
def test_the_whole_way(name, data, tmp_path):
    model = small(keras_of(name), data)
    before = model.get_weights()
    file, said = tmp_path / "model.tflite", []
    result = rewriter.quantize(
        model, data.x_train, data.y_train, output=file, test=(data.x_test, data.y_test),
        epochs=2, learning_rate=1e-3, progress=False, say=said.append,
    )  # fmt: skip
    (outputs,) = interpreter.run(file.read_bytes(), [data.x_test])
    accuracy = np.mean(outputs.argmax(-1) == data.y_test)
    assert result.scores["file"] == accuracy >= result.scores["float model"] - 0.02 > 0.8
    assert result.task == "classification" and len(result.epochs) == 3
    assert result.verification.training.fault is None
    assert [line.split(":")[0] for line in said if line.startswith("epoch")] == [
        f"epoch {i} of 2" for i in range(3)
    ]
    json.loads(result.to_json())
    assert "file" in str(result)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_best_epoch_is_taken(data, tmp_path):
    """Training that ruins the model: epoch 0 is the best."""
    model = small(keras_of("keras"), data)
    result = rewriter.quantize(
        model, data.x_train, data.y_train, output=tmp_path / "m.tflite", epochs=2,
        learning_rate=3.0, progress=False,
    )  # fmt: skip
    assert result.epochs[0] > max(result.epochs[1:]) + 0.2
    calibrated = rewriter.quantize(
        model, data.x_train, data.y_train, output=tmp_path / "n.tflite", progress=False
    )
    assert result.scores["file"] == calibrated.scores["file"]


def test_without_labels_the_model_is_imitated(data, tmp_path):
    model = small(keras_of("tf_keras"), data)
    results = [
        rewriter.quantize(
            model, data.x_train, output=tmp_path / "m.tflite", recipe="w4a8-small", epochs=epochs,
            learning_rate=1e-3, progress=False,
        )
        for epochs in (0, 3)
    ]  # fmt: skip
    assert results[1].task is None and not results[1].scores
    assert max(results[1].epochs) > results[1].epochs[0] + 1  # dB, of the file to the model


def test_an_interrupt_keeps_the_best_and_the_rest_goes_on(data, tmp_path, monkeypatch):
    model = small(keras_of("keras"), data)
    options = {
        "output": tmp_path / "m.tflite", "epochs": 3, "progress": False, "learning_rate": 1e-3,
        "resume": tmp_path / "work",
    }  # fmt: skip
    original = fine_tuning.file_score
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(fine_tuning, "file_score", interrupted)
    said = []
    first = rewriter.quantize(model, data.x_train, data.y_train, say=said.append, **options)
    assert len(first.epochs) == 2 and any("interrupted" in line for line in said)
    assert (tmp_path / "work" / "state.json").exists() and (tmp_path / "m.tflite").exists()
    said.clear()
    second = rewriter.quantize(model, data.x_train, data.y_train, say=said.append, **options)
    assert "going on after epoch 1" in said and len(second.epochs) == 2
    assert not (tmp_path / "work").exists()


def test_several_inputs_without_training(tmp_path):
    keras = builders.fresh(keras_of("tf_keras"))
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    x = layers.Concatenate()([layers.Dense(5)(a), layers.Dense(5)(b)])
    model = keras.Model([a, b], layers.BatchNormalization()(x))
    x = {"b": builders.normal(40, 4), "a": builders.normal(40, 6)}
    labels = builders.normal(40, 10)
    result = rewriter.quantize(model, x, labels, output=tmp_path / "m.tflite", progress=False)
    assert result.task == "regression"
    assert result.scores["file"] == pytest.approx(result.scores["float model"], rel=0.05)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.arange(10), {}, "differ in number"),
        (np.full(1257, 12), {}, "classes are 0 to 9"),
        (None, {"recipe": "w3"}, "no recipe called"),
    ],
)
def test_bad_arguments(labels, options, message, data, tmp_path):
    model = rewriter.load_model(demo.MODEL)
    with pytest.raises(RewriterError, match=message):
        rewriter.quantize(
            model, data.x_train, labels, output=tmp_path / "m.tflite", progress=False, **options
        )
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_is_known_before_the_work(data, tmp_path):
    said = []
    with pytest.raises(RewriterError, match="m.bin"):
        rewriter.quantize(
            rewriter.load_model(demo.MODEL),
            data.x_train,
            output=tmp_path / "m.bin",
            say=said.append,
        )
    assert not said


def test_the_command(data, tmp_path, capsys):
    np.savez(tmp_path / "train.npz", x=data.x_train, y=data.y_train)
    np.savez(tmp_path / "test.npz", x=data.x_test, y=data.y_test)
    file, kept = tmp_path / "m.tflite", tmp_path / "qat.keras"
    options = [
        "--labels",
        "y",
        "--test",
        tmp_path / "test.npz",
        "--epochs",
        "1",
        "--save-model",
        kept,
    ]
    arguments = ["quantize", demo.MODEL, "--data", tmp_path / "train.npz", "-o", file, *options]
    said = commands.output_of(capsys, *arguments)
    assert "epoch 1 of 1" in said and "classification, on the test samples" in said
    found = json.loads(commands.output_of(capsys, *arguments, "--json"))
    assert found["scores"]["file"] >= found["scores"]["float model"] - 0.005
    assert rewriter.export_tflite(rewriter.load_model(kept), tmp_path / "n.tflite").bytes > 0
    assert (tmp_path / "n.tflite").read_bytes() == file.read_bytes()


def test_a_folder_of_images(data, tmp_path, capsys):
    for number, (image, label) in enumerate(zip(data.x_train[:200], data.y_train, strict=False)):
        folder = tmp_path / "images" / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.round(image[..., 0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    arguments = ["quantize", demo.MODEL, "--data", tmp_path / "images", "-o", tmp_path / "m.tflite"]
    options = ["--labels", "folder", "--scale", "1/255", "--json"]
    found = json.loads(commands.output_of(capsys, *arguments, *options))
    assert found["task"] == "classification" and found["scores"]["file"] > 0.9
    (tmp_path / "images" / "stray.png").write_bytes(
        (tmp_path / "images" / "digit 0").iterdir().__next__().read_bytes()
    )
    assert "needs every image in a sub-folder" in commands.error_of(capsys, *arguments, *options)
