"""Data as people have them: each gives the ranges that the array gives, or says what to give."""

from __future__ import annotations

import itertools

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import builders
import rewriter
from builders import KERASES, fresh, keras_of
from residuals import ranges
from rewriter.errors import CalibrationError
from rewriter.training.schedule import batch_norms

X = builders.normal(40, 6, 6, 3)
Y = np.arange(40) % 4
both = pytest.mark.parametrize("kind", KERASES)


@pytest.fixture(scope="module", params=KERASES)
def qat(request):
    keras = fresh(keras_of(request.param))
    inputs = keras.Input((6, 6, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="first")(inputs)
    return rewriter.rewrite(keras.Model(inputs, keras.layers.BatchNormalization()(x)))


class Sequence(tf_keras.utils.Sequence):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


class PyDataset(keras3.utils.PyDataset):
    def __getitem__(self, index):
        return X[8 * index % 40 :][:8], Y[8 * index % 40 :][:8]

    @property
    def num_batches(self):
        return self.count

    def __init__(self, count):
        super().__init__()
        self.count = count


class Frame:
    """As much of a pandas DataFrame as counts."""

    def __init__(self, columns):
        self._columns = columns
        self.columns = list(columns)
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, name):
        return Column(self._columns[name])

    def to_numpy(self):
        return np.stack(list(self._columns.values()), axis=1)


class Column:
    def __init__(self, values):
        self._values = values

    def to_numpy(self):
        return self._values


def batches():
    return (X[start : start + 8] for start in range(0, 40, 8))


def representative_dataset():
    for sample in X:
        yield [sample[None]]


def _images():
    generator = tf_keras.preprocessing.image.ImageDataGenerator()
    return generator.flow(X, Y, batch_size=8, shuffle=False)


GOOD = {
    "generator": (batches, {}),
    "generator of pairs": (lambda: ((b, None) for b in batches()), {}),
    "generator of dicts": (lambda: ({"image": b} for b in batches()), {}),
    "generator of lists": (lambda: ([b.tolist()] for b in batches()), {}),
    "generator of tensors": (lambda: map(tf.constant, batches()), {}),
    "function": (lambda: batches, {}),
    "representative_dataset": (lambda: representative_dataset, {}),
    "list iterator": (lambda: iter(list(batches())), {}),
    "Sequence": (Sequence, {}),
    "PyDataset": (lambda: PyDataset(5), {}),
    "ImageDataGenerator": (_images, {}),
    "endless PyDataset": (lambda: PyDataset(None), {"steps": 5}),
    "endless generator": (lambda: itertools.cycle(list(batches())), {"steps": 5}),
    "endless dataset": (
        lambda: tf.data.Dataset.from_tensor_slices(X).repeat().batch(16),
        {"samples": 40},
    ),
    "more than there is": (lambda: X, {"steps": 1000, "samples": 1000}),
    "steps of an array": (lambda: np.concatenate([X, 9 * X]), {"steps": 5, "batch_size": 8}),
    "samples of an array": (lambda: np.concatenate([X, 9 * X]), {"samples": 40}),
}


@pytest.fixture(scope="module")
def expected(qat):
    return ranges(rewriter.calibrate(qat, X, progress=False))


@pytest.mark.parametrize("name", GOOD)
def test_good_data(qat, expected, name):
    make, options = GOOD[name]
    rewriter.calibrate(qat, make(), progress=False, **options)
    found = ranges(qat)
    for key, pair in expected.items():
        np.testing.assert_allclose(found[key], pair, rtol=1e-5)


def test_reestimation_takes_them_too(qat):
    norm = batch_norms(qat)[0]
    results = []
    for data, options in ((X, {"batch_size": 8}), (itertools.cycle(list(batches())), {"steps": 5})):
        rewriter.reestimate_batch_norm(qat, data, progress=False, **options)
        results.append(np.asarray(norm.moving_variance))
    np.testing.assert_allclose(*results, rtol=1e-5)


