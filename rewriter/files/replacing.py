"""Outputs that are complete or not there: written beside the target, then moved into place."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from rewriter.files import staging

# What writing meets on the way, of which the operating system does not say the file.
_WHILE_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write a file or a folder to; it becomes ``path`` when the block succeeds.

    The path given out has the name of ``path``, as Keras tells formats by suffixes, in a new
    hidden folder beside it, so that the last step is a rename within one file system. If the block
    raises, nothing is left behind and an existing ``path`` is as it was. If the process is killed,
    the hidden folder stays, until the next output is written beside it.

    Args:
      path: a file, or a folder such as a SavedModel. An older file is replaced; an older folder
        only if it is empty or a SavedModel: with other files in it, it is hardly meant.

    Raises:
      OSError: if ``path`` cannot be written to, on entry where that shows by then; its
        ``filename`` is ``path``.
    """
    target = Path(os.path.abspath(path))
    if target.is_dir() and not (target / "saved_model.pb").is_file() and any(target.iterdir()):
        raise FileExistsError(
            errno.EEXIST, "This is a folder with other files, which would be lost", str(target)
        )
    with contextlib.ExitStack() as stack:
        with _naming(target):
            hidden = stack.enter_context(staging.folder(target.parent))
        staged = hidden / target.name
        try:
            yield staged
        except OSError as error:
            if not _while_writing(error, hidden):
                raise
            raise OSError(error.errno, error.strerror, str(target)) from error
        with _naming(target):
            _move(staged, target, hidden)


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


def _while_writing(error: OSError, hidden: Path) -> bool:
    if error.filename is None:
        return error.errno in _WHILE_WRITING
    return str(error.filename).startswith(str(hidden))


def _move(staged: Path, target: Path, hidden: Path) -> None:
    if not target.is_dir():
        os.replace(staged, target)
        return
    # Nothing can be renamed over a folder with files: the old one steps aside first, and comes
    # back if the new one cannot take its place.
    aside = staging.aside(hidden, target)
    os.rename(target, aside)
    try:
        os.rename(staged, target)
    except OSError:
        os.rename(aside, target)
        raise
