"""The command line: the whole way, command by command, and as processes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tf_keras
from PIL import Image

import commands
import rewriter
from commands import LABELS, error_of, output_of
from rewriter.lowering import folding
from rewriter.reading.load import load_model
from rewriter_command import main
from saved_models import KERASES, X, build, save

folder, converted = commands.folder, commands.converted


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


@pytest.mark.parametrize(("batch", "shape"), [("4", 4), ("any", -1)])
def test_export_of_several_samples_at_a_time(
    batch: str,
    shape: int,
    converted: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "m.tflite"
    output_of(capsys, "export", converted[0], "-o", path, "--batch", batch)
    (source,) = Interpreter(str(path)).get_input_details()
    assert source["shape_signature"][0] == shape
    for wrong in ("0", "-1", "many", "1.5"):
        with pytest.raises(SystemExit) as error:
            main(["export", str(converted[0]), "-o", str(path), "--batch", wrong])
        assert error.value.code == 2
        assert "not a positive whole number" in capsys.readouterr().err


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


def test_verify_with_a_bound_on_the_ratio(
    converted: tuple[Path, Path], folder: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    arguments = ["verify", *converted, "--data", folder / "data.npz"]
    assert "dB" in output_of(capsys, *arguments, "--min-snr", "20")
    found = json.loads(output_of(capsys, *arguments, "--json"))["training"]
    assert found["parts_at"] is None and found["fault"] is None
    assert {"name", "layer", "snr_db", "max_steps"} <= set(found["tensors"][0])
    if found["snr"] is not None:
        message = error_of(capsys, *arguments, "--min-snr", f"{found['snr'] + 1}")
        assert f"{found['weakest']!r} of layer" in message and "dB" in message
    # A kernel on another grid than it was trained on; file and twin agree on it.
    whole = folding.fold_scale
    monkeypatch.setattr(folding, "fold_scale", lambda q, *rest: whole(q // 16 * 16, *rest))
    wrong = folder / "wrong.tflite"
    output_of(capsys, "export", converted[0], "-o", wrong)
    arguments[2] = wrong
    assert "WARNING: the file computes something else" in output_of(
        capsys, *arguments, "--min-identical", "0.99"
    )
    message = error_of(capsys, *arguments, "--min-snr", "-100")
    assert "--min-snr -100 is not met" in message
    assert "layer 'conv'" in message and "tensor 'conv'" in message


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
    arguments = [
        "convert", folder / "keras.keras", "-o", tmp_path / "q.h5", "--recipe", recipe,
        "--calibrate", tmp_path, "--scale", "1/255", "--offset", "-0.5", "--json",
    ]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["calibrated"] is True
    # Three images, each of one colour: a warning of ours is shown, in one line; no one else's is.
    assert shown.err.startswith("rewriter: warning: The moving statistics of ")
    assert shown.err.count("\n") == 1
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


@pytest.mark.parametrize("command", ["inspect", "convert", "export", "verify", "demo"])
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"rewriter {command}" in capsys.readouterr().out.partition("examples:")[2]


# As processes


def command(*args: str) -> subprocess.CompletedProcess[str]:
    code = "import rewriter_command; rewriter_command.run()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_a_process_writes_one_line_and_fails(tmp_path: Path) -> None:
    result = command("inspect", str(tmp_path / "nothing.keras"))
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("rewriter: error: ") and result.stderr.count("\n") == 1


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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"rewriter {rewriter.__version__}" in said
    for version in (f"keras {keras.__version__}", f"numpy {np.__version__}"):
        assert version in said


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert "--min-identical" in script.read_text()
    if shell == "bash":  # completes as a shell would
        line = f"source {script}; COMP_WORDS=(rewriter export --tar); COMP_CWORD=2; "
        line += '_shtab_rewriter 2>/dev/null; echo "${COMPREPLY[@]}"'
        found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["--target"]
