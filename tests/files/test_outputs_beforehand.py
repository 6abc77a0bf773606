"""Outputs that cannot be written are known before the work is done."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest

import commands
import rewriter
from commands import error_of
from folders import listing
from rewriter.cli import commands as commands_of_rewriter
from rewriter.errors import ExportError
from rewriter.files import outputs
from saved_models import X, build

folder = commands.folder


def test_nothing_is_done_for_an_output_that_cannot_be_written(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not after an hour of training: before anything is loaded."""
    monkeypatch.setattr(commands_of_rewriter.arguments, "model", None)
    (tmp_path / "file").touch()
    arguments = ["quantize", folder / "keras.keras", "--data", folder / "data.npz"]
    for parent, text in (("nowhere", "Make it first"), ("file", "is a file, not a folder")):
        for option, name in (
            ("-o", "m.tflite"),
            ("--save-model", "q.keras"),
            ("--report", "r.html"),
            ("--model-explorer", "r.json"),
        ):
            more = [] if option == "-o" else ["-o", tmp_path / "m.tflite"]
            path = tmp_path / parent / name
            message = error_of(capsys, *arguments, *more, option, path)
            assert str(path) in message and text in message
    qat = rewriter.rewrite(build(keras), calibration_data=X)
    with pytest.raises(ExportError, match="Make it first"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", c_array=tmp_path / "nowhere" / "m.c")
    assert listing(tmp_path) == {"file": b""}


def test_a_folder_that_nothing_may_be_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: path != tmp_path)
    refusal = outputs.unwritable(tmp_path / "m.tflite")
    assert refusal is not None and "change its permissions" in refusal
