"""Phases: whether a rewritten model trains in float, observes ranges, or quantizes.

The phase is a non-trainable variable of every layer of ours, read by a condition inside the
graph: it can change while a compiled ``fit`` runs, without retracing, and it is saved with the
weights.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from rewriter import kernels
from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import flat_layers
from rewriter.kernels.codes import FLOAT, OBSERVE, QUANTIZE, QUANTIZE_FIXED, QUANTIZE_FROZEN

PHASES = {"float": FLOAT, "observe": OBSERVE, "quantize": QUANTIZE}

# Read when a function is traced.
_only: contextvars.ContextVar[int | None] = contextvars.ContextVar("only", default=None)


@contextlib.contextmanager
def only(code: int) -> Iterator[None]:
    """Within: what is traced has no conditions, and is in this phase for good.

    TensorFlow then fuses what it would fuse in the original model.
    """
    token = _only.set(code)
    try:
        yield
    finally:
        _only.reset(token)


def read(variable: Any) -> Any:
    """The phase in a layer's variable as an int32 scalar tensor."""
    code = _only.get()
    return kernels.read_variable(variable) if code is None else tf.constant(code)


def phased_layers(model: Any) -> Iterator[Any]:
    """Every layer (sublayers included) that has a phase."""
    for layer in flat_layers(model):
        if getattr(layer, "rewriter_phased", False):
            yield layer


def set_phase(model: Any, phase: str, *, freeze_ranges: bool = False) -> None:
    """Switch every layer of a rewritten model to ``phase``; no retracing.

    Args:
      model: a model that :func:`rewriter.rewrite` returned.
      phase: ``"float"`` (the original model), ``"observe"`` (the original model, ranges of the
        activations are recorded) or ``"quantize"`` (integer arithmetic emulated).
      freeze_ranges: in ``"quantize"``, keep the ranges of the activations as they are while
        training instead of letting them follow the batches; and learned scales, of kernels too.

    Raises:
      ValueError: for another name.
      CalibrationError: the range of an activation is learned, and there is none to start from.
      UnsupportedModelError: if the model has no layer with a phase.
    """
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {sorted(PHASES)}. Received: {phase!r}.")
    code = PHASES[phase]
    if code == QUANTIZE and freeze_ranges:
        code = QUANTIZE_FROZEN
    for layer in _required(model):
        assign(layer, code)


def assign(layer: Any, code: int) -> None:
    """Put one layer into a phase; a range that it holds is then frozen in any case.

    What training learns of its ranges gets its first values before it is quantized.

    Raises:
      CalibrationError: the range of an activation is learned, and there is none to start from.
    """
    if code >= QUANTIZE and hasattr(layer, "start_learning"):
        layer.start_learning()
    held = code == QUANTIZE and getattr(layer, "holds_range", False)
    if (code == QUANTIZE_FROZEN or held) and getattr(layer, "range_is_set", False):
        code = QUANTIZE_FIXED
    layer.phase.assign(code)


def codes(model: Any) -> list[tuple[Any, int]]:
    """The layers of a rewritten model that have a phase, each with the code in its variable.

    Raises:
      UnsupportedModelError: if there is none.
    """
    return [(layer, int(layer.phase.numpy())) for layer in _required(model)]


def get_phase(model: Any) -> str:
    """The phase of a rewritten model: ``"float"``, ``"observe"``, ``"quantize"`` or ``"mixed"``.

    Raises:
      UnsupportedModelError: if the model has no layer with a phase.
    """
    found = {min(code, QUANTIZE) for _, code in codes(model)}
    if len(found) > 1:
        return "mixed"
    (code,) = found
    return next(name for name, value in PHASES.items() if value == code)


def _required(model: Any) -> list[Any]:
    layers = list(phased_layers(model))
    if not layers:
        raise UnsupportedModelError(
            f"The model {model.name!r} has no quantization-aware layers. "
            "Pass the model that rewriter.rewrite returned."
        )
    return layers
