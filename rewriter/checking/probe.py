"""Whether a model's file can be read at all, found out in a child process with a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rewriter.checking import child, hdf5
from rewriter.errors import LoadError

PATIENCE_S = 20.0  # for a small file
_BYTES_PER_S = 10e6  # what any disk gives


def check(path: Path) -> None:
    """Raise LoadError if reading the HDF5 in a file crashes, or does not end.

    Other errors, and other formats, are for :func:`rewriter.load_model` to find.

    Args:
      path: a model's file.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != b"PK\x03\x04" and head != b"\x89HDF\r\n\x1a\n":
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    limit = PATIENCE_S + path.stat().st_size / _BYTES_PER_S
    try:
        done = subprocess.run(
            [sys.executable, str(Path(hdf5.__file__)), str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(_damaged(path, f"HDF5 does not finish in {limit:.0f} s")) from error
    if done.returncode < 0:
        raise LoadError(_damaged(path, f"HDF5 crashes on it, {child.ending(done.returncode)}"))


def _damaged(path: Path, how: str) -> str:
    return (
        f"{str(path)!r} cannot be read: it is damaged or incomplete ({how}). Save or copy it again."
    )
