"""The pipeline on the variables of a batch normalization.

Any operation may be put on gamma, beta, the moving mean and the moving variance before they
normalize: in training and in inference, in the phases asked for. What is exported comes from the
piped variables.

The moving mean and variance take part where they are used: in inference, and in training once
the statistics are frozen. While the batch's statistics are used, the moving ones are only updated.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter import phases
from rewriter.errors import RecipeError
from rewriter.pipeline_ops import deserialize_op, is_layer, is_quantizer, serialize_op

VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True)
class BatchNormPipeline:
    """Operations on the variables of some batch normalizations.

    Attributes:
      gamma, beta, moving_mean, moving_variance: a TensorFlow callable, a Keras layer of the
        model's Keras, or a quantizer of TFMOT's protocol; None leaves the variable as it is.
      layers: names or patterns (``fnmatch``) of BatchNormalization layers, or of the hosts that
        they are fused into.
      phases: in which phases it acts.

    Raises:
      RecipeError: on construction, naming the bad field.
    """

    gamma: Any = None
    beta: Any = None
    moving_mean: Any = None
    moving_variance: Any = None
    layers: str | Sequence[str] = "*"
    phases: Sequence[str] = ("quantize",)

    def __post_init__(self) -> None:
        for name in VARIABLES:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, deserialize_op(value))
            elif value is not None and not callable(value):
                raise RecipeError(
                    f"batch_norm_pipeline.{name} must be callable, a layer or a quantizer. "
                    f"Received: {value!r}."
                )
        wrong = [phase for phase in self.phases if phase not in phases.PHASES]
        if wrong or isinstance(self.phases, str) or not self.phases:
            raise RecipeError(
                f"batch_norm_pipeline.phases must be some of {sorted(phases.PHASES)}. "
                f"Received: {self.phases!r}."
            )
        patterns = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise RecipeError(
                f"batch_norm_pipeline.layers must be patterns. Received: {self.layers!r}."
            )
        object.__setattr__(self, "layers", patterns)
        object.__setattr__(self, "phases", tuple(self.phases))

    def applies_to(self, *names: str | None) -> bool:
        """Whether one of a layer's names matches."""
        return any(
            fnmatch.fnmatchcase(name, pattern) for name in names if name for pattern in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values only.

        Raises:
          RecipeError: if an operation has no name to be found by (see :func:`register_op`).
        """
        result: dict[str, Any] = {"layers": list(self.layers), "phases": list(self.phases)}
        for name in VARIABLES:
            value = getattr(self, name)
            if value is not None:
                result[name] = serialize_op(value, name)
        return result


class Pipe:
    """One operation on one variable of one layer, with the operation's own variables.

    Args:
      op: the operation.
    """

    def __init__(self, op: Any):
        self.op = op
        self._weights: dict[str, Any] = {}
        self._where = ""

    def build(self, shape: Any, name: str, adapter: Any) -> None:
        """Create the operation's variables in the layer behind ``adapter``."""
        self._where = f"{name} of {adapter.name!r}"
        if is_layer(self.op):
            self.op.build(tuple(shape))
            self.op.built = True
        elif is_quantizer(self.op):
            self._weights = self.op.build(tuple(shape), f"{name}_pipe", adapter)

    @property
    def variables(self) -> list[Any]:
        """The operation's own variables."""
        if is_layer(self.op):
            return list(self.op.variables)
        return [v for v in self._weights.values() if hasattr(v, "assign")]

    def act(self, value: Any, training: bool) -> Any:
        """``value`` piped.

        Raises:
          RecipeError: if the operation changes the shape.
        """
        if is_quantizer(self.op):
            result = self.op(value, training=training, weights=self._weights)
        else:
            result = self.op(value)
        result = tf.cast(result, value.dtype)
        if not value.shape.is_compatible_with(result.shape):
            raise RecipeError(
                f"batch_norm_pipeline: the operation on {self._where} must keep the shape "
                f"{tuple(value.shape)}. Received: {tuple(result.shape)}."
            )
        return tf.ensure_shape(result, value.shape)


def piped(
    pipes: Mapping[str, Pipe],
    values: Mapping[str, Any],
    phase_names: Sequence[str],
    phase: Any,
    training: bool,
) -> dict[str, Any]:
    """The values of the variables, those with a pipe piped where ``phase`` says so.

    One condition serves all of them: each costs more than what it chooses between.

    Args:
      pipes: by variable.
      values: tensors by variable; those without a pipe are left alone.
      phase_names: the phases in which the pipes act.
      phase: int32 scalar of :mod:`rewriter.phases`.
      training: whether stateful quantizers may update themselves.
    """
    codes = {phases.PHASES[name] for name in phase_names}
    if phases.QUANTIZE in codes:
        codes.add(phases.QUANTIZE_FROZEN)

    def act() -> list[Any]:
        return _together(pipes, values, training)

    known = tf.get_static_value(phase)
    if known is None:
        acts = tf.gather(tf.constant([code in codes for code in range(4)]), phase)
        results = tf.cond(acts, act, lambda: [values[name] for name in pipes])
    elif int(known) in codes:
        results = act()
    else:
        return dict(values)
    return {**values, **dict(zip(pipes, results, strict=True))}


def _together(pipes: Mapping[str, Pipe], values: Mapping[str, Any], training: bool) -> list[Any]:
    """Every value piped; those with equal operations, where it takes rows, as one matrix."""
    groups: dict[Any, list[str]] = {}
    for name, pipe in pipes.items():
        rows = vars(type(pipe.op)).get("by_rows", False)  # a subclass says so itself
        key = repr((type(pipe.op), sorted(pipe.op.get_config().items()))) if rows else name
        groups.setdefault(key, []).append(name)
    results = {}
    for names in groups.values():
        pipe = pipes[names[0]]
        if len(names) == 1:
            results[names[0]] = pipe.act(values[names[0]], training)
        else:
            stacked = tf.stack([values[name] for name in names])
            results.update(zip(names, tf.unstack(pipe.act(stacked, training)), strict=True))
    return [results[name] for name in pipes]
