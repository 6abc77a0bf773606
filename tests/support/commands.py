"""Models and data for the tests of the command line, and what its commands print.

Pytest knows a fixture by its name in the file of the tests: ``folder = commands.folder``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewriter_command import main
from saved_models import KERASES, X, build, save

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
