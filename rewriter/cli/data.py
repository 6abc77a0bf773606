"""Data for the command line: arrays from files, folders of images and functions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rewriter.cli import archives, datasets, records
from rewriter.errors import LoadError
from rewriter.files import boundaries
from rewriter.workflow import samples

# Where a file has several arrays and none is asked for: the first of these names that it has.
FOR_CALIBRATION = ("x", "x_train", "x_test")
FOLDER = "folder"  # as labels: of images
FOR_VERIFICATION = ("x", "x_test", "x_train")
_IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
_IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where data comes from, and how stored values become the model's.

    Attributes:
      path: an ``.npz`` or ``.npy`` file, a folder of images (searched at all depths, in the order
        of their names), a TFRecord file, or ``module:function`` (see :mod:`rewriter.cli.datasets`).
      array: the name of the array in an ``.npz`` file; None: all the model's inputs if they are
        there by name, else the only array, else the first of ``preferred`` that is there.
      labels: the name of the array with the labels; None for none. Of a folder of images,
        ``"folder"``: the number of each image's sub-folder, in the order of their names.
      scale: factor on the stored values.
      offset: added after the factor.
      samples: use no more than this many, spread evenly over the data, as it is often sorted.
      preferred: see ``array``.
      features: a JSON file that says what stands in a TFRecord file.
    """

    path: Path
    array: str | None = None
    labels: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    samples: int | None = None
    preferred: Sequence[str] = FOR_CALIBRATION
    features: Path | None = None


@dataclasses.dataclass(frozen=True)
class Data:
    """What was read.

    Attributes:
      inputs: float32 (N, ...), or such arrays by the names of the model's inputs; samples that are
        made when they are asked for, where those were wanted and can be.
      labels: (N,) or (N, ...), or None if none were asked for.
    """

    inputs: np.ndarray | samples.Lazy | dict[str, np.ndarray] | dict[str, samples.Lazy]
    labels: np.ndarray | None = None


def input_shapes(model: Any) -> dict[str, tuple[int | None, ...]]:
    """The shapes of a model's inputs, without the batch, by name."""
    return {tensor.name.split(":")[0]: tuple(tensor.shape[1:]) for tensor in model.inputs}


def read(source: Source, shapes: Mapping[str, tuple[int | None, ...]], lazy: bool = False) -> Data:
    """Read the data for a model whose inputs have these ``shapes`` (see :func:`input_shapes`).

    Whether the arrays fit the model is for ``calibrate`` and ``verify`` to say. ``lazy``: samples
    are read when they are asked for; those that are compressed, or that a function gives, are read
    into memory at once.

    Raises:
      LoadError: if there is no such file or array, or it cannot be read.
    """
    path = source.path
    if datasets.is_function(path):
        return _from_function(source, shapes)
    if not path.exists():
        raise LoadError(f"There is no file or folder {str(path)!r}.")
    with boundaries.data(path):
        if path.is_dir():
            return _from_images(source, shapes, lazy)
        if records.is_records(path):
            columns = records.columns(path, source.features, shapes)
            return _from_arrays(source, columns, shapes, lazy)
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _from_array(source, loaded, lazy)
        with loaded:
            return _from_arrays(source, archives.Arrays(path, loaded), shapes, lazy)


def _from_function(source: Source, shapes: Mapping[str, tuple[int | None, ...]]) -> Data:
    for option, value in (("array", source.array), ("labels", source.labels)):
        if value is not None:
            raise LoadError(
                f"{source.path} gives inputs, or pairs of inputs and labels: --{option} {value} "
                "needs a file with names. Choose in the function."
            )
    values, labels = datasets.from_function(str(source.path), shapes, source.samples)
    every = np.arange(len(next(iter(values.values()))))
    return Data({name: _values(source, array, every) for name, array in values.items()}, labels)


def _from_array(source: Source, array: np.ndarray, lazy: bool) -> Data:
    for option, value in (("array", source.array), ("labels", source.labels)):
        if value is not None:
            raise LoadError(
                f"{str(source.path)!r} has one array without a name: --{option} {value} needs an "
                ".npz file."
            )
    kept = samples.spread(len(_samples(source, array)), source.samples)
    made = _lazy(source, array, kept)
    return Data(made if lazy else made[:])


def _from_arrays(
    source: Source, arrays: Any, shapes: Mapping[str, tuple[int | None, ...]], lazy: bool
) -> Data:
    names = _input_names(source, list(arrays), list(shapes))
    raw = {name: _samples(source, arrays[name], name) for name in names}
    labels = None
    if source.labels is not None:
        labels = _labels(source, arrays)
    lengths = {name: len(array) for name, array in raw.items()}
    if labels is not None and source.labels is not None:
        lengths[source.labels] = len(labels)
    if len(set(lengths.values())) != 1:
        raise LoadError(
            f"The arrays of {str(source.path)!r} have different numbers of samples: {lengths}."
        )
    chosen = samples.spread(next(iter(lengths.values())), source.samples)
    made = {name: _lazy(source, array, chosen) for name, array in raw.items()}
    values: Any = made if lazy else {name: each[:] for name, each in made.items()}
    by_name = len(values) > 1 or (len(shapes) == 1 and list(values) == list(shapes))
    return Data(
        values if by_name else next(iter(values.values())),
        None if labels is None else labels[chosen],
    )


