"""Fine-tuning by itself: a calibrated model is trained, and its best epoch kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rewriter import keras_compat
from rewriter.errors import RewriterError, RewriterWarning
from rewriter.keras_compat.variables import read as read_variable
from rewriter.reading.load import load_model
from rewriter.training.schedule import freeze_batch_norm
from rewriter.workflow import objectives, tasks
from rewriter.workflow.fine_tuning import Epochs, Progress, fine_tune
from rewriter.workflow.samples import check_enough, chosen, inputs_of, packed, predicted, split


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train; see :func:`finetune`."""

    epochs: int
    learning_rate: float
    batch_size: int
    allow_float: bool
    resume: str | Path | None
    say: Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What :func:`finetune` has done.

    Attributes:
      model: with the weights of the best epoch.
      tuning: the epochs run here, with the scores of the exported file on samples that were not
        trained on.
    """

    model: Any
    tuning: Epochs

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        kept = ("task", "first", "scores", "losses")
        return {name: getattr(self.tuning, name) for name in kept}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        first, scores, shown = self.tuning.first, self.tuning.scores, self.tuning.shown
        if not scores:
            return f"{self.tuning.task}: nothing was left to do"
        best = max(range(len(scores)), key=scores.__getitem__)
        return (
            f"{self.tuning.task}: the file {shown(scores[0])} at epoch {first}, "
            f"{shown(scores[best])} at epoch {first + best}, the best of those run here"
        )


def finetune(
    qat: Any,
    data: Any,
    labels: Any = None,
    *,
    teacher: Any = None,
    loss: Any = None,
    metric: Any = None,
    epochs: int = 5,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    seed: int = 0,
    allow_float: bool = False,
    resume: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Finetuned:
    """Train a calibrated model; the best epoch by the exported file's score is kept.

    Adam with a cosine from ``learning_rate`` to 0, the statistics of the normalizations frozen.
    Every tenth sample is not trained on but scored on, by the file in LiteRT, after each epoch.

    Args:
      qat: a model in phase ``quantize``, as :func:`rewriter.calibrate` leaves it. It is trained.
      data: inputs: an array (N, ...), or a list, tuple or dict of arrays by the model's inputs.
      labels: of ``data``, see :func:`rewriter.quantize`.
      teacher: train towards the outputs of this model instead (distillation, Hinton et al. 2015,
        arXiv:1503.02531), without labels.
      loss, metric: what to train for and to score by, see :func:`rewriter.quantize`.
      epochs: how many.
      learning_rate: at the start.
      batch_size: samples in a step.
      seed: of all that is random.
      allow_float: see :func:`rewriter.export_tflite`.
      resume: a folder in which each epoch is kept, and from which training goes on. It is removed
        when all are done.
      say: gets a line after each epoch.

    Raises:
      RewriterError: neither labels nor a teacher, or both, labels that fit no task, a model that
        is not calibrated or has several outputs, or too few samples to hold some out.
    """
    if (labels is None) == (teacher is None):
        given = "neither" if labels is None else "both"
        raise RewriterError(f"Fine-tuning needs labels, or a teacher. Received: {given}.")
    if labels is None and (loss is not None or metric is not None):
        raise RewriterError("A loss or metric needs labels. Received: a teacher.")
    keras_compat.flavour_of(qat).keras.utils.set_random_seed(seed)
    x = inputs_of(qat, data)
    check_enough(len(x[0]))
    if teacher is not None:
        aim = tasks.imitation(predicted(teacher, inputs_of(teacher, data)))
    else:
        outputs = predicted(qat, x)
        aim = objectives.of(qat, outputs, labels, say, loss, metric) or tasks.imitation(outputs)
    training = Training(epochs, learning_rate, batch_size, allow_float, resume, say)
    model, tuning, kept = train(qat, aim, x, training)
    kept.done(epochs)
    return Finetuned(model, tuning)


def train(
    qat: Any, aim: tasks.Task, x: list[Any], training: Training
) -> tuple[Any, Epochs, Progress]:
    """Go on from what is kept, or begin.

    Args:
      qat: a calibrated model.
      aim: with a label for every sample.
      x: the inputs in the model's order.
      training: how.

    Returns:
      The model (another one if something was kept), the epochs run here, and what is kept: for
      the caller to remove when its output is there.
    """
    rows, held = split(len(x[0]))
    _warn_of_missing_classes(aim, aim.labels[rows])
    resume = training.resume
    of = "" if resume is None else _run(qat, aim, training)
    kept = Progress(None if resume is None else Path(resume), load_model, of)
    if kept.read():
        qat = kept.model()
        training.say(f"going on after epoch {kept.epochs}")
    freeze_batch_norm(qat)
    tuning = fine_tune(
        qat,
        dataclasses.replace(aim, labels=aim.labels[rows]),
        packed([chosen(values, rows) for values in x]),
        (packed([chosen(values, held) for values in x]), aim.labels[held]),
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        kept=kept,
        allow_float=training.allow_float,
        say=training.say,
    )
    return qat, tuning, kept


def _warn_of_missing_classes(aim: tasks.Task, labels: np.ndarray) -> None:
    """Training on some of the classes unlearns the others, and what is held out cannot show it."""
    seen = len(np.unique(labels))
    if seen < aim.count:
        warnings.warn(
            f"The labels to train on have {seen} of the model's {aim.count} classes: training "
            "unlearns the others, which samples held out of the same data do not show. Take data "
            "with all of them, or train towards the trained model's outputs (quantize --distill, "
            "distill=True; finetune --teacher), or not at all (epochs 0).",
            RewriterWarning,
            stacklevel=4,
        )


def _run(qat: Any, aim: tasks.Task, training: Training) -> str:
    """What tells one run from another: the model, what it is trained for, and how."""
    digest = hashlib.sha256(qat.to_json().encode())
    for variable in qat.trainable_variables:
        value = np.asarray(read_variable(variable))
        if value.ndim > 1:  # ranges, which are measured, may differ in their last bits
            digest.update(value.tobytes())
    digest.update(f"{aim.name} {aim.labels.shape}".encode())
    if aim.labels.dtype.kind in "iub":
        digest.update(np.ascontiguousarray(aim.labels).tobytes())
    digest.update(f"{training.learning_rate} {training.batch_size}".encode())
    return digest.hexdigest()
