"""Outputs take the place of nothing that would be missed."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

import commands
import rewriter
from commands import error_of, output_of
from folders import listing, saved_model
from rewriter.cli import demo
from rewriter.errors import ExportError, RewriterError
from rewriter.files import outputs, staging
from rewriter.files.replacing import replacing, write_bytes
from saved_models import X, build, save

folder, converted = commands.folder, commands.converted


def names_of(path: Path, folder: Path) -> list[Path]:
    """Other paths to the same file or folder."""
    (folder / "inner").mkdir()
    (folder / f"link{path.suffix}").symlink_to(path)
    (folder / "up").symlink_to(path.parent)
    if path.is_file():
        os.link(path, folder / f"hard{path.suffix}")
    found = [path, Path(os.path.relpath(path)), folder / "up" / path.name]
    found += [
        path.parent / "inner" / ".." / path.name,
        *folder.glob("link*"),
        *folder.glob("hard*"),
    ]
    return found


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
def test_the_input_is_kept(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(build(tf_keras), tmp_path / f"m{suffix}")
    outputs = names_of(path, tmp_path)
    before = listing(tmp_path)
    for output in outputs:
        assert "would be lost" in error_of(capsys, "convert", path, "-o", output)
        assert "would be lost" in error_of(capsys, "export", output, "-o", path)
    assert listing(tmp_path) == before


def test_data_and_recipe_in_an_old_model_are_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_model(tmp_path / "old", "old")
    shutil.copy(folder / "data.npz", tmp_path / "old" / "data.npz")
    (tmp_path / "old" / "recipe.json").write_text("{}")
    before = listing(tmp_path)
    model, output = folder / "tf_keras.keras", tmp_path / "old"
    for option, name in (("--calibrate", "data.npz"), ("--recipe", "recipe.json")):
        arguments = ["convert", model, "-o", output, option, output / name]
        assert name in error_of(capsys, *arguments)
    assert listing(tmp_path) == before


def _folder(path: Path) -> None:
    path.mkdir()


def _saved_model(path: Path) -> None:
    saved_model(path, "a model")


def _other(path: Path) -> None:
    path.write_bytes(b"years of work")


def _link(path: Path) -> None:
    (path.parent / "thesis.txt").write_bytes(b"years of work")
    path.symlink_to("thesis.txt")


@pytest.mark.parametrize("make", [_folder, _saved_model, _other, _link])
def test_what_is_no_such_file_is_kept(
    make: Any,
    converted: tuple[Path, Path],
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for suffix, arguments in (
        (".tflite", ["export", converted[0]]),
        (".h5", ["convert", folder / "keras.keras"]),
    ):
        (tmp_path / suffix[1:]).mkdir()
        output = tmp_path / suffix[1:] / f"out{suffix}"
        make(output)
        before = listing(tmp_path)
        message = error_of(capsys, *arguments, "-o", output)
        assert str(output) in message and f"is not a {suffix} file" in message
        assert listing(tmp_path) == before


@pytest.mark.parametrize("suffix", [".keras", ".h5", "", ".tflite.bak", ".npz"])
def test_other_suffixes(
    suffix: str, converted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, "export", converted[0], "-o", tmp_path / f"m{suffix}")
    assert "'.tflite'" in message or ".tflite." in message
    assert listing(tmp_path) == {}


def test_files_of_the_same_kind_are_replaced(
    converted: tuple[Path, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, output in (
        (["export", converted[0]], "m.tflite"),
        (["convert", folder / "keras.keras"], "q.h5"),
    ):
        (tmp_path / output).touch()  # an empty one is nobody's, as of mktemp
        for _ in range(2):
            output_of(capsys, *arguments, "-o", tmp_path / output)
    (tmp_path / "l.TFLITE").symlink_to(tmp_path / "nothing")
    output_of(capsys, "export", converted[0], "-o", tmp_path / "l.TFLITE")
    assert set(listing(tmp_path)) == {"m.tflite", "q.h5", "l.TFLITE"}


def test_in_python(tmp_path: Path) -> None:
    trained = save(build(keras), tmp_path / "m.keras")
    qat = rewriter.rewrite(build(keras), calibration_data=X)
    (tmp_path / "m.tflite").write_bytes(b"not a LiteRT file")
    before = listing(tmp_path)
    for path in (trained, str(trained), tmp_path / "m", tmp_path / "m.tflite"):
        with pytest.raises(ExportError, match=Path(path).name):
            rewriter.export_tflite(qat, path)
    assert listing(tmp_path) == before


def test_the_demo_replaces_its_own_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Path] = []
    monkeypatch.setattr(demo, "_run", lambda folder, epochs, say: ran.append(folder))
    (tmp_path / "qat.keras").write_text("a week of training")
    with pytest.raises(RewriterError, match="'qat.keras'.*another folder"):
        demo.run(tmp_path, say=lambda text: None)
    assert not ran
    (tmp_path / "digits_int8.tflite").touch()
    demo.run(tmp_path, say=lambda text: None)
    assert ran == [tmp_path]


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "m.keras"
    refusal = outputs.refusal(nowhere, (".keras",), "A model", (nowhere, None))
    assert refusal is not None and f"no folder '{nowhere.parent}'. Make it first" in refusal


# Writing that fails on the way


def test_a_full_disk_names_the_output(tmp_path: Path) -> None:
    for name in (None, "staged"):
        with pytest.raises(OSError) as caught, replacing(tmp_path / "out") as path:
            raise OSError(errno.ENOSPC, "No space left on device", name and str(path))
        assert caught.value.filename == str(tmp_path / "out")
        assert caught.value.errno == errno.ENOSPC
    assert listing(tmp_path) == {}


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input")


_FULL = """
import resource, signal, sys
import rewriter_command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from rewriter.cli import saving
whole = saving.save
def limited(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    whole(*arguments)
saving.save = limited
sys.exit(rewriter_command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
def test_saving_that_fails_is_one_line(suffix: str, folder: Path, tmp_path: Path) -> None:
    """As on a full disk: no file can grow beyond a few bytes."""
    output = tmp_path / f"q{suffix}"
    arguments = ["convert", str(folder / "tf_keras.keras"), "-o", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, *arguments], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if line.startswith("rewriter: error: ")]
    assert done.returncode == 1, done.stderr
    assert len(said) == 1 and str(output) in said[0], done.stderr
    assert "Traceback" not in done.stderr
    assert listing(tmp_path) == {}


# What killed processes leave behind

_KILLED = """
import sys, time
from rewriter.files.replacing import replacing
with replacing(sys.argv[1]) as path:
    path.write_text("half")
    print("begun", flush=True)
    time.sleep(600)
"""


def begun(output: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing."""
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(output)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_what_killed_processes_left_goes_with_the_next_output(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".rewriter-settings").mkdir()
    running, killed = begun(tmp_path / "a"), begun(tmp_path / "b")
    try:
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.glob(".rewriter-unfinished-*"))) == 2
        write_bytes(tmp_path / "elsewhere" / "out", b"x")
        assert len(list(tmp_path.glob(".rewriter-unfinished-*"))) == 2
        write_bytes(tmp_path / "out", b"x")
        (left,) = tmp_path.glob(".rewriter-unfinished-*")
        assert (left / "a").read_text() == "half"
    finally:
        running.kill()
        running.wait()
    write_bytes(tmp_path / "out", b"y")
    assert set(listing(tmp_path)) == {"out", "elsewhere", "elsewhere/out", ".rewriter-settings"}


def test_an_old_model_that_a_killed_process_moved_comes_back(tmp_path: Path) -> None:
    saved_model(tmp_path / "q", "old")
    before = listing(tmp_path)
    left = tmp_path / ".rewriter-unfinished-abcdefgh"
    saved_model(left / "q", "new")
    os.rename(tmp_path / "q", staging.aside(left, tmp_path / "q"))
    write_bytes(tmp_path / "other", b"x")
    assert listing(tmp_path) == {**before, "other": b"x"}


def test_a_folder_that_another_process_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, made = staging._lock, []

    def lock(path: Path, wait: bool) -> int | None:
        made.append(path)
        if len(made) == 1:
            path.rmdir()
        return whole(path, wait)

    monkeypatch.setattr(staging, "_lock", lock)
    write_bytes(tmp_path / "out", b"x")
    assert len(made) == 2 and listing(tmp_path) == {"out": b"x"}


def test_without_locks_nothing_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "fcntl", None)
    (tmp_path / ".rewriter-unfinished-abcdefgh").mkdir()
    write_bytes(tmp_path / "out", b"x")
    assert set(listing(tmp_path)) == {"out", ".rewriter-unfinished-abcdefgh"}
