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

from rewriter import kernels
from rewriter.errors import RecipeError
from rewriter.quantization import phases
from rewriter.quantization.pipeline_ops import deserialize_op, is_layer, is_quantizer, serialize_op

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

    One condition serves all of them: each costs more than what it chooses between. Operations
    of which only the values matter need none: theirs are computed, and taken or not.

    Args:
      pipes: by variable.
      values: tensors by variable; those without a pipe are left alone.
      phase_names: the phases in which the pipes act.
      phase: int32 scalar of :mod:`rewriter.quantization.phases`.
      training: whether stateful quantizers may update themselves.
    """
    codes = {phases.PHASES[name] for name in phase_names}
    if phases.QUANTIZE in codes:
        codes.add(phases.QUANTIZE_FROZEN)
    known = tf.get_static_value(phase)
    if known is not None and int(known) not in codes:
        return dict(values)
    acts = None
    if known is None:
        acts = tf.gather(tf.constant([code in codes for code in range(4)]), phase)
    result = dict(values)
    conditional = []
    for names in _groups(pipes):
        if _straight_through(pipes[names[0]].op):
            result.update(_selected(names, pipes[names[0]].op, values, acts))
        else:
            conditional += names

    def act() -> list[Any]:
        return [pipes[name].act(values[name], training) for name in conditional]

    if conditional:
        others = [values[name] for name in conditional]
        found = act() if acts is None else tf.cond(acts, act, lambda: others)
        result.update(zip(conditional, found, strict=True))
    return result


def _straight_through(op: Any) -> bool:
    """Whether ``op`` computes ``straight_through_rows``, with the identity as gradient."""
    return "straight_through_rows" in vars(type(op))  # a subclass says so itself


def _groups(pipes: Mapping[str, Pipe]) -> list[list[str]]:
    """The variables whose operations are equal and may be computed together."""
    groups: dict[str, list[str]] = {}
    for name, pipe in pipes.items():
        straight = _straight_through(pipe.op)
        config = sorted(pipe.op.get_config().items()) if straight else name
        groups.setdefault(repr((type(pipe.op), config)), []).append(name)
    return list(groups.values())


def _selected(names: list[str], op: Any, values: Mapping[str, Any], acts: Any) -> dict[str, Any]:
    """The values of ``op``, as one matrix, where ``acts``; None: always."""
    inputs = [values[name] for name in names]
    rows = tf.stack(inputs)
    quantized = op.straight_through_rows(rows)
    if acts is not None:
        # tf.where would broadcast, in several times the time.
        quantized = tf.raw_ops.Select(condition=acts, x=quantized, y=rows)
    outputs = kernels.connect(tf.unstack(quantized), lambda *upstream: upstream, *inputs)
    return dict(zip(names, outputs, strict=True))


def pipelines(value: Any) -> tuple[BatchNormPipeline, ...]:
    """The field ``batch_norm_pipeline`` of a recipe: a mapping, a pipeline, or several of them.

    Raises:
      RecipeError: for anything else, and for an unknown field of a mapping.
    """
    if value is None:
        return ()
    several = value if isinstance(value, (list, tuple)) else [value]
    result = []
    for item in several:
        if isinstance(item, Mapping):
            known = {field.name for field in dataclasses.fields(BatchNormPipeline)}
            unknown = sorted(set(item) - known)
            if unknown:
                raise RecipeError(
                    f"batch_norm_pipeline has an unknown field {unknown[0]!r}. "
                    f"Known fields: {sorted(known)}."
                )
            item = BatchNormPipeline(**item)
        if not isinstance(item, BatchNormPipeline):
            raise RecipeError(
                "batch_norm_pipeline must be a mapping, a BatchNormPipeline or several of them. "
                f"Received: {item!r}."
            )
        result.append(item)
    return tuple(result)
