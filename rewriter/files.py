"""Outputs that are complete or not there: written beside the target, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write a file or a folder to; it becomes ``path`` when the block succeeds.

    The path given out has the name of ``path``, as Keras tells formats by suffixes, in a new
    hidden folder beside it, so that the last step is a rename within one file system. If the block
    raises, nothing is left behind and an existing ``path`` is as it was.

    Args:
      path: a file, or a folder such as a SavedModel. An older file is replaced; an older folder
        only if it is empty or a SavedModel: with other files in it, it is hardly meant.

    Raises:
      OSError: on entry, if ``path`` cannot be written to; its ``filename`` is ``path``.
    """
    target = Path(os.path.abspath(path))
    if target.is_dir() and not (target / "saved_model.pb").is_file() and any(target.iterdir()):
        raise FileExistsError(
            errno.EEXIST, "This is a folder with other files, which would be lost", str(target)
        )
    with _naming(target):
        staging = Path(tempfile.mkdtemp(prefix=".rewriter-", dir=target.parent))
    try:
        staged = staging / target.name
        yield staged
        with _naming(target):
            _move(staged, target, staging / f"{target.name}.old")
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Errors name the file that was asked for, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _move(staged: Path, target: Path, aside: Path) -> None:
    if not target.is_dir():
        os.replace(staged, target)
        return
    # Nothing can be renamed over a folder with files: the old one steps aside first, and comes
    # back if the new one cannot take its place.
    os.rename(target, aside)
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(aside, target)
        raise
