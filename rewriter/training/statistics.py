"""Whether the moving statistics of the normalizations are those of the data.

Where they are not, a model computes something else in training, by the batch's statistics, than in
inference, and ranges that fit one of them do not fit the other.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterWarning
from rewriter.keras_compat import flat_layers, input_of
from rewriter.keras_compat.variables import read
from rewriter.kernels.composed_norm import reestimating
from rewriter.quantization import phases
from rewriter.reading import inside
from rewriter.reading.graph import Graph
from rewriter.training.schedule import batch_norms

# Batches of a few samples vary by less than this, in the median over the channels of a layer: as
# the quotient of two variances, and as a distance of means in standard deviations.
_QUOTIENT, _DISTANCE = 8.0, 2.0
SAMPLES = 32


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


def of_training(graph: Graph) -> list[Any]:
    """The normalizations that use the batch's statistics in training, and the moving ones else.

    Not those that are frozen, and not those whose calls say themselves which to use.

    Args:
      graph: of a rewritten model.
    """
    found: dict[int, Any] = {}
    for call in graph.calls:
        if inside.own_flag(graph.flavour, call) is not None:
            continue
        for layer in flat_layers(call.layer):
            if hasattr(layer, "variables_in") and layer.trainable and not int(read(layer.frozen)):
                found[id(layer)] = layer
    return list(found.values())


def disagreements(model: Any, norms: Sequence[Any], inputs: Any) -> list[Disagreement]:
    """The normalizations that would compute something else in training than in inference.

    Args:
      model: a rewritten one; its statistics and phases stay as they are.
      norms: what :func:`of_training` has found.
      inputs: a batch of its inputs. Up to 32 samples of it are run, in float.
    """
    if not norms:
        return []
    before = [(v, read(v)) for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
    moving = [(read(norm.moving_mean), read(norm.moving_variance)) for norm in norms]
    few = tf.nest.map_structure(lambda value: value[:SAMPLES], inputs)
    try:
        with phases.only(phases.FLOAT), reestimating(tf.constant(1.0), {id(n) for n in norms}):
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


class InTraining:
    """Has a model observe what it computes in training too, where that is something else.

    Samples are gathered to batches of 32, if the data have smaller ones: the statistics of a few
    samples say little. Whether it is something else, the first of these batches decides.

    Args:
      model: a rewritten one.
      graph: of it.
      trace: makes a function of the flattened inputs that observes, with these normalizations as in
        training; called only where they disagree. None: only find out.
    """

    def __init__(
        self,
        model: Any,
        graph: Graph,
        trace: Callable[[Sequence[Any]], Callable[..., Any]] | None,
    ):
        self.found: list[Disagreement] = []
        self._model, self._trace = model, trace
        self._norms = of_training(graph)
        self._step: Callable[..., Any] | None = None
        self._gathered: list[list[Any]] = []
        sizes = {tensor.shape[0] for tensor in tf.nest.flatten(input_of(model))}
        self._size = SAMPLES if sizes == {None} else 1  # a fixed size is that of training as well

    def look(self, inputs: Sequence[Any]) -> None:
        """See a batch of flattened inputs."""
        if not self._norms:
            return
        if self._gathered and not _alike(self._gathered[0], inputs):
            self._see()
        self._gathered.append(list(inputs))
        if sum(len(each[0]) for each in self._gathered) >= self._size:
            self._see()

    def finish(self) -> None:
        """See what is left; if that is all and fewer than 32 samples, only find out."""
        if self._step is None and sum(len(each[0]) for each in self._gathered) < self._size:
            self._trace = None
        self._see()

    def _see(self) -> None:
        if not self._norms or not self._gathered:
            return
        flat = [tf.concat(parts, 0) for parts in zip(*self._gathered, strict=True)]
        self._gathered = []
        if self._step is None:
            inputs = tf.nest.pack_sequence_as(input_of(self._model), flat)
            self.found = disagreements(self._model, self._norms, inputs)
            if not self.found or self._trace is None:
                self._norms = []
                return
            self._step = self._trace(self._norms)
        self._step(*flat)

    def warn(self, stacklevel: int) -> None:
        """Warn if training sees other statistics than inference.

        Ranges of inference alone do not fit then (momentum near 1 and few steps of training):
        activations in training leave them and are clipped, whole channels become constant, and
        gradients grow by the reciprocal root of epsilon in every layer.
        """
        if not self.found:
            return
        name, count = self._model.name, len(batch_norms(self._model))
        worst = max(self.found, key=lambda each: abs(np.log(each.quotient)) + each.distance)
        warnings.warn(
            f"The moving statistics of {len(self.found)} of {count} batch normalizations of "
            f"{name!r} are not those of the calibration data: in {worst.name!r} a batch's variance "
            f"is {worst.quotient:.3g} times the moving one, and the means are "
            f"{worst.distance:.3g} standard deviations apart. Inference uses the moving ones, "
            f"training the batch's. {_ALONE if self._step is None else _BOTH} Make sure that the "
            "data are as in training. Then, before training, run rewriter.set_phase(model, "
            "'float') and rewriter.reestimate_batch_norm(model, data), or freeze the statistics, "
            "rewriter.freeze_batch_norm(model), and calibrate again.",
            RewriterWarning,
            stacklevel=stacklevel + 1,
        )


_BOTH = (
    "The activations were observed with both, and the ranges hold both: a file will be coarser "
    "than need be until the model is calibrated again with statistics that agree, or training has "
    "moved the ranges, which it does with those of method 'minmax'."
)
_ALONE = "The ranges are those of inference alone: training by the batch would be clipped by them."


def _alike(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether two batches can be joined."""
    return all(
        tf.TensorShape(a.shape)[1:] == tf.TensorShape(b.shape)[1:]
        for a, b in zip(before, now, strict=True)
    )
