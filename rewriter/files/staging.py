"""Hidden folders in which outputs are written, and what is left of those of ended processes.

A process holds a lock on its folder; the system lets go of it when the process ends, however it
does. A folder without a lock is therefore left over, which no process id could tell: ids are used
again, and those of another container mean something else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing cleaned up
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".rewriter-unfinished-"
_ASIDE = ".replaced"  # in a hidden folder: the folder with what a new one takes the place of


@contextlib.contextmanager
def folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in ``parent``, gone at the end, with all that is still in it.

    Raises:
      OSError: it cannot be made.
    """
    _clean(parent)
    path, lock = _locked(parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def aside(staging: Path, target: Path) -> Path:
    """Where in a hidden folder an old folder waits until the new one has taken its place."""
    (staging / _ASIDE).mkdir()
    return staging / _ASIDE / target.name


def _locked(parent: Path) -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = _lock(path, wait=True)
        # Another process may have met the folder before it was locked, and removed it.
        if path.is_dir():
            return path, lock
        if lock is not None:
            os.close(lock)


def _lock(path: Path, wait: bool) -> int | None:
    """An open file with the lock on a folder; None if another holds it, or there is no lock."""
    if fcntl is None:
        return None
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or gone
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked, or a file system without locks
        os.close(opened)
        return None
    return opened


def _clean(parent: Path) -> None:
    """Remove the hidden folders of processes that have ended, and bring back what they moved."""
    for path in parent.glob(f"{_PREFIX}*"):
        lock = _lock(path, wait=False)
        if lock is None:
            continue
        try:
            _bring_back(path, parent)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _bring_back(staging: Path, parent: Path) -> None:
    """A process that ended between two renames has left an old folder without its place."""
    for old in (staging / _ASIDE).glob("*"):
        if not os.path.lexists(parent / old.name):
            os.rename(old, parent / old.name)
