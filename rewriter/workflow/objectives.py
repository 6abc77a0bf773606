"""Losses and metrics that the user chooses, in place of those that labels and outputs suggest."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import keras_compat
from rewriter.errors import RewriterError, short
from rewriter.workflow import tasks

ACCURACY = ("accuracy", "acc")
_TRIED = 2  # samples on which a loss and a metric are tried before anything is trained
# As Keras's callbacks tell it (``mode="auto"``): what is called so is better when it is smaller.
_SMALLER = re.compile(
    r"error|loss|crossentropy|divergence|hinge|poisson|log_?cosh|^(mse|mae|mape|msle|kld)$", re.I
)


def of(
    model: Any,
    outputs: np.ndarray,
    labels: Any,
    say: Callable[[str], None],
    loss: Any = None,
    metric: Any = None,
) -> tasks.Task | None:
    """The task of a model, or None where there are no labels.

    Args:
      model: with one output.
      outputs: of all samples (N, ...).
      labels: of the same, or None.
      say: gets a line with its name.
      loss, metric: see :func:`find`.

    Raises:
      RewriterError: the model has several outputs, or labels, loss and metric do not fit each other
        or these samples.
    """
    if len(model.outputs) != 1:
        raise RewriterError(
            f"Labels and fine-tuning need a model with one output. Received: "
            f"{len(model.outputs)}. Train it by your own loop, between calibrate and "
            "export_tflite."
        )
    if labels is None:
        for option, value in (("loss", loss), ("metric", metric)):
            if value is not None:
                raise RewriterError(f"A {option} needs labels. Received: {_name(value)}, and none.")
        return None
    if len(np.asarray(labels)) != len(outputs):
        raise RewriterError(
            f"Data and labels differ in number. Received: {len(outputs)} samples and "
            f"{len(np.asarray(labels))} labels."
        )
    task = find(keras_compat.flavour_of(model).keras, outputs, labels, loss, metric)
    best = ""
    if metric is not None and metric not in ACCURACY:
        # What a function of the user's means by its numbers, only its name tells.
        sign, name = task.unit
        best = f"; the best epoch has the {'largest' if sign > 0 else 'smallest'} {name}"
    say(f"task: {task.name}{best}")
    return task


def find(
    keras: Any,
    outputs: np.ndarray,
    labels: Any,
    loss: Any = None,
    metric: Any = None,
) -> tasks.Task:
    """The task of a model with one output, trained for this loss and scored by this metric.

    Args:
      keras: the model's.
      outputs: of some samples (N, ...).
      labels: of the same; any that the loss takes.
      loss: a name of ``keras.losses``, or a function or object as ``compile`` takes it; None: by
        the labels, see :func:`rewriter.workflow.tasks.find`.
      metric: ``"accuracy"``, a name of ``keras.metrics``, a function of labels and outputs, or a
        metric; None: by the labels, else the loss. What is called an error, loss, crossentropy or
        divergence is better when it is smaller, all else when it is larger.

    Raises:
      RewriterError: no such name, labels that neither fit a task nor come with a loss, or a loss or
        metric that does not take them.
    """
    if loss is None and metric is None:
        return tasks.find(outputs, labels)
    given = np.asarray(labels)
    try:
        found = tasks.find(outputs, given)
    except RewriterError as error:
        if loss is None:
            raise RewriterError(f"{error} Or say the loss that takes them.") from error
        found = None
    encode = _encoder(found, given)
    own = np.asarray(given if found is None else found.labels)
    wanted = None if loss is None else _named(keras.losses, loss, "loss")
    if wanted is not None:
        _try(loss, "loss", wanted, encode(own[:_TRIED]), outputs[:_TRIED])
    if found is None:
        found = tasks.Task("training by a loss", own, lambda keras: wanted, _zero, str)
    if wanted is not None:
        found = dataclasses.replace(
            found,
            name=f"{found.name} by {_name(loss)}",
            loss=lambda keras: lambda y, out: wanted(encode(y), out),
        )
    if metric is None and found.score is _zero:
        metric = loss
    if metric is None or (metric in ACCURACY and found.classes is not None):
        return found
    kind = "loss" if metric is loss else "metric"
    measure = _measure(_named(keras.losses if kind == "loss" else keras.metrics, metric, kind))
    _try(metric, kind, measure, encode(own[:_TRIED]), outputs[:_TRIED])
    name = _name(metric)
    sign = -1.0 if kind == "loss" or _SMALLER.search(name) else 1.0
    return dataclasses.replace(
        found,
        score=lambda out, y: sign * measure(encode(y), out),
        shown=lambda score: f"{name} {sign * score:.6g}",
        unit=(sign, name),
    )


def _encoder(task: tasks.Task | None, given: np.ndarray) -> Callable[[Any], Any]:
    """From the task's labels back to the user's: classes may have been one-hot."""
    if task is None or task.name != tasks.CLASSES or given.ndim < 2 or given.shape[1] == 1:
        return lambda labels: labels
    count = task.count

    def one_hot(labels: Any) -> Any:
        if isinstance(labels, np.ndarray):
            return np.eye(count, dtype=np.float32)[labels.reshape(-1)]
        return tf.one_hot(tf.reshape(tf.cast(labels, tf.int32), [-1]), count)

    return one_hot


def _named(module: Any, given: Any, kind: str) -> Any:
    """What a name stands for in ``keras.losses`` or ``keras.metrics``; anything else is itself."""
    if not isinstance(given, str):
        if not callable(given):
            raise RewriterError(
                f"A {kind} is a name, a function or an object. Received: {type(given).__name__}."
            )
        return _made(given, kind) if isinstance(given, type) else given
    found = getattr(module, given, None)
    if isinstance(found, type):
        return found()
    try:
        found = module.get(given)
    except Exception:
        found = None
    if not callable(found):  # tf_keras gives back the name of a metric that it does not know
        near = difflib.get_close_matches(given, [n for n in dir(module) if n[0] != "_"], 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise RewriterError(
            f"Keras has no {kind} {given!r}.{meant} Take a name of {module.__name__}, or a "
            "function (on the command line MODULE:FUNCTION)."
        )
    return found


def _made(cls: type, kind: str) -> Any:
    """An object of a class of losses or metrics, as ``compile`` of Keras 3 makes one."""
    try:
        return cls()
    except Exception as error:  # a class of the user's may raise anything
        raise RewriterError(
            f"The {kind} {cls.__name__} is a class that cannot be made without arguments: "
            f"{type(error).__name__}: {short(error)}. Give an object, or a function."
        ) from error


def _measure(metric: Any) -> Callable[[Any, Any], float]:
    """The mean of a function's values, or a metric's result, over all samples."""
    if not hasattr(metric, "update_state"):
        return lambda labels, out: float(np.mean(np.asarray(metric(labels, out))))

    def result(labels: Any, out: Any) -> float:
        metric.reset_state()
        metric.update_state(labels, out)
        return float(np.mean(np.asarray(metric.result())))

    return result


def _try(given: Any, kind: str, call: Callable[[Any, Any], Any], labels: Any, out: Any) -> None:
    try:
        call(labels, out)
    except Exception as error:  # a function of the user's may raise anything
        shapes = np.shape(labels)[1:], np.shape(out)[1:]
        remedy = ""
        if shapes == ((), shapes[1]) and shapes[1]:
            remedy = " If it compares each output with a label of its own, give one-hot labels."
        # What TensorFlow says of its operators and devices is no help.
        said = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", short(error)).rstrip(". ")
        raise RewriterError(
            f"The {kind} {_name(given)} does not take these labels and the model's outputs: "
            f"{type(error).__name__}: {said}. A sample's label has the shape {shapes[0]}, its "
            f"output {shapes[1]}.{remedy}"
        ) from error


def _name(given: Any) -> str:
    if isinstance(given, str):
        return given
    return str(getattr(given, "name", None) or getattr(given, "__name__", type(given).__name__))


def _zero(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 0.0
