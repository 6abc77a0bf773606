"""What a model was trained for, told from its outputs and the labels: the loss and the score.

A task is a row: how its labels look, its loss, and how outputs are scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.errors import RewriterError
from rewriter.training.distillation import distillation_loss

CLASSES, BINARY = "classification", "binary classification"
REGRESSION, IMITATION = "regression", "imitation of the trained model"
ACCURACY = (100.0, "accuracy in %")
_SUM = 1e-3  # of 1: outputs of a softmax add up to it


@dataclasses.dataclass(frozen=True)
class Task:
    """What outputs are for.

    Attributes:
      name: for people.
      labels: as the loss takes them.
      loss: ``loss(keras)`` makes it, of that Keras.
      score: of outputs (N, ...) and labels; the larger, the better.
      shown: a score as text.
      unit: how scores are drawn: a factor, and what an axis says.
      classes: the class that outputs (N, ...) say, int (N,); None where there are none.
      count: how many classes there are; 0 for none.
      still: whether layers of noise are switched off in training.
    """

    name: str
    labels: np.ndarray
    loss: Callable[[Any], Any]
    score: Callable[[np.ndarray, np.ndarray], float]
    shown: Callable[[float], str]
    unit: tuple[float, str] = (1.0, "score")
    classes: Callable[[np.ndarray], np.ndarray] | None = None
    count: int = 0
    still: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Tested:
    """What the models were scored on.

    Attributes:
      inputs: arrays (N, ...) in the order of the model's inputs.
      labels: of them, in the task's form.
      task: how outputs are scored.
      classes: the class of each sample by ``"float model"``, ``"quantized model"`` and ``"file"``,
        int (N,); empty where the task has none.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray
    task: Task
    classes: Mapping[str, np.ndarray]


def find(outputs: np.ndarray, labels: Any) -> Task:
    """The task of a model with one output.

    Args:
      outputs: of some samples (N, ...).
      labels: of the same or other samples: integers (M,) or (M, 1) for classes, (M, C) of zeros and
        one for classes, 0 and 1 for an output of one number, else numbers of the outputs' shape.

    Raises:
      RewriterError: they are none of these.
    """
    labels = np.asarray(labels)
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    channels = outputs.shape[-1] if outputs.ndim > 1 else 1
    whole = bool(labels.dtype.kind in "iub" or np.all(labels == np.round(labels)))
    if outputs.ndim == 2 and channels > 1 and flat.ndim == 1 and whole:
        if flat.min() < 0 or flat.max() >= channels:
            raise RewriterError(
                f"The model has {channels} outputs, so classes are 0 to {channels - 1}. Received: "
                f"labels from {flat.min()} to {flat.max()}."
            )
        return _classes(outputs, flat.astype(np.int64))
    one_hot = labels.shape[1:] == outputs.shape[1:] and whole and channels > 1
    if outputs.ndim == 2 and one_hot and np.all(labels.sum(-1) == 1) and labels.min() >= 0:
        return _classes(outputs, labels.argmax(-1))
    if channels == 1 and flat.ndim == 1 and set(np.unique(flat)) <= {0, 1}:
        return _binary(outputs, flat.astype(np.float32))
    if labels.shape[1:] == outputs.shape[1:] or (channels == 1 and flat.ndim == 1):
        shaped = labels.reshape((-1, *outputs.shape[1:])).astype(np.float32)
        return Task(
            REGRESSION,
            shaped,
            lambda keras: keras.losses.MeanSquaredError(),
            lambda out, own: -float(np.mean(np.square(out.reshape(own.shape) - own))),
            lambda score: f"mean squared error {-score:.6g}",
            (-1.0, "mean squared error"),
        )
    raise RewriterError(
        "The labels fit no task: classes as integers (N,) or (N, C) of zeros and one, 0 and 1 for "
        f"one output, or numbers of the outputs' shape {outputs.shape[1:]}. Received: labels of "
        f"shape {labels.shape} and type {labels.dtype}."
    )


def imitation(wanted: np.ndarray) -> Task:
    """To give the outputs of the trained model (distillation, Hinton et al. 2015).

    Args:
      wanted: those outputs (N, ...).
    """
    softmax = is_softmax(wanted)

    def loss(keras: Any) -> Any:
        return distillation_loss if softmax else keras.losses.MeanSquaredError()

    return Task(
        IMITATION,
        wanted,
        loss,
        lambda out, own: _decibels(own, out.reshape(own.shape)),
        lambda score: f"{score:.2f} dB to the trained model",
        (1.0, "dB to the trained model"),
        still=True,
    )


def _classes(outputs: np.ndarray, labels: np.ndarray) -> Task:
    logits = not is_softmax(outputs)
    return Task(
        CLASSES,
        labels,
        lambda keras: keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
        lambda out, own: float(np.mean(out.reshape(len(own), -1).argmax(-1) == own)),
        _percent,
        ACCURACY,
        lambda out: out.reshape(len(out), -1).argmax(-1),
        outputs.shape[1],
    )


def _binary(outputs: np.ndarray, labels: np.ndarray) -> Task:
    logits = bool(outputs.min() < 0 or outputs.max() > 1)
    middle = 0.0 if logits else 0.5
    return Task(
        BINARY,
        labels.reshape(-1, 1),
        lambda keras: keras.losses.BinaryCrossentropy(from_logits=logits),
        lambda out, own: float(np.mean((out.reshape(len(own), -1) > middle) == (own > 0.5))),
        _percent,
        ACCURACY,
        lambda out: (out.reshape(len(out)) > middle).astype(np.int64),
        2,
    )


def is_softmax(outputs: np.ndarray) -> bool:
    """Whether outputs (N, ...) are shares that add up to 1."""
    ones = np.abs(outputs.sum(-1) - 1).max() < _SUM
    return bool(outputs.ndim == 2 and outputs.shape[1] > 1 and ones and outputs.min() >= 0)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _decibels(expected: np.ndarray, found: np.ndarray) -> float:
    noise = float(np.sum(np.square(np.asarray(expected, np.float64) - found)))
    signal = float(np.sum(np.square(np.asarray(expected, np.float64))))
    return 10 * float(np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
