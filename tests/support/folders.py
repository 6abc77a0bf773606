"""Folders before and after, for the tests of outputs."""

from __future__ import annotations

from pathlib import Path


def listing(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too, with its content."""
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    } | {str(f.relative_to(folder)): b"" for f in folder.rglob("*") if f.is_dir()}


def saved_model(path: Path, content: str) -> None:
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_text(content)
