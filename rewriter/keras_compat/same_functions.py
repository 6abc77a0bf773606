"""Keras's own activation function where a user's computes the same, operation by operation.

``lambda x: keras.activations.gelu(x)`` has no name that a file could hold, and yet is ``gelu``.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_RANKS = (2, 4)
_NO_FUNCTIONS = ("get", "serialize", "deserialize")
_Steps = tuple[Any, ...]
_STOCK: dict[str, dict[_Steps, Any]] = {}  # by the Keras


def twin(flavour: Any, function: Any) -> Any:
    """Keras's own function that runs the same operations, gradients included; None if none does.

    Args:
      flavour: the Keras.
      function: of a tensor.
    """
    if not isinstance(function, types.FunctionType):
        return None
    steps = _steps(function)
    return None if steps is None else _stock(flavour).get(steps)


def _stock(flavour: Any) -> dict[_Steps, Any]:
    if flavour.name not in _STOCK:
        found: dict[_Steps, Any] = {}
        for name, function in sorted(vars(flavour.keras.activations).items()):
            if isinstance(function, types.FunctionType) and name not in _NO_FUNCTIONS:
                steps = _steps(function) if _takes_a_tensor(function) else None
                if steps is not None:
                    found.setdefault(steps, function)
        _STOCK[flavour.name] = found
    return _STOCK[flavour.name]


def _takes_a_tensor(function: Any) -> bool:
    parameters = list(inspect.signature(function).parameters.values())
    return bool(parameters) and all(p.default is not p.empty for p in parameters[1:])


def _steps(function: Callable[..., Any]) -> _Steps | None:
    """What a function runs on tensors of some ranks, and its gradient; None if that is not known.

    It is not where the function reads variables, or calls functions of TensorFlow.
    """
    found = []
    for rank in _RANKS:

        def both(x: Any, upstream: Any) -> Any:
            y = function(x)
            return y, tf.gradients(y, x, upstream)

        specs = [tf.TensorSpec([None] * rank, tf.float32)] * 2
        try:
            wrapped = tf.compat.v1.wrap_function(both, specs)
        except Exception:  # of a user's function: whatever it raises, it is none of Keras's
            return None
        definition = wrapped.graph.as_graph_def()
        if wrapped.captured_inputs or definition.library.function:
            return None
        places = {node.name: place for place, node in enumerate(definition.node)}
        results = tuple(_read(t.name, places) for t in wrapped.outputs)
        found.append((tuple(_described(node, places) for node in definition.node), results))
    return tuple(found)


def _described(node: Any, places: dict[str, int]) -> tuple[Any, ...]:
    """An operation without the names that it happened to get."""
    attributes = tuple(
        (name, node.attr[name].SerializeToString(deterministic=True))
        for name in sorted(node.attr)
        if not name.startswith("_")
    )
    return node.op, tuple(_read(text, places) for text in node.input), attributes


def _read(text: str, places: dict[str, int]) -> tuple[bool, int, str]:
    name, _, index = text.removeprefix("^").partition(":")
    return text.startswith("^"), places[name], index or "0"
