"""The demo runs the whole way, and its model is good."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rewriter.cli import demo
from rewriter_command import main


def test_the_split_is_fixed_and_has_no_overlap() -> None:
    data = demo.digits()
    assert (len(data.x_train), len(data.x_test)) == (1257, 540)
    assert data.y_test[:8].tolist() == [1, 4, 5, 6, 9, 1, 2, 2]
    train = {image.tobytes() for image in data.x_train}
    assert not any(image.tobytes() in train for image in data.x_test)


def test_the_shipped_model_is_small() -> None:
    assert sum(f.stat().st_size for f in demo.MODEL.rglob("*") if f.is_file()) < 300_000


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "folder"
    assert main(["demo", "--epochs", "1", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    results = json.loads((output / "results.json").read_text())
    assert min(results["accuracy"].values()) > 0.97
    size = (output / "digits_int8.tflite").stat().st_size
    assert results["bytes"]["tflite, int8"] == size
    assert size < 0.5 * (output / "digits_float.tflite").stat().st_size
    assert sorted(f.name for f in output.iterdir()) == [
        "digits_float.tflite",
        "digits_int8.tflite",
        "qat.keras",
        "results.json",
    ]
    for shown in ("add_bn", "standalone", "int8 file, in LiteRT", f"{size:,} bytes", str(output)):
        assert shown in text
    assert "different in the file" not in text and "not computed" not in text
    # The int8 accuracy once more, by LiteRT's interpreter alone.
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(output / "digits_int8.tflite"))
    interpreter.allocate_tensors()
    (put,), (get,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = put["quantization"]
    data, right = demo.digits(), 0
    for image, digit in zip(data.x_test, data.y_test, strict=True):
        stored = np.clip(np.rint(image / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(put["index"], stored[None])
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(get["index"])) == digit)
    assert right / len(data.x_test) == pytest.approx(
        results["accuracy"]["int8 file, in LiteRT"], abs=0.004
    )


def test_the_temporary_folder_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    seen: list[Path] = []
    monkeypatch.setattr(demo, "_run", lambda folder, epochs, say: seen.append(folder))
    demo.run(None, say=said.append)
    assert str(seen[0]) in said[0] and "removed" in said[0]
    assert not seen[0].exists()
