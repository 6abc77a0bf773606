"""Reads all of an HDF5 file, or of those in a ``.keras`` file: a program of its own.

HDF5 is written in C, and may crash or never end on a damaged file. :mod:`rewriter.checking.probe`
starts this file by its path; it imports h5py only. An error is the business of whoever loads the
file: this program only ends, by itself or not.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile

if __name__ == "__main__":
    sys.path[:1] = []  # this folder: its modules are the package's

import h5py

_PART = 1 << 24  # elements at a time
_SMALL, _RATIO = 64 << 20, 100  # of bytes declared; beyond, whoever loads the file refuses it


def read(file: h5py.File, size: int) -> None:
    """Look at every attribute and every number of a file of so many bytes."""

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        for key in list(item.attrs):
            item.attrs.get(key)
        inside = isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual
        if inside and item.nbytes <= max(_SMALL, _RATIO * size):
            if item.ndim == 0:
                item[()]
            else:
                rows = max(_PART // max(item.size // max(len(item), 1), 1), 1)
                for start in range(0, len(item), rows):
                    item[start : start + rows]

    visit("/", file)
    file.visititems(visit)


def main(path: str) -> None:
    """Read what is HDF5 in a file."""
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if not zipped:
        with h5py.File(path, "r") as found:
            read(found, os.path.getsize(path))
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".h5") and info.file_size <= max(
                _SMALL, _RATIO * info.compress_size
            ):
                with h5py.File(io.BytesIO(archive.read(info)), "r") as found:
                    read(found, info.file_size)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:  # loading it will say so
        sys.stderr.write(f"{type(error).__name__}\n")