def _input_names(source: Source, there: list[str], inputs: list[str]) -> list[str]:
    if source.array is not None:
        if source.array not in there:
            raise LoadError(_no_array(source, source.array, there))
        return [source.array]
    if all(name in there for name in inputs):
        return inputs
    data = [name for name in there if name != source.labels]
    if len(data) == 1:
        return data
    for name in source.preferred:
        if name in there:
            return [name]
    raise LoadError(
        f"{str(source.path)!r} has the arrays {there}; none is called like the model's inputs "
        f"{inputs}, or one of {list(source.preferred)}. Choose one: --array NAME."
    )


def _no_array(source: Source, name: str, there: list[str]) -> str:
    return f"{str(source.path)!r} has no array {name!r}. Received: {there}."


def _labels(source: Source, arrays: Any) -> np.ndarray:
    if source.labels not in arrays:
        raise LoadError(_no_array(source, str(source.labels), list(arrays)))
    labels = np.asarray(arrays[source.labels])
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "biuf" or not labels.ndim:
        raise LoadError(
            f"Labels are numbers, some for each sample. Received: {source.labels!r} of shape "
            f"{labels.shape} and type {labels.dtype}."
        )
    return labels


def _samples(source: Source, array: np.ndarray, name: str | None = None) -> np.ndarray:
    what = str(source.path) if name is None else f"{source.path}:{name}"
    if array.dtype.kind not in "biuf":
        raise LoadError(f"{what!r} holds no real numbers. Received: type {array.dtype}.")
    if not array.ndim or not len(array):
        raise LoadError(f"{what!r} holds no samples. Received: shape {array.shape}.")
    return array


def _lazy(source: Source, array: Any, kept: np.ndarray) -> samples.Lazy:
    return samples.Lazy(array.shape, lambda n: _values(source, array, n)).chosen(kept)


def _values(source: Source, array: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    values = np.asarray(array[chosen], np.float64) * source.scale + source.offset
    return values.astype(np.float32)


def _from_images(source: Source, shapes: Mapping[str, tuple[int | None, ...]], lazy: bool) -> Data:
    if source.labels not in (None, FOLDER) or source.array is not None:
        raise LoadError(
            f"{str(source.path)!r} is a folder: --array and --labels NAME need an .npz file; "
            f"--labels {FOLDER} takes the names of its sub-folders as classes."
        )
    if len(shapes) != 1:
        raise LoadError(
            f"A folder of images fits a model with one input. Received: a model with "
            f"{len(shapes)}, {list(shapes)}. Give an .npz file with arrays of these names."
        )
    ((name, shape),) = shapes.items()
    if len(shape) != 3 or None in shape or shape[2] not in _IMAGE_MODES:
        raise LoadError(
            "Images fit a model whose input has a fixed height and width, and 1, 3 or 4 channels. "
            f"Received: the input {name!r} of shape {shape}. Give an .npz or .npy file."
        )
    files = sorted(f for f in source.path.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise LoadError(
            f"There are no images in {str(source.path)!r}. "
            f"Known suffixes: {', '.join(sorted(_IMAGE_SUFFIXES))}."
        )
    height, width, channels = (int(d or 0) for d in shape)
    kept = [files[i] for i in samples.spread(len(files), source.samples)]

    def decoded(numbers: np.ndarray) -> np.ndarray:
        values = np.empty((len(numbers), height, width, channels), np.float32)

        def decode(place: int) -> None:
            pixels = _image(kept[numbers[place]], (width, height), channels)
            values[place] = _values(source, pixels[None], np.zeros(1, int))[0]

        # Pillow decodes and resizes without holding Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(decode, range(len(numbers))))
        return values

    made = samples.Lazy((len(kept), height, width, channels), decoded)
    labels = None if source.labels is None else _folders(source.path, kept)
    return Data(made if lazy else made[:], labels)


def _folders(path: Path, files: Sequence[Path]) -> np.ndarray:
    """The class of each image: the number of the sub-folder of ``path`` that it lies in."""
    names = sorted(child.name for child in path.iterdir() if child.is_dir())
    found = [file.relative_to(path).parts[0] for file in files]
    outside = [name for name in found if name not in names]
    if outside:
        raise LoadError(
            f"--labels {FOLDER} needs every image in a sub-folder of {str(path)!r} that names its "
            f"class. Received: {outside[0]!r} beside them."
        )
    return np.array([names.index(name) for name in found])


def _image(file: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image as uint8 (height, width, channels)."""
    with boundaries.data(file), Image.open(file) as image:
        resized = image.convert(_IMAGE_MODES[channels]).resize(size, Image.Resampling.BILINEAR)
        return np.asarray(resized).reshape(size[1], size[0], channels)
