"""Whether the moving statistics of the normalizations are those of the data."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterWarning
from rewriter.keras_compat.variables import read
from rewriter.kernels.composed_norm import reestimating
from rewriter.quantization import phases
from rewriter.training.schedule import batch_norms

# Batches of a few samples vary by less than this, in the median over the channels of a layer: as
# the quotient of two variances, and as a distance of means in standard deviations.
_QUOTIENT, _DISTANCE = 8.0, 2.0
_SAMPLES = 32


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """A normalization whose moving statistics are not those of a batch.

    Attributes:
      name: of the layer.
      quotient: the median over the channels of the batch's variance to the moving one.
      distance: the median distance of the means, in standard deviations of the batch.
    """

    name: str
    quotient: float
    distance: float


def disagreements(model: Any, inputs: Any) -> list[Disagreement]:
    """The normalizations that would compute something else in training than in inference.

    Args:
      model: a rewritten one; its statistics and phases stay as they are.
      inputs: a batch of its inputs. Up to 32 samples of it are run, in float.
    """
    norms = [norm for norm in batch_norms(model) if norm.trainable and not int(read(norm.frozen))]
    if not norms:
        return []
    every = [v for norm in batch_norms(model) for v in (norm.moving_mean, norm.moving_variance)]
    before = [(variable, read(variable)) for variable in every]
    moving = [(read(norm.moving_mean), read(norm.moving_variance)) for norm in norms]
    few = tf.nest.map_structure(lambda value: value[:_SAMPLES], inputs)
    try:
        with phases.only(phases.FLOAT), reestimating(tf.constant(1.0)):
            model(few, training=False)
        found = [(read(norm.moving_mean), read(norm.moving_variance)) for norm in norms]
    finally:
        for variable, value in before:
            variable.assign(value)
    result = []
    for norm, theirs, ours in zip(norms, moving, found, strict=True):
        disagreement = _compared(norm, theirs, ours)
        if disagreement is not None:
            result.append(disagreement)
    return result


def _compared(
    norm: Any, moving: tuple[np.ndarray, np.ndarray], batch: tuple[np.ndarray, np.ndarray]
) -> Disagreement | None:
    (mean, variance), (own_mean, own_variance) = (
        tuple(np.asarray(v, np.float64) for v in pair) for pair in (moving, batch)
    )
    epsilon = float(norm.epsilon)
    quotients = (own_variance + epsilon) / (variance + epsilon)
    distances = np.abs(own_mean - mean) / np.sqrt(own_variance + epsilon)
    quotient, distance = float(np.median(quotients)), float(np.median(distances))
    apart = not 1 / _QUOTIENT <= quotient <= _QUOTIENT or distance > _DISTANCE
    return Disagreement(norm.name, quotient, distance) if apart else None


def warn(model: Any, inputs: Any) -> None:
    """Warn if training would see other statistics than a calibration has seen.

    Ranges are those of inference, which uses the moving statistics. Where these are far from the
    data's (momentum near 1 and few steps of training), activations in training leave the ranges
    and are clipped, whole channels become constant, and gradients grow by the reciprocal root of
    epsilon in every layer.
    """
    found = disagreements(model, inputs)
    if not found:
        return
    worst = max(found, key=lambda each: abs(np.log(each.quotient)) + each.distance)
    warnings.warn(
        f"The moving statistics of {len(found)} of {len(batch_norms(model))} batch normalizations "
        f"of {model.name!r} are not those of the calibration data: in {worst.name!r} a batch's "
        f"variance is {worst.quotient:.3g} times the moving one, and the means are "
        f"{worst.distance:.3g} standard deviations apart. Inference is calibrated, but training "
        "normalizes by the batch, and would be clipped by these ranges. Before training, run "
        "rewriter.set_phase(model, 'float') and rewriter.reestimate_batch_norm(model, data), and "
        "calibrate again; or freeze the statistics: rewriter.freeze_batch_norm(model).",
        RewriterWarning,
        stacklevel=3,
    )