BAD = {
    "None": (None, {}, "no data.*None.*array"),
    "a path": ("data.npz", {}, "no data.*data.npz"),
    "a number": (3.0, {}, "cannot be read.*3.0"),
    "an array of nothing": (np.float32(3), {}, "no array of samples.*3.0"),
    "an object": (object(), {}, "cannot be read"),
    "batch_size 0": (X, {"batch_size": 0}, "batch_size must be a positive.*0"),
    "batch_size None": (X, {"batch_size": None}, "batch_size must be a positive.*None"),
    "steps 0": (X, {"steps": 0}, "steps must be a positive.*0"),
    "samples": (X, {"samples": 1.5}, "samples must be a positive.*1.5"),
    "unbatched": (tf.data.Dataset.from_tensor_slices(X), {}, r"not batches.*\.batch\(32\)"),
    "samples of a generator": ((x for x in X), {}, r"not batches.*x\[None\]"),
    "one sample": (X[0], {}, r"not batches.*x\[None\]"),
    "endless": (tf.data.Dataset.from_tensors(X).repeat(), {}, "no end.*steps=100"),
    "endless PyDataset": (PyDataset(None), {}, "PyDataset has no end.*steps=100"),
    "a function of an argument": (lambda x: X, {}, "without arguments"),
    "an empty generator": (iter(()), {}, "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data(qat, name):
    data, options, message = BAD[name]
    with pytest.raises(CalibrationError, match=message):
        rewriter.calibrate(qat, data, progress=False, **options)


def test_a_generator_that_does_not_end_is_told(qat, monkeypatch):
    monkeypatch.setattr(rewriter.training.batches, "_MANY", 3)
    with pytest.warns(UserWarning, match="3 batches .* give samples="):
        rewriter.calibrate(qat, batches(), progress=False)


@both
def test_frames(kind):
    """One input of all columns, or columns by the names of the inputs."""
    keras = fresh(keras_of(kind))
    columns = {name: builders.normal(20, seed=i) for i, name in enumerate("abc")}
    one = keras.Input((3,), name="table")
    norm = keras.layers.BatchNormalization
    qat = rewriter.rewrite(keras.Model(one, norm()(keras.layers.Dense(2)(one))))
    first = ranges(rewriter.calibrate(qat, Frame(columns).to_numpy(), progress=False))
    assert ranges(rewriter.calibrate(qat, Frame(columns), progress=False)) == first
    several = [keras.Input((1,), name=name) for name in "ba"]
    joined = keras.layers.Concatenate()(several)
    qat = rewriter.rewrite(keras.Model(several, norm()(keras.layers.Dense(2)(joined))))
    by_name = {name: columns[name][:, None] for name in "ab"}
    first = ranges(rewriter.calibrate(qat, by_name, progress=False))
    assert ranges(rewriter.calibrate(qat, Frame(columns), progress=False)) == first
    del columns["a"]
    with pytest.raises(CalibrationError, match="lacks the input 'a'.*DataFrame.*'b', 'c'"):
        rewriter.calibrate(qat, Frame(columns), progress=False)


def test_verify_takes_them_too(qat, tmp_path):
    rewriter.calibrate(qat, X, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    endless = itertools.cycle(list(batches()))
    result = rewriter.verify(qat, tmp_path / "m.tflite", endless, samples=11, progress=False)
    assert result.comparison.samples == 11


@both
def test_a_dict_in_another_order_than_the_models(kind):
    """The size of one input is no hint at the samples of another."""
    keras = fresh(keras_of(kind))
    k = keras.layers
    tokens, feats = keras.Input((None, 3), name="tokens"), keras.Input((3,), name="feats")
    x = k.Concatenate()([k.GlobalAveragePooling1D()(tokens), feats])
    qat = rewriter.rewrite(keras.Model([tokens, feats], k.BatchNormalization()(k.Dense(2)(x))))
    data = {"feats": builders.normal(8, 3), "tokens": builders.normal(8, 5, 3)}
    rewriter.calibrate(qat, data, progress=False)
    given = ranges(qat)
    rewriter.calibrate(qat, [data["tokens"], data["feats"]], progress=False)
    assert ranges(qat) == given


def test_a_dataset_that_does_not_say_how_long_it_is(qat, monkeypatch):
    monkeypatch.setattr("rewriter.training.batches._MANY", 3)
    made = tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec((None, 6, 6, 3)))
    with pytest.warns(UserWarning, match="have given 3 batches"):
        rewriter.calibrate(qat, made, progress=False)
