"""Data for the command line: which arrays are read, and how."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewriter.cli import archives
from rewriter.cli.data import FOR_CALIBRATION, FOR_VERIFICATION, Source, read
from rewriter.errors import LoadError
from rewriter.workflow import samples

ONE = {"image": (4, 6, 3)}


def npz(folder: Path, **arrays: np.ndarray) -> Source:
    np.savez(folder / "data.npz", **arrays)
    return Source(folder / "data.npz")


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_the_only_array(tmp_path: Path) -> None:
    found = read(npz(tmp_path, whatever=column(1, 2)), ONE).inputs
    np.testing.assert_array_equal(found, column(1, 2))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.arange(6, dtype=np.uint8).reshape(3, 2))
    found = read(Source(tmp_path / "data.npy"), ONE).inputs
    np.testing.assert_array_equal(found, [[0, 1], [2, 3], [4, 5]])


@pytest.mark.parametrize(("preferred", "expected"), [(FOR_CALIBRATION, 1), (FOR_VERIFICATION, 2)])
def test_preferred_names(preferred: tuple[str, ...], expected: int, tmp_path: Path) -> None:
    source = npz(tmp_path, x_train=column(1), x_test=column(2), y_train=column(3))
    found = read(dataclasses.replace(source, preferred=preferred), ONE).inputs
    np.testing.assert_array_equal(found, column(expected))


def test_a_named_array(tmp_path: Path) -> None:
    source = dataclasses.replace(npz(tmp_path, x=column(1), z=column(2)), array="z")
    np.testing.assert_array_equal(read(source, ONE).inputs, column(2))


def test_all_inputs_by_name(tmp_path: Path) -> None:
    source = npz(tmp_path, b=column(1), a=column(2), x=column(3))
    found = read(source, {"a": (1,), "b": (1,)}).inputs
    assert isinstance(found, dict) and list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], column(2))


def test_labels_do_not_count_as_data(tmp_path: Path) -> None:
    source = npz(tmp_path, pixels=column(1, 2), y=np.array([[3], [4]]))
    found = read(dataclasses.replace(source, labels="y"), ONE)
    np.testing.assert_array_equal(found.inputs, column(1, 2))
    np.testing.assert_array_equal(found.labels, [3, 4])


def test_scale_and_offset(tmp_path: Path) -> None:
    source = npz(tmp_path, x=np.array([[83], [84]], np.int8))
    found = read(dataclasses.replace(source, scale=0.5, offset=-41.5), ONE).inputs
    np.testing.assert_array_equal(found, column(0, 0.5))


def test_samples_are_spread_and_labels_follow(tmp_path: Path) -> None:
    source = npz(tmp_path, x=column(*range(10)), y=np.arange(10))
    found = read(dataclasses.replace(source, samples=4, labels="y"), ONE)
    np.testing.assert_array_equal(found.labels, [0, 2, 5, 7])
    np.testing.assert_array_equal(found.inputs, column(0, 2, 5, 7))
    assert len(read(dataclasses.replace(source, samples=99), ONE).inputs) == 10


def picture(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_images(tmp_path: Path) -> None:
    picture(tmp_path / "b" / "2.png", (0, 255, 0))
    picture(tmp_path / "a" / "1.PNG", (255, 0, 51))
    (tmp_path / "notes.txt").write_text("no image")
    found = read(Source(tmp_path, scale=1 / 255), ONE).inputs
    assert isinstance(found, np.ndarray) and found.shape == (2, 4, 6, 3)
    np.testing.assert_allclose(found[0], np.broadcast_to([1, 0, 0.2], (4, 6, 3)), atol=1e-6)
    np.testing.assert_allclose(found[1], np.broadcast_to([0, 1, 0], (4, 6, 3)), atol=1e-6)


def test_images_of_one_channel_and_which_side_is_which(tmp_path: Path) -> None:
    left_white = np.zeros((4, 6), np.uint8)
    left_white[:, :3] = 255
    Image.fromarray(left_white).save(tmp_path / "1.png")
    found = read(Source(tmp_path), {"image": (4, 6, 1)}).inputs
    np.testing.assert_array_equal(found, left_white[None, :, :, None])


def test_bad_requests(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png", (0, 0, 0))
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "text.npz").write_text("nothing")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "plain.npy", column(1))
    source = npz(tmp_path, p=column(1, 2), q=column(1), r=column(0.5, 1), text=np.array(["a", "b"]))
    images = tmp_path / "images"
    cases = [
        (Source(tmp_path / "nothing.npz"), ONE, "no file or folder"),
        (Source(tmp_path / "text.npz"), ONE, "cannot be read as data"),
        (Source(tmp_path / "cut.npz"), ONE, "cannot be read as data"),
        (Source(tmp_path / "pickle.npy"), ONE, "cannot be read as data"),
        (Source(tmp_path / "plain.npy", array="x"), ONE, "--array x needs an .npz"),
        (source, ONE, "--array NAME"),
        (dataclasses.replace(source, array="z"), ONE, "no array 'z'"),
        (dataclasses.replace(source, array="text"), ONE, "no real numbers"),
        (dataclasses.replace(source, array="p", labels="z"), ONE, "no array 'z'"),
        (dataclasses.replace(source, array="p", labels="text"), ONE, "Labels are numbers"),
        (source, {"p": (1,), "q": (1,)}, "different numbers of samples"),
        (Source(images, array="x"), ONE, "need an .npz"),
        (Source(images), {"a": (4, 6, 3), "b": (1,)}, "a model with one input"),
        (Source(images), {"a": (None, 6, 3)}, "fixed height and width"),
        (Source(images), {"a": (640,)}, "fixed height and width"),
        (Source(tmp_path / "empty"), ONE, "no images"),
        (Source(broken), ONE, "'.*1.png' cannot be read"),
    ]
    for bad, shapes, message in cases:
        with pytest.raises(LoadError, match=message):
            read(bad, shapes)


def test_lazy_samples_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "images" / f"class {number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    np.save(tmp_path / "data.npy", rng.normal(size=(7, 4, 6, 3)))
    for name, labels in (("images", "folder"), ("data.npy", None)):
        source = Source(tmp_path / name, labels=labels, scale=1 / 255, offset=-1, samples=6)
        whole, lazy = read(source, ONE), read(source, ONE, lazy=True)
        assert isinstance(whole.inputs, np.ndarray) and isinstance(lazy.inputs, samples.Lazy)
        assert lazy.inputs.shape == whole.inputs.shape == (6, 4, 6, 3)
        np.testing.assert_array_equal(np.asarray(lazy.inputs), whole.inputs)
        np.testing.assert_array_equal(lazy.inputs[1:3], whole.inputs[1:3])
        places = np.array([5, 0, 3])
        np.testing.assert_array_equal(samples.chosen(lazy.inputs, places)[1:], whole.inputs[[0, 3]])
        if labels:
            np.testing.assert_array_equal(lazy.labels, whole.labels)
    (folder / "6.png").write_bytes(b"no image")
    damaged = read(Source(tmp_path / "images"), ONE, lazy=True).inputs
    with pytest.raises(LoadError, match="images"):
        damaged[:]


@pytest.mark.parametrize(
    ("save", "order", "in_file"),
    [(np.savez, "C", True), (np.savez, "F", True), (np.savez_compressed, "C", False)],
)
def test_lazy_arrays(save: Any, order: str, in_file: bool, tmp_path: Path) -> None:
    """Of an archive: a map of the file where it is not compressed, the same values in any case."""
    rng = np.random.default_rng(0)
    a = np.asarray(rng.integers(0, 256, (9, 2), np.uint8), order=order)
    b = np.asarray(rng.normal(size=(9, 3)), ">f4", order=order)
    save(tmp_path / "d.npz", a=a, b=b, y=np.arange(9), none=np.zeros((0, 3)))
    source = Source(tmp_path / "d.npz", labels="y", scale=1 / 3, offset=1, samples=7)
    found = read(source, {"a": (2,), "b": (3,)}, lazy=True)
    kept = samples.spread(9, 7)
    for name, values in (("a", a), ("b", b)):
        expected = (values[kept].astype(np.float64) / 3 + 1).astype(np.float32)
        assert isinstance(found.inputs[name], samples.Lazy)
        np.testing.assert_array_equal(found.inputs[name][:], expected)
        np.testing.assert_array_equal(found.inputs[name][2:4], expected[2:4])
    np.testing.assert_array_equal(found.labels, kept)
    with np.load(tmp_path / "d.npz") as loaded:
        arrays = archives.Arrays(tmp_path / "d.npz", loaded)
        assert isinstance(arrays["b"], np.memmap) == in_file
        assert list(arrays) == ["a", "b", "y", "none"] and len(arrays["none"]) == 0
