"""Arrays of ``.npz`` files that stay in the file until their samples are asked for."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an ``.npz`` file: maps of the file where they are not compressed.

    Args:
      path: the file.
      loaded: what ``numpy.load`` gives for it, open.
    """

    def __init__(self, path: Path, loaded: Any):
        self._path, self._loaded = path, loaded

    def __iter__(self) -> Any:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def __getitem__(self, name: str) -> np.ndarray:
        member = self._loaded.zip.NameToInfo.get(f"{name}.npy")
        if member is None or member.compress_type != zipfile.ZIP_STORED:
            return self._loaded[name]
        with self._path.open("rb") as file:
            # A member's own header is as long as its name and its extra field say (APPNOTE 4.3.7).
            file.seek(member.header_offset + 26)
            file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                return self._loaded[name]
            shape, fortran, dtype = _HEADERS[version](file)
            order, offset = ("F" if fortran else "C"), file.tell()
        if dtype.hasobject or not math.prod(shape):
            return self._loaded[name]
        return np.memmap(self._path, dtype, "r", offset, shape, order)  # type: ignore[call-overload]
