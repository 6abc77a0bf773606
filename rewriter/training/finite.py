"""Values that are not finite in calibration data or inside of a model: whose they are, and where.

One of them would become the range of every activation after it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import CalibrationError
from rewriter.keras_compat import input_of
from rewriter.layers.observing import Observer, observed
from rewriter.layers.quantize import QuantizeMixin
from rewriter.reading.graph import Call, Graph, Ref, map_refs
from rewriter.reading.inside import in_inference
from rewriter.reading.operations import Operation
from rewriter.reading.roles import Opaque

_WAYS_ON = (
    "identity",
    "reshape",
    "transpose",
    "slice",
    "split",
    "concatenate",
    "pad",
    "clamp",
    "mirror_pad",
)


def check_inputs(model: Any, inputs: Sequence[Any], start: int) -> None:
    """Raise CalibrationError if a value of a batch is not finite.

    Args:
      model: whose inputs they are.
      inputs: one tensor per flattened input, (N, ...).
      start: how many samples came before this batch.
    """
    for tensor, value in zip(tf.nest.flatten(input_of(model)), inputs, strict=True):
        found = _first(value)
        if found is not None:
            sample, number = found
            raise CalibrationError(
                f"The input {tensor.name.split(':')[0]!r} of {model.name!r} is not finite in "
                f"sample {start + sample} of the data (counted from 0). Received: {number}. "
                "Leave such samples out, or replace the values."
            )


def _first(value: Any) -> tuple[int, float] | None:
    """The first sample with a value that is not finite, and the value; None if there is none."""
    if not tf.as_dtype(value.dtype).is_floating or bool(_all_finite(value)):
        return None
    array = np.asarray(tf.cast(value, tf.float64))
    places = np.argwhere(~np.isfinite(array))
    if not len(places):
        return None
    return (int(places[0][0]) if array.ndim else 0), float(array[tuple(places[0])])


def _all_finite(value: Any) -> Any:
    """Whether a tensor is finite, in one pass; the sum of a finite one may overflow, too."""
    return tf.math.is_finite(tf.reduce_sum(tf.cast(value, tf.float32)))


class Watch:
    """Finds out which tensors of a model are not finite while batches pass.

    What a layer fills with -inf, or with the lowest number, for a max pooling to ignore is as it
    should be; such ranges have the finite values.

    Args:
      graph: of a rewritten model.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        self._consumers = self._graph.consumers()
        self._filled = {
            id(call.layer)
            for index, call in enumerate(self._graph.calls)
            if isinstance(call.layer, QuantizeMixin)
            and isinstance(self._graph.calls[call.refs[0].call].role, Opaque)
            and self._ignored(index)
        }

    def _ignored(self, index: int) -> bool:
        """Whether only max poolings read what a call returns, through layers that move it."""
        todo, seen = [index], {index}
        found = False
        while todo:
            number = todo.pop()
            refs = [Ref(number, i) for i in range(len(self._graph.calls[number].shapes))]
            for reader in (r for ref in refs for r in self._consumers.get(ref, ())):
                call = self._graph.calls[reader]
                if self._is_max_pool(call):
                    found = True
                    continue
                moved = isinstance(call.role, Operation) and call.role.name in _WAYS_ON
                if not moved and not isinstance(call.layer, QuantizeMixin):
                    return False
                if reader not in seen:
                    seen.add(reader)
                    todo.append(reader)
        return found

    def _is_max_pool(self, call: Call) -> bool:
        if isinstance(call.role, Operation) and call.role.name in ("max", "pool"):
            return True
        name = self._graph.flavour.class_name(call.layer)  # also without an integer form
        return "maxpool" in name.lower().replace("_", "")

    @contextlib.contextmanager
    def tracing(self, also: Observer) -> Iterator[Callable[[], Any]]:
        """Within, a function is traced; the result makes the bool tensor that says all is well.

        Args:
          also: called as ``also(layer, outputs)``, too.
        """
        found: list[Any] = []

        def look(layer: Any, outputs: Any) -> None:
            also(layer, outputs)
            if id(layer) not in self._filled:
                found.append(_all_finite(outputs))
                return
            # Of -inf alone, a finite value is the largest.
            found.append(tf.math.is_finite(tf.reduce_max(outputs)))
            _widen(layer, outputs)

        with observed(look):
            yield lambda: tf.reduce_all(found) if found else tf.constant(True)

    def explain(self, inputs: Sequence[Any], start: int) -> CalibrationError | None:
        """The error that names the first layer whose output is not finite; None if all are.

        The model is run on the batch, call by call; in its phase, so its ranges may change.

        Args:
          inputs: the batch, one tensor per flattened input.
          start: how many samples came before it.
        """
        graph = self._graph
        env: dict[Ref, Any] = dict(zip(graph.input_refs(), inputs, strict=True))
        for index, call in enumerate(graph.calls):
            if Ref(index) in env:
                continue
            args, kwargs = map_refs((call.args, call.kwargs), env.__getitem__)
            kwargs = in_inference(graph.flavour, call, kwargs)
            outputs = tf.nest.flatten(call.layer(*args, **kwargs))
            env.update((Ref(index, i), value) for i, value in enumerate(outputs))
            if self._ignored(index):
                continue
            for value in outputs:
                found = _first(value)
                if found is not None:
                    sample, number = found
                    return CalibrationError(
                        f"The output of the layer {call.path!r} of {graph.name!r} is not finite "
                        f"in sample {start + sample} of the data (counted from 0), which is "
                        f"finite itself. Received: {number}. Leave such samples out, or see what "
                        "the layer computes from them."
                    )
        return None


def _widen(layer: Any, values: Any) -> None:
    """Let the range of a layer have the finite values of a tensor."""
    names = ("min_var", "max_var")
    if not all(name in layer.range_variables for name in names):
        return
    low, high = (layer.range_variables[name] for name in names)
    finite = tf.math.is_finite(values)
    low.assign(tf.minimum(low, tf.minimum(tf.reduce_min(tf.where(finite, values, 0.0)), 0.0)))
    high.assign(tf.maximum(high, tf.maximum(tf.reduce_max(tf.where(finite, values, 0.0)), 0.0)))
