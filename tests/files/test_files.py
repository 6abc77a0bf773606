"""Outputs are complete or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from folders import listing, saved_model
from rewriter.files.replacing import replacing, write_bytes


def test_a_file_appears_and_is_replaced(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_bytes(tmp_path / "out", content)
        assert listing(tmp_path) == {"out": content}


def test_the_name_is_kept_for_the_writer(tmp_path: Path) -> None:
    with replacing(tmp_path / "model.keras") as path:
        assert path.name == "model.keras"
        assert path.parent.parent == tmp_path, "not on the same file system"
        path.write_bytes(b"x")


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "out", b"old")
    with pytest.raises(RuntimeError, match="broken"), replacing(tmp_path / "out") as path:
        path.write_bytes(b"half")
        raise RuntimeError("broken")
    assert listing(tmp_path) == {"out": b"old"}


def test_a_failure_leaves_nothing_new(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "out") as path:
        saved_model(path, "half")
        raise RuntimeError
    assert listing(tmp_path) == {}


def test_a_folder_takes_the_place_of_a_saved_model(tmp_path: Path) -> None:
    saved_model(tmp_path / "out", "old")
    (tmp_path / "out" / "keras_metadata.pb").write_text("old")
    with replacing(tmp_path / "out") as path:
        saved_model(path, "new")
    assert listing(tmp_path) == {"out": b"", "out/variables": b"", "out/saved_model.pb": b"new"}


def test_a_folder_takes_the_place_of_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with replacing(tmp_path / "out") as path:
        saved_model(path, "new")
    assert (tmp_path / "out" / "saved_model.pb").read_text() == "new"


def test_a_folder_with_other_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError), replacing(tmp_path / "out") as path:
        saved_model(path, "new")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_an_impossible_path_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "nowhere" / "out", tmp_path / "file" / "out"):
        with pytest.raises(OSError) as caught, replacing(path):
            pytest.fail("the work was begun")
        assert caught.value.filename == str(path)


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "out"):
        pass
    assert caught.value.filename == str(tmp_path / "out")
    assert listing(tmp_path) == {}
