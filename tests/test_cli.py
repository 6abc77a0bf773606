"""The command line: the whole way, and one clear line for whatever goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tf_keras
from PIL import Image

import rewriter
from rewriter.cli import main
from rewriter.load import load_model
from saved_models import KERASES, X, build, save
from test_files import listing
from test_load import custom_layer

LABELS = np.arange(len(X)) % 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each Keras: a trained model ``KERAS.keras``; and data for them."""
    folder = tmp_path_factory.mktemp("cli")
    for name, k in KERASES.items():
        save(build(k), folder / f"{name}.keras")
    np.savez(folder / "data.npz", x=X, y=LABELS)
    np.save(folder / "wrong.npy", X[..., :2])
    (folder / "cut.npz").write_bytes((folder / "data.npz").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module", params=list(KERASES))
def converted(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Path]:
    """A calibrated model and its file, both made by the commands."""
    name = request.param
    qat, file = folder / f"{name}_qat.keras", folder / f"{name}.tflite"
    data = str(folder / "data.npz")
    assert main(["convert", f"{folder}/{name}.keras", "-o", str(qat), "--calibrate", data]) == 0
    assert main(["export", str(qat), "-o", str(file)]) == 0
    return qat, file


def output_of(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """The stdout of a command that succeeds and keeps stderr clean."""
    assert main([str(a) for a in args]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def error_of(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert main([str(a) for a in args]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("rewriter: error: ")
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


@pytest.mark.parametrize("name", KERASES)
def test_inspect(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / f"{name}.keras"
    assert "bn" in output_of(capsys, "inspect", path)
    plan = json.loads(output_of(capsys, "inspect", path, "--json"))
    assert plan == json.loads(rewriter.plan(load_model(path)).to_json())
    assert plan["keras"] == name and plan["entries"][0]["action"] == "fused"


def test_convert_carries_the_model_over(converted: tuple[Path, Path]) -> None:
    qat = load_model(converted[0])
    assert rewriter.get_phase(qat) == "quantize"
    rewriter.set_phase(qat, "float")
    original = load_model(converted[0].with_name(converted[0].name.replace("_qat", "")))
    np.testing.assert_allclose(
        qat.predict(X, verbose=0), original.predict(X, verbose=0), rtol=1e-5, atol=1e-5
    )


def test_export_is_integer_only(
    converted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(
        output_of(capsys, "export", converted[0], "-o", tmp_path / "m.tflite", "--json")
    )
    assert report["float_tensors"] == []
    assert report["bytes"] == (tmp_path / "m.tflite").stat().st_size
    assert report["ops"]["CONV_2D"] == 1
    # The file's own words, read by LiteRT and not by this package.
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    assert interpreter.get_input_details()[0]["dtype"] == np.int8
    assert interpreter.get_output_details()[0]["dtype"] == np.int8
    output_of(capsys, "export", converted[0], "-o", tmp_path / "f.tflite", "--float-io")
    assert Interpreter(str(tmp_path / "f.tflite")).get_input_details()[0]["dtype"] == np.float32


def test_verify(
    converted: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", *converted, "--data", folder / "data.npz"]
    assert "identical" in output_of(capsys, *arguments, "--min-identical", "0.99")
    found = json.loads(output_of(capsys, *arguments, "--labels", "y", "--json"))
    assert found["samples"] == len(X) and found["kernels"] == "xnnpack"
    scores = load_model(converted[0]).predict(X, verbose=0)
    assert found["accuracy"]["model"] == pytest.approx(np.mean(scores.argmax(-1) == LABELS))
    found = json.loads(
        output_of(capsys, *arguments, "--samples", "3", "--kernels", "reference", "--json")
    )
    assert found["samples"] == 3 and found["kernels"] == "reference"


def test_verify_of_another_models_file_fails(
    converted: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build(tf_keras)
    other.set_weights([w * 1.5 for w in other.get_weights()])
    qat = save(rewriter.rewrite(other, calibration_data=X), folder / "other.keras")
    arguments = ["verify", qat, converted[1], "--data", folder / "data.npz"]
    message = error_of(capsys, *arguments, "--min-identical", "0.999")
    assert "--min-identical 0.999 is not met" in message


@pytest.mark.parametrize("suffix", ["", ".h5", ".keras"])
def test_convert_writes_every_format(suffix: str, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / f"qat{suffix}"
    assert main(["convert", f"{folder}/tf_keras.keras", "-o", str(output)]) == 0
    assert rewriter.get_phase(load_model(output)) == "float"
    assert os.listdir(tmp_path) == [output.name]


def test_convert_with_a_recipe_and_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        Image.new("RGB", (9, 9), (80 * i, 10, 10)).save(tmp_path / f"{i}.png")
    recipe = tmp_path / "recipe.json"
    recipe.write_text(rewriter.Recipe(range_momentum=0.5).to_json())
    result = output_of(
        capsys, "convert", folder / "keras.keras", "-o", tmp_path / "q.h5", "--recipe", recipe,
        "--calibrate", tmp_path, "--scale", "1/255", "--offset", "-0.5", "--json",
    )  # fmt: skip
    assert json.loads(result)["calibrated"] is True
    assert rewriter.get_phase(load_model(tmp_path / "q.h5")) == "quantize"


def test_import_registers_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('users')\n"
        "class UsersLayer(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return x\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.path.insert(0, str(tmp_path))
    module = importlib.import_module("users_layers")
    x = keras.Input((4,))
    keras.Model(x, module.UsersLayer(name="mine")(x)).save("m.keras")
    # As in a new process, in which nothing has imported the module.
    sys.path.remove(str(tmp_path))
    del sys.modules["users_layers"], keras.saving.get_custom_objects()["users>UsersLayer"]
    assert "'UsersLayer'" in error_of(capsys, "inspect", "m.keras")
    output_of(capsys, "inspect", "m.keras", "--import", "users_layers")
    assert "no_such_module" in error_of(capsys, "inspect", "m.keras", "--import", "no_such_module")


# Whatever goes wrong: one line, nothing written, nothing lost


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
    output = tmp_path / "old"
    output.write_text("as it was")
    uncalibrated = save(rewriter.rewrite(build(tf_keras)), folder / "uncalibrated.keras")
    error_of(capsys, "export", uncalibrated, "-o", output)
    original = folder / "keras.keras"
    error_of(capsys, "export", original, "-o", output)
    error_of(capsys, "convert", original, "-o", output, "--calibrate", folder / "wrong.npy")
    assert listing(tmp_path) == {"old": b"as it was"}


def test_layers_without_an_integer_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(keras, keras.layers.Activation("softplus", name="no_integers"))
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
        error_of(capsys, *arguments)


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


@pytest.mark.parametrize("command", ["inspect", "convert", "export", "verify", "demo"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"rewriter {command}" in capsys.readouterr().out.partition("examples:")[2]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(rewriter.RewriterError):
        main(["inspect", str(tmp_path / "nothing"), "--debug"])


# As processes


def command(*args: str) -> subprocess.CompletedProcess[str]:
    code = "import rewriter_command; rewriter_command.run()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_process_writes_one_line_and_fails(tmp_path: Path) -> None:
    result = command("inspect", str(tmp_path / "nothing.keras"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("rewriter: error: ") and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_process_writes_json_only(converted: tuple[Path, Path], folder: Path) -> None:
    result = command("verify", *map(str, converted), "--data", f"{folder}/data.npz", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["samples"] == len(X)


def test_help_does_not_wait_for_tensorflow() -> None:
    code = (
        "import sys, rewriter_command\n"
        "try: rewriter_command.main(['verify', '--help'])\n"
        "except SystemExit: sys.exit('tensorflow' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert result.returncode == 0, result.stderr
