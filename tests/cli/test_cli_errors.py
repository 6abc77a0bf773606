"""Whatever goes wrong on the command line: one line, nothing written, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras

import commands
import rewriter
from commands import error_of, output_of
from folders import listing
from no_integers import ACTIVATION
from rewriter_command import main
from saved_models import X, build, custom_layer, save

folder, converted = commands.folder, commands.converted


def bad_model(kind: str, folder: Path) -> Path:
    """A path from which no model can be loaded."""
    path = folder / f"{kind}.keras"
    if kind == "unknown_layer":
        return save(build(keras, custom_layer(keras)), path)
    if kind == "corrupt":
        content = (folder / "keras.keras").read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return path


BAD_MODELS = {
    "unknown_layer": "unknown class 'Doubling'",
    "corrupt": "damaged or incomplete",
    "missing": "There is no file or folder",
}


@pytest.mark.parametrize("kind", BAD_MODELS)
@pytest.mark.parametrize("command", ["inspect", "convert", "export", "verify"])
def test_bad_models(
    command: str, kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = bad_model(kind, folder)
    more = {
        "inspect": [],
        "convert": ["-o", tmp_path / "q.keras"],
        "export": ["-o", tmp_path / "m.tflite"],
        "verify": [tmp_path / "m.tflite", "--data", folder / "data.npz"],
    }
    message = error_of(capsys, command, model, *more[command])
    assert BAD_MODELS[kind] in message and model.name in message
    assert listing(tmp_path) == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [("wrong.npy", "(6, 6, 3)"), ("nothing.npz", "nothing.npz"), ("cut.npz", "as data")],
)
def test_bad_data(
    data: str,
    message: str,
    converted: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, model = folder / data, folder / "keras.keras"
    output = tmp_path / "q.keras"
    assert message in error_of(capsys, "convert", model, "-o", output, "--calibrate", path)
    assert listing(tmp_path) == {}
    assert message in error_of(capsys, "verify", *converted, "--data", path)


def impossible_outputs(tmp_path: Path) -> list[Path]:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    return [tmp_path / "nowhere" / "q.keras", tmp_path / "file" / "q.keras", tmp_path / "full"]


def test_outputs_that_cannot_be_written(
    converted: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for output in impossible_outputs(tmp_path):
        before = listing(tmp_path)
        assert str(output) in error_of(capsys, "convert", folder / "tf_keras.keras", "-o", output)
        assert str(output) in error_of(capsys, "export", converted[0], "-o", output)
        assert listing(tmp_path) == before


def test_failures_keep_the_old_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, output = tmp_path / "old.tflite", tmp_path / "old.keras"
    file.write_bytes(b"as_iTFL3")
    output.write_bytes(b"PK as it was")
    before = listing(tmp_path)
    uncalibrated = save(rewriter.rewrite(build(tf_keras)), folder / "uncalibrated.keras")
    assert "have not been set" in error_of(capsys, "export", uncalibrated, "-o", file)
    original = folder / "keras.keras"
    assert "Rewrite the model" in error_of(capsys, "export", original, "-o", file)
    arguments = ["convert", original, "-o", output, "--calibrate", folder / "wrong.npy"]
    assert "(6, 6, 3)" in error_of(capsys, *arguments)
    spoiled = X.copy()
    spoiled[3, 2, 1] = np.nan
    np.savez(folder / "spoiled.npz", x=spoiled)
    arguments[-1] = folder / "spoiled.npz"
    assert "is not finite in sample 3" in error_of(capsys, *arguments)
    assert listing(tmp_path) == before


def test_layers_without_an_integer_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(keras, keras.layers.Activation(ACTIVATION, name="no_integers"))
    qat = save(rewriter.rewrite(model, calibration_data=X), tmp_path / "q.keras")
    before = listing(tmp_path)
    arguments = ["export", qat, "-o", tmp_path / "m.tflite"]
    assert "'no_integers'" in error_of(capsys, *arguments)
    assert listing(tmp_path) == before
    report = json.loads(output_of(capsys, *arguments, "--allow-float", "--json"))
    assert report["float_tensors"] != []


def test_outputs_of_the_wrong_kind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, suffix in (("tf_keras", ".tflite"), ("keras", "")):
        output = tmp_path / f"out{suffix}"
        message = error_of(capsys, "convert", folder / f"{name}.keras", "-o", output)
        assert str(output) in message and ".keras" in message
    assert listing(tmp_path) == {}


def test_bad_recipes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"range_momentum": 7}')
    arguments = ["convert", folder / "keras.keras", "-o", tmp_path / "q.keras", "--recipe"]
    assert "range_momentum" in error_of(capsys, *arguments, recipe)
    assert "nothing.json" in error_of(capsys, *arguments, tmp_path / "nothing.json")


def test_verify_of_files_that_are_none(
    converted: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"nothing")
    for name in ("bad.tflite", "missing.tflite"):
        arguments = ["verify", converted[0], tmp_path / name, "--data", folder / "data.npz"]
        assert name in error_of(capsys, *arguments)
        assert name in error_of(capsys, "check", tmp_path / name, "--target", "xnnpack")


def test_verify_of_the_trained_model(
    converted: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The float model in the place of the quantization-aware one."""
    trained, data = folder / "keras.keras", folder / "data.npz"
    message = error_of(capsys, "verify", trained, converted[1], "--data", data)
    assert "is not quantization-aware. Rewrite the model" in message
    assert "--save-model" in message


def test_verify_of_another_models_file(
    converted: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the same inputs and outputs: with other layers, and with other weights."""
    arguments = ["verify", "-q", converted[0], tmp_path / "m.tflite", "--data", folder / "data.npz"]
    qat = rewriter.load_model(converted[0])
    k = keras if isinstance(qat, keras.Model) else tf_keras
    names = {layer.name for layer in qat.layers}

    inputs = k.Input(qat.inputs[0].shape[1:], name="other")
    outputs = k.layers.Flatten(name="flat")(inputs)
    for name in ("one", "two"):
        outputs = k.layers.Dense(qat.outputs[0].shape[-1], name=name)(outputs)
        assert name not in names
    other = rewriter.rewrite(k.Model(inputs, outputs), calibration_data=X)
    rewriter.export_tflite(other, tmp_path / "m.tflite")
    assert "The file is not of this model: it has none of" in error_of(capsys, *arguments)

    qat.set_weights([w * 1.5 if w.ndim > 1 else w for w in qat.get_weights()])
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert main([str(a) for a in arguments]) == 0
    said = capsys.readouterr().err
    assert said.startswith("rewriter: warning: ") and said.count("\n") == 1
    assert "is not what" in said and "export it again" in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["convert", "model"],
        ["verify", "a", "b", "--data", "c", "--min-identical", "2"],
        ["convert", "model", "-o", "q", "--scale", "1/0"],
        ["demo", "--epochs", "0"],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(rewriter.RewriterError):
        main(["inspect", str(tmp_path / "nothing"), "--debug"])
