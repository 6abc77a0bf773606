"""Functions and TFRecord files as data, against what was put into them."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rewriter.cli import records as reader
from rewriter.cli.data import Source, read
from rewriter.errors import LoadError, RewriterWarning
from rewriter.workflow import samples

ONE = {"image": (4, 6, 3)}
TWO = {"a": (2,), "b": (3,)}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (7, 4, 6, 3), np.uint8)
LABELS = np.arange(7)

FUNCTIONS = """
import numpy as np, tensorflow as tf
x = np.load("x.npy")
y = np.arange(7)
of = tf.data.Dataset.from_tensor_slices
def pairs(): return of((x, y)).batch(3)
def singles(): return of((x, y))
def inputs(): return of(x).batch(7)
def named(): return of({"b": np.ones((5, 3)), "a": np.zeros((5, 2))}).batch(2)
def several(): return of(((np.zeros((5, 2)), np.ones((5, 3))), y[:5])).batch(2)
def endless(): return pairs().repeat()
def weighted(): return of((x, y, np.ones(7))).batch(3)
def short(): return of({"a": np.zeros((5, 2))}).batch(2)
def flat(): return of(np.zeros((3, 4))).batch(3)
def empty(): return pairs().take(0)
def array(): return x
def broken(): raise RuntimeError("no such disk")
def needs(more): return pairs()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "given_data.py").write_text(FUNCTIONS)
    np.save(tmp_path / "x.npy", PIXELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    sys.modules.pop("given_data", None)
    return tmp_path


def function(name: str, samples: int | None = None, **more) -> Source:
    return Source(Path(f"given_data:{name}"), samples=samples, **more)


def test_weights_are_not_used(here: Path) -> None:
    with pytest.warns(RewriterWarning, match="such as weights, is not used"):
        found = read(function("weighted"), ONE)
    np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize("name", ["pairs", "singles"])
def test_pairs(name: str, here: Path) -> None:
    found = read(function(name, scale=1 / 255, offset=-1), ONE)
    np.testing.assert_allclose(found.inputs["image"], PIXELS / 255 - 1, atol=1e-6)
    np.testing.assert_array_equal(found.labels, LABELS)


def test_inputs_alone(here: Path) -> None:
    found = read(function("inputs"), ONE)
    np.testing.assert_array_equal(found.inputs["image"], PIXELS)
    assert found.labels is None


@pytest.mark.parametrize("name", ["named", "several"])
def test_several_inputs(name: str, here: Path) -> None:
    found = read(function(name), TWO).inputs
    assert [(k, v.shape, v.mean()) for k, v in found.items()] == [
        ("a", (5, 2), 0),
        ("b", (5, 3), 1),
    ]


def test_no_more_than_asked(here: Path) -> None:
    found = read(function("endless", 5), ONE)
    np.testing.assert_array_equal(found.inputs["image"], PIXELS[:5])
    np.testing.assert_array_equal(found.labels, LABELS[:5])


@pytest.mark.parametrize(
    ("name", "shapes", "said"),
    [
        ("endless", ONE, "has no end.*--samples"),
        ("short", TWO, "lacks the input 'b'"),
        ("flat", ONE, r"the shape \(4, 6, 3\).*Received from .*: \(3, 4\)"),
        ("inputs", TWO, r"has the inputs \['a', 'b'\]"),
        ("empty", ONE, "is empty"),
        ("array", ONE, "Received: ndarray"),
        ("broken", ONE, "RuntimeError: no such disk"),
        ("needs", ONE, "TypeError: .*more"),
        ("missing", ONE, "AttributeError"),
    ],
)
def test_what_a_function_must_give(name: str, shapes: dict, said: str, here: Path) -> None:
    with pytest.raises(LoadError, match=said):
        read(function(name), shapes)


def test_no_such_module(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="ModuleNotFoundError"):
        read(Source(Path("no_such_module_here:f")), ONE)


def test_names_of_arrays_are_for_files(here: Path) -> None:
    with pytest.raises(LoadError, match="--labels y needs a file with names"):
        read(function("pairs", labels="y"), ONE)


# --- TFRecord ---------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def feature(value) -> tf.train.Feature:
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if np.asarray(value).dtype.kind in "iu":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=np.ravel(value)))
    return tf.train.Feature(float_list=tf.train.FloatList(value=np.ravel(value)))


def records(path: Path, rows: list[dict], spec: object, compression: str = "") -> Source:
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for row in rows:
            features = {name: feature(value) for name, value in row.items()}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    described = path.with_name("spec.json")
    described.write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return Source(path, features=described)


IMAGES = {"picture": {"type": "image"}, "label": {"type": "int64"}}


