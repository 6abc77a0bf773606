"""TFRecord files as data for the command line: columns, whose rows are read when asked for."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.files import boundaries

Shapes = Mapping[str, tuple[int | None, ...]]
RECORDS = (".tfrecord", ".tfrecords")
# A record: its length and the check sum of that, the bytes, and their check sum
# (tensorflow/core/lib/io/record_writer.h).
_LENGTH, _CHECK = struct.Struct("<Q"), 4


def is_records(path: Path) -> bool:
    """Whether ``path`` is called like a TFRecord file, compressed or not."""
    return bool(set(path.suffixes) & set(RECORDS))


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How a feature of an example is stored, and what becomes of it."""

    stored: tf.DType
    shaped: bool  # whether the file says the shape, or the value itself does
    value: Callable[[tf.Tensor, tuple[int, ...]], tf.Tensor]


def _image(value: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    channels = shape[-1] if len(shape) == 3 else 0
    pixels = tf.io.decode_image(value, channels=channels, expand_animations=False)
    if len(shape) != 3:
        return pixels
    resized = tf.image.resize(pixels, shape[:2], antialias=True)
    return tf.cast(tf.round(resized), tf.uint8)


def _bytes(value: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.reshape(tf.io.decode_raw(value, tf.uint8), shape)


_KINDS = {
    "image": _Kind(tf.string, False, _image),
    "bytes": _Kind(tf.string, False, _bytes),
    "float32": _Kind(tf.float32, True, lambda value, shape: value),
    "int64": _Kind(tf.int64, True, lambda value, shape: value),
}


class Column:
    """A feature of all examples, read and decoded for those rows that are asked for.

    Args:
      count: of the examples.
      rows: gives the rows of the numbers int (M,).
    """

    def __init__(self, count: int, rows: Callable[[np.ndarray], np.ndarray]):
        first = rows(np.zeros(1, int))
        self.shape = (count, *first.shape[1:])
        self.ndim = first.ndim
        self.dtype = first.dtype
        self._rows = rows

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: Any) -> np.ndarray:
        return self._rows(np.arange(len(self))[places])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def columns(path: Path, spec: Path | None, shapes: Shapes) -> Mapping[str, Column]:
    """The columns of a TFRecord file by their names, each made when it is looked up.

    Args:
      path: the file; one that ends in ``.gz`` is decompressed into memory.
      spec: a JSON file, ``{name: {"type": ..., "shape": [...]}}`` for each feature. Types are
        ``image`` (JPEG, PNG, BMP or GIF, resized to the model's input), ``bytes`` (raw uint8),
        ``float32`` and ``int64``.
      shapes: of the model's inputs, without the batch, by name.

    Raises:
      LoadError: the spec is missing or wrong, there are no examples, or one does not fit.
    """
    features = _spec(path, spec)
    count, raw = _records(path)
    if not count:
        raise LoadError(f"{str(path)!r} holds no examples.")
    only = next(iter(shapes.values())) if len(shapes) == 1 else ()

    def rows(name: str, numbers: np.ndarray) -> np.ndarray:
        kind, shape = features[name]
        stored = tf.io.FixedLenFeature(shape if kind.shaped else (), kind.stored)
        inner = tuple(int(size or 0) for size in shapes.get(name, only))
        wanted = inner if kind is _KINDS["image"] else shape

        def decode(record: bytes) -> np.ndarray:
            value = tf.io.parse_single_example(record, {name: stored})[name]
            return kind.value(value, wanted).numpy()

        # TensorFlow decodes without holding Python's lock.
        with boundaries.data(path), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return np.stack(list(pool.map(decode, raw(numbers))))

    return _Columns(count, features, rows)


class _Columns(Mapping[str, Column]):
    def __init__(
        self, count: int, names: Sequence[str] | Mapping[str, Any], rows: Callable[..., np.ndarray]
    ):
        self._count, self._names, self._rows = count, list(names), rows

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Column:
        if name not in self._names:
            raise KeyError(name)
        return Column(self._count, functools.partial(self._rows, name))


def _records(path: Path) -> tuple[int, Callable[[np.ndarray], list[bytes]]]:
    """How many records there are, and what gives those of some numbers."""
    if path.suffix == ".gz":
        whole = [r.numpy() for r in tf.data.TFRecordDataset(str(path), compression_type="GZIP")]
        return len(whole), lambda numbers: [whole[number] for number in numbers]
    places = _places(path)

    def read(numbers: np.ndarray) -> list[bytes]:
        found = []
        with path.open("rb") as file:
            for start, length in places[numbers]:
                file.seek(start)
                found.append(file.read(length))
        return found

    return len(places), read


def _places(path: Path) -> np.ndarray:
    """Where the records of a file begin and how long they are, int64 (N, 2)."""
    found: list[tuple[int, int]] = []
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
            start = place + _LENGTH.size + _CHECK
            place = start + length + _CHECK
            if place > size:
                raise LoadError(
                    f"{str(path)!r} is damaged or incomplete: its record {len(found)} would end "
                    f"behind the file's {size} bytes. Write it again; a compressed one ends in "
                    ".gz."
                )
            found.append((start, length))
    return np.array(found, np.int64).reshape(-1, 2)


def _spec(path: Path, spec: Path | None) -> dict[str, tuple[_Kind, tuple[int, ...]]]:
    form = '{"name": {"type": "float32", "shape": [8, 8, 1]}, ...}'
    if spec is None:
        raise LoadError(
            f"What stands in the examples of {str(path)!r} is not in the file. Say it: --features "
            f"SPEC.json, with {form}; types are {', '.join(_KINDS)}."
        )
    try:
        values = json.loads(spec.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{str(spec)!r} is no JSON: {error}. Expected {form}.") from error
    if not isinstance(values, dict) or not values:
        raise LoadError(f"{str(spec)!r} names no features. Expected {form}.")
    found = {}
    for name, value in values.items():
        described = value if isinstance(value, dict) else {}
        kind, shape = _KINDS.get(str(described.get("type"))), described.get("shape", [])
        whole = isinstance(shape, list) and all(isinstance(s, int) and s > 0 for s in shape)
        if kind is None or not whole:
            raise LoadError(
                f"{str(spec)!r}: the feature {name!r} is not as in {form}, with a type of "
                f"{', '.join(_KINDS)}. Received: {value!r}."
            )
        found[name] = kind, tuple(shape)
    return found
