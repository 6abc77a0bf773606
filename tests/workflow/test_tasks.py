"""Which task labels and outputs make, with its loss and its score."""

from __future__ import annotations

import numpy as np
import pytest
import tf_keras

import rewriter
from rewriter.errors import RewriterError
from rewriter.workflow import tasks

RNG = np.random.default_rng(0)
SOFTMAX = RNG.dirichlet(np.ones(4), size=20).astype(np.float32)
LOGITS = RNG.normal(size=(20, 4)).astype(np.float32)
CLASSES = RNG.integers(4, size=20)
IMAGES = RNG.normal(size=(20, 5, 5, 2)).astype(np.float32)

CASES = {
    "classes": (SOFTMAX, CLASSES, "classification", "SparseCategoricalCrossentropy"),
    "classes of logits": (LOGITS, CLASSES, "classification", "SparseCategoricalCrossentropy"),
    "a column": (SOFTMAX, CLASSES[:, None], "classification", "SparseCategoricalCrossentropy"),
    "one-hot": (SOFTMAX, np.eye(4)[CLASSES], "classification", "SparseCategoricalCrossentropy"),
    "floats": (SOFTMAX, CLASSES.astype(float), "classification", "SparseCategoricalCrossentropy"),
    "binary": (SOFTMAX[:, :1], CLASSES % 2, "binary classification", "BinaryCrossentropy"),
    "binary logits": (
        LOGITS[:, :1],
        CLASSES % 2 == 1,
        "binary classification",
        "BinaryCrossentropy",
    ),
    "numbers": (LOGITS[:, :1], RNG.normal(size=20), "regression", "MeanSquaredError"),
    "vectors": (LOGITS, RNG.normal(size=(20, 4)), "regression", "MeanSquaredError"),
    "reconstruction": (IMAGES, IMAGES, "regression", "MeanSquaredError"),
}


@pytest.mark.parametrize("case", CASES)
def test_tasks(case):
    outputs, labels, name, loss = CASES[case]
    task = tasks.find(outputs, labels)
    made = task.loss(tf_keras)
    assert (task.name, type(made).__name__) == (name, loss)
    assert len(task.labels) == 20
    assert np.isfinite(float(made(task.labels, outputs)))
    if hasattr(made, "get_config") and "from_logits" in made.get_config():
        assert made.get_config()["from_logits"] == ("logits" in case)


def test_scores():
    classes = tasks.find(SOFTMAX, CLASSES)
    assert classes.score(np.eye(4)[CLASSES], classes.labels) == 1
    wrong = (CLASSES + np.r_[np.ones(5), np.zeros(15)].astype(int)) % 4
    assert classes.score(np.eye(4)[wrong], classes.labels) == 0.75
    assert classes.shown(0.75) == "75.00 %"
    binary = tasks.find(SOFTMAX[:, :1], CLASSES % 2)
    assert binary.score((CLASSES % 2)[:, None] * 0.9, binary.labels) == 1
    logits = tasks.find(LOGITS[:, :1], CLASSES % 2)
    assert logits.score((CLASSES % 2)[:, None] * 0.2 - 0.1, logits.labels) == 1
    numbers = tasks.find(LOGITS, LOGITS)
    assert numbers.score(LOGITS + 2, numbers.labels) == pytest.approx(-4)
    copy = tasks.imitation(SOFTMAX)
    assert copy.score(1.1 * SOFTMAX, SOFTMAX) == pytest.approx(20, abs=1e-3)
    assert copy.loss(tf_keras) is rewriter.distillation_loss and copy.still
    assert type(tasks.imitation(LOGITS).loss(tf_keras)).__name__ == "MeanSquaredError"


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (SOFTMAX, CLASSES + 1, "classes are 0 to 3. Received: labels from"),
        (SOFTMAX, np.zeros((20, 3)), "fit no task.*shape \\(20, 3\\)"),
        (IMAGES, CLASSES, "fit no task"),
    ],
)
def test_labels_of_no_task(outputs, labels, message):
    with pytest.raises(RewriterError, match=message):
        tasks.find(outputs, labels)
