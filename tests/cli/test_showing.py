"""How much a command shows, and in which colours."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

import commands
import rewriter_command

folder = commands.folder


def test_quiet_and_verbose(folder, tmp_path, capsys):
    arguments = ["quantize", folder / "keras.keras", "--data", folder / "data.npz"]
    arguments += ["-o", tmp_path / "m.tflite"]

    def shown_with(*options):
        assert rewriter_command.main([str(a) for a in (*arguments, *options)]) == 0
        return capsys.readouterr()

    shown = shown_with("--quiet")
    assert not shown.out and (tmp_path / "m.tflite").exists()
    assert all(line.startswith("rewriter: warning: ") for line in shown.err.splitlines())
    assert json.loads(shown_with("--quiet", "--json").out)["plan"]
    shown = shown_with("--verbose")
    assert re.search(r"^\[ +\d+\.\d s\] calibrating on \d+ of \d+ samples$", shown.out, re.M)
    assert "verifying: 100%" in shown.err  # though it is no terminal
    with pytest.raises(SystemExit):
        rewriter_command.main([str(a) for a in (*arguments, "-v", "-q")])


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_on_a_terminal(environment, coloured, monkeypatch, capsys):
    """Of a terminal that is one, without TensorFlow: the word that is coloured."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", 0) as terminal:
        show = "import rewriter_command as c; c._show_warning('a  word')"
        subprocess.run([sys.executable, "-c", show], stderr=follower, check=True)
        os.close(follower)
        said = terminal.read(1000).decode()
    assert said.strip() == (
        "rewriter: \033[33mwarning\033[0m: a word" if coloured else "rewriter: warning: a word"
    )
    rewriter_command._show_warning("a  word")
    assert capsys.readouterr().err == "rewriter: warning: a word\n"


def test_letters_that_the_stream_has_none_for(folder, tmp_path):
    """A path, as a name, is shown escaped; it was a traceback when the output was complete."""
    model = tmp_path / "größe.keras"
    model.write_bytes((folder / "keras.keras").read_bytes())
    command = [sys.executable, "-m", "rewriter", "convert", model, "-o", tmp_path / "maß.keras"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [*command, "--calibrate", folder / "data.npz"], capture_output=True, env=ascii_only
    )
    assert done.returncode == 0, done.stderr
    assert rb"ma\xdf.keras: quantization-aware, calibrated" in done.stdout
    assert (tmp_path / "maß.keras").exists()


def test_a_value_of_the_environment_that_is_none():
    """It is read when the package is imported, before there is a command."""
    done = subprocess.run(
        [sys.executable, "-c", "import rewriter_command as r; r.run()", "inspect", "m.keras"],
        env={**os.environ, "REWRITER_KERNELS": "fsat"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "rewriter: error: REWRITER_KERNELS must be 'plain' or 'fast'. Received: 'fsat'.\n"
    )
