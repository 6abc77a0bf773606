"""Losses and metrics of the user's: what they are given, and which scores are the better ones."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import commands
import rewriter
from builders import KERASES, keras_of
from rewriter.cli import demo
from rewriter.errors import RewriterError
from rewriter.workflow import objectives

RNG = np.random.default_rng(5)
SHARES = RNG.dirichlet(np.ones(4), 50).astype(np.float32)
CLASSES = RNG.integers(0, 4, 50)
ONE_HOT = np.eye(4, dtype=np.float32)[CLASSES]
RIGHT = np.mean(SHARES.argmax(-1) == CLASSES)
LOG = np.mean(np.log(SHARES[np.arange(50), CLASSES].astype(np.float64)))


def shares_right(labels, outputs):
    return float(np.mean(outputs.argmax(-1) == labels))


def absolute_error(labels, outputs):
    return abs(labels - outputs)


class NeedsArguments:
    def __init__(self, gamma):
        self.gamma = gamma


@pytest.mark.parametrize("name", KERASES)
def test_classes_of_the_users(name):
    """As `compile` of Keras 3 takes them: `--loss mymodule:MyLoss`."""
    keras = keras_of(name)

    class Distance(keras.losses.Loss):
        def call(self, y_true, y_pred):
            return abs(y_true - y_pred)

    class Right(keras.metrics.CategoricalAccuracy):
        pass

    task = objectives.find(keras, SHARES, ONE_HOT, loss=Distance, metric=Right)
    assert task.score(SHARES, task.labels) == pytest.approx(RIGHT)
    found = float(task.loss(keras)(task.labels, SHARES))
    assert found == pytest.approx(np.mean(np.abs(ONE_HOT - SHARES)), rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (None, "task: classification"),
        ("accuracy", "task: classification"),
        (shares_right, "task: classification; the best epoch has the largest shares_right"),
        ("mse", "task: classification; the best epoch has the smallest mse"),
    ],
)
def test_which_way_is_better_is_said(metric, said):
    keras = keras_of("keras")
    model, lines = keras.Sequential([keras.Input((4,)), keras.layers.Softmax()]), []
    labels = CLASSES if metric != "mse" else ONE_HOT
    objectives.of(model, SHARES, labels, lines.append, metric=metric)
    assert lines == [said]


@pytest.mark.parametrize("name", KERASES)
@pytest.mark.parametrize(
    ("metric", "labels", "score"),
    [
        ("accuracy", CLASSES, RIGHT),
        ("accuracy", ONE_HOT, RIGHT),
        ("SparseCategoricalAccuracy", CLASSES, RIGHT),
        ("CategoricalAccuracy", ONE_HOT, RIGHT),
        ("sparse_categorical_crossentropy", CLASSES, LOG),
        ("CategoricalCrossentropy", ONE_HOT, LOG),
        (shares_right, CLASSES, RIGHT),
        (absolute_error, ONE_HOT, -np.mean(np.abs(ONE_HOT - SHARES))),
    ],
)
def test_scores(name, metric, labels, score):
    """The larger is the better one, whichever way the metric goes; labels come as they were given."""
    task = objectives.find(keras_of(name), SHARES, labels, metric=metric)
    for _ in range(2):  # a metric begins anew
        assert task.score(SHARES, task.labels) == pytest.approx(score, rel=1e-5)
    assert task.name == "classification" and task.count == 4


@pytest.mark.parametrize("name", KERASES)
@pytest.mark.parametrize(
    ("loss", "labels", "value"),
    [
        ("categorical_crossentropy", ONE_HOT, -LOG),
        ("SparseCategoricalCrossentropy", CLASSES, -LOG),
        (absolute_error, ONE_HOT, np.mean(np.abs(ONE_HOT - SHARES))),
    ],
)
def test_losses(name, loss, labels, value):
    """The score stays that of the task; the loss takes the labels as they were given."""
    keras = keras_of(name)
    task = objectives.find(keras, SHARES, labels, loss=loss)
    assert task.score(SHARES, task.labels) == RIGHT
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Activation("linear")(inputs))
    model.compile("sgd", task.loss(keras))
    assert model.evaluate(SHARES, task.labels, verbose=0) == pytest.approx(value, rel=1e-5)


def test_labels_of_no_task():
    """Several classes at once: a loss takes them, and is then the score."""
    labels = (RNG.random((50, 4)) > 0.5).astype(np.float32)
    labels[0] = 1
    keras = keras_of("keras")
    plain = objectives.find(keras, SHARES, labels)
    assert plain.name == "regression"  # of the outputs' shape
    chosen = objectives.find(keras, SHARES, labels, loss="binary_crossentropy")
    p = SHARES.astype(np.float64)
    expected = np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    chosen = objectives.find(keras, SHARES, labels[:, None], loss=lambda y, out: abs(y[:, 0] - out))
    assert chosen.score(SHARES, chosen.labels) == pytest.approx(-np.abs(labels - SHARES).mean())
    by_both = objectives.find(
        keras, SHARES, labels, loss="binary_crossentropy", metric="BinaryCrossentropy"
    )
    assert by_both.score(SHARES, labels) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": "crossentropee"}, r"no loss 'crossentropee'.*name of .*losses"),
        ({"metric": "acuracy"}, r"no metric 'acuracy'.*name of .*metrics"),
        ({"loss": 3}, "A loss is a name, a function or an object. Received: int"),
        ({"metric": lambda labels, out: labels[:, 3] - out}, "<lambda> does not take these labels"),
        ({"loss": "categorical_crosentropy"}, "Did you mean 'categorical_crossentropy'"),
        ({"metric": "AUCC"}, "Did you mean 'AUC'"),
        ({"loss": "binary_crossentropy"}, r"label has the shape \(\), its output \(4,\).*one-hot"),
        ({"loss": "mse"}, r"Error: Incompatible shapes: \[[^{]*\]\. A sample's label"),
        ({"loss": NeedsArguments}, "NeedsArguments is a class that cannot be made without"),
    ],
)
@pytest.mark.parametrize("name", KERASES)
def test_refused(name, options, said):
    with pytest.raises(RewriterError, match=said):
        objectives.find(keras_of(name), SHARES, CLASSES, **options)


def test_without_labels(tmp_path):
    model, x = rewriter.load_model(demo.MODEL), demo.digits().x_train[:20]
    with pytest.raises(RewriterError, match="A loss needs labels. Received: mse"):
        rewriter.quantize(model, x, output=tmp_path / "m.tflite", loss="mse", progress=False)
    with pytest.raises(RewriterError, match="fit no task.*Or say the loss that takes them"):
        rewriter.quantize(
            model, x, np.zeros((20, 3)), output=tmp_path / "m.tflite", metric="mse", progress=False
        )
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, capsys, monkeypatch):
    """The digits by a hinge loss of one's own, scored by the share of the best three."""
    data = demo.digits()
    np.savez(tmp_path / "d.npz", x=data.x_train[:300], y=data.y_train[:300])
    (tmp_path / "of_mine.py").write_text(
        "import tensorflow as tf\n"
        "def margin(labels, out):\n"
        "    right = tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), 10)\n"
        "    return tf.reduce_max(out * (1 - right) - out * right, -1) - 5\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    said = commands.output_of(
        capsys, "quantize", demo.MODEL, "-o", "m.tflite", "--data", "d.npz", "--labels", "y",
        "--epochs", "1", "--loss", "of_mine:margin", "--metric",
        "SparseTopKCategoricalAccuracy", "--json",
    )  # fmt: skip
    values = json.loads(said)
    assert values["task"] == "classification by margin"
    assert values["scores"]["file"] > 0.99 and values["losses"][1] < -4
    assert len(values["epochs"]) == 2