@pytest.mark.parametrize(("name", "compression"), [("a.tfrecord", ""), ("a.tfrecord.gz", "GZIP")])
def test_images(name: str, compression: str, tmp_path: Path) -> None:
    rows = [{"picture": png(p), "label": i} for p, i in zip(PIXELS, LABELS, strict=True)]
    source = records(tmp_path / name, rows, IMAGES, compression)
    found = read(Source(source.path, labels="label", features=source.features), ONE)
    np.testing.assert_array_equal(found.inputs, PIXELS)
    np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize("name", ["a.tfrecord", "a.tfrecord.gz"])
def test_records_are_read_when_asked_for(name: str, tmp_path: Path, monkeypatch) -> None:
    rows = [{"picture": png(p), "label": i} for p, i in zip(PIXELS, LABELS, strict=True)]
    compression = "GZIP" if name.endswith("gz") else ""
    source = records(tmp_path / name, rows, IMAGES, compression)
    options = {"labels": "label", "features": source.features, "scale": 1 / 255, "samples": 5}
    decoded = []
    real = reader._KINDS["image"].value

    def counted(value: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
        decoded.append(shape)
        return real(value, shape)

    kind = dataclasses.replace(reader._KINDS["image"], value=counted)
    monkeypatch.setitem(reader._KINDS, "image", kind)
    found = read(Source(source.path, **options), ONE, lazy=True)
    assert len(decoded) == 1  # to know its type
    kept = samples.spread(7, 5)
    np.testing.assert_array_equal(found.labels, LABELS[kept])
    expected = (PIXELS[kept] * np.float64(1 / 255)).astype(np.float32)
    np.testing.assert_array_equal(found.inputs[1:3], expected[1:3])
    assert len(decoded) == 3
    np.testing.assert_array_equal(found.inputs[:], expected)


def test_cut_records(tmp_path: Path) -> None:
    rows = [{"picture": png(p), "label": i} for p, i in zip(PIXELS, LABELS, strict=True)]
    source = records(tmp_path / "a.tfrecord", rows, IMAGES)
    whole = source.path.read_bytes()
    for kept in (len(whole) - 1, len(whole) - 20, 5):
        source.path.write_bytes(whole[:kept])
        with pytest.raises(LoadError, match="damaged or incomplete"):
            read(Source(source.path, labels="label", features=source.features), ONE)


def test_images_of_another_size(tmp_path: Path) -> None:
    flat = np.full((9, 5, 3), 77, np.uint8)
    source = records(tmp_path / "a.tfrecord", [{"picture": png(flat), "label": 1}], IMAGES)
    found = read(Source(source.path, array="picture", features=source.features), ONE).inputs
    np.testing.assert_array_equal(found, np.full((1, 4, 6, 3), 77))


def test_numbers_and_bytes(tmp_path: Path) -> None:
    spec = {"a": {"type": "float32", "shape": [2]}, "b": {"type": "bytes", "shape": [3]}}
    rows = [{"a": np.float32([i, 0.5]), "b": bytes([i, 255, 0])} for i in range(5)]
    source = records(tmp_path / "a.tfrecords", rows, spec)
    found = read(Source(source.path, features=source.features, samples=4), TWO).inputs
    kept = samples.spread(5, 4)
    np.testing.assert_array_equal(found["a"], [[i, 0.5] for i in kept])
    np.testing.assert_array_equal(found["b"], [[i, 255, 0] for i in kept])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{", "is no JSON"),
        ({}, "names no features"),
        ({"a": {"type": "jpg"}}, "the feature 'a' is not as in"),
        ({"a": {"type": "float32", "shape": "2"}}, "the feature 'a' is not as in"),
        ({"a": 3}, "the feature 'a' is not as in"),
        ({"c": {"type": "float32", "shape": [2]}}, "cannot be read as data.*c"),
        ({"a": {"type": "float32", "shape": [3]}}, "cannot be read as data.*a"),
    ],
)
def test_bad_specs(spec: object, said: str, tmp_path: Path) -> None:
    source = records(tmp_path / "a.tfrecord", [{"a": np.float32([1, 2])}], spec)
    with pytest.raises(LoadError, match=said):
        read(source, {"a": (2,)})


def test_without_a_spec(tmp_path: Path) -> None:
    source = records(tmp_path / "a.tfrecord", [], IMAGES)
    with pytest.raises(LoadError, match="--features"):
        read(Source(source.path), ONE)
    with pytest.raises(LoadError, match="holds no examples"):
        read(source, ONE)


def test_damaged(tmp_path: Path) -> None:
    source = records(
        tmp_path / "a.tfrecord",
        [{"a": np.float32([1, 2])}],
        {"a": {"type": "float32", "shape": [2]}},
    )
    source.path.write_bytes(source.path.read_bytes()[:-3])
    with pytest.raises(LoadError, match="damaged or incomplete"):
        read(source, {"a": (2,)})
