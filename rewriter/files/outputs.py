"""Which paths an output may be written to: none that holds something that would be missed."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

_HDF5 = (0, (b"\x89HDF\r\n\x1a\n",))
# Where, and with which bytes, a file of each suffix begins: of JSON, a recipe or an overlay for
# Model Explorer.
_BEGINNINGS: dict[str, tuple[int, tuple[bytes, ...]]] = {
    ".tflite": (4, (b"TFL3",)),
    ".keras": (0, (b"PK",)),
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".html": (0, (b"<!DOCTYPE html>",)),
    ".json": (0, (b'{\n  "kernel_quantizer"', b'{"results"')),
    ".png": (0, (b"\x89PNG",)),
    ".pdf": (0, (b"%PDF",)),
    ".svg": (0, (b"<?xml",)),
}


def refusal(
    path: str | os.PathLike[str],
    suffixes: Collection[str],
    what: str,
    inputs: Collection[str | os.PathLike[str] | None] = (),
) -> str | None:
    """Why an output may not be written to ``path``; None if it may.

    Args:
      path: where it would be written, in the place of what is there.
      suffixes: the suffixes that it may have; ``""`` stands for a folder.
      what: what would be written, for the message: ``"A LiteRT file"``.
      inputs: files and folders that it is made from, and that must remain.

    Raises:
      OSError: what is there cannot be read.
    """
    target = Path(path)
    shown, suffix = repr(str(path)), target.suffix.lower()
    for source in inputs:
        if source is not None and _would_lose(target, Path(source)):
            return (
                f"{shown} is, or holds, the input {str(source)!r}, which would be lost. "
                "Choose another path for the output."
            )
    if suffix not in suffixes:
        expected = " or ".join(s or "no suffix (a folder)" for s in suffixes)
        received = repr(target.suffix) if suffix else "no suffix"
        return f"{shown}: {what} is written to a path with {expected}. Received: {received}."
    if suffix and os.path.lexists(target) and not _is_such_a_file(target, suffix):
        return (
            f"{shown} exists and is not a {suffix} file, so that it is not replaced. "
            "Choose another path for the output, or remove it first."
        )
    return unwritable(target)


def unwritable(path: str | os.PathLike[str]) -> str | None:
    """Why nothing can be written to ``path``, whatever stands there; None if something can."""
    folder, shown = Path(path).absolute().parent, repr(str(path))
    if not folder.exists():
        return f"{shown}: There is no folder {str(folder)!r}. Make it first, or choose another."
    if not folder.is_dir():
        return f"{shown}: {str(folder)!r} is a file, not a folder. Choose another path."
    if not os.access(folder, os.W_OK | os.X_OK):
        return (
            f"{shown}: Nothing may be written in the folder {str(folder)!r}. Choose another, or "
            "change its permissions."
        )
    return None


def _would_lose(target: Path, source: Path) -> bool:
    """Whether an input is at the place of the output, by whatever name, or in a folder there."""
    try:
        if os.path.samefile(target, source):
            return True
    except OSError:  # one of them is not there, which whoever opens it reports
        return False
    return target.resolve() in source.resolve().parents


def _is_such_a_file(path: Path, suffix: str) -> bool:
    """Whether a path holds a file of its suffix's format, an empty one, or a link to nothing."""
    if not path.exists():
        return True
    if not path.is_file():
        return False
    start, expected = _BEGINNINGS[suffix]
    with path.open("rb") as file:
        head = file.read(start + max(map(len, expected)))
    return not head or head[start:].startswith(expected)
