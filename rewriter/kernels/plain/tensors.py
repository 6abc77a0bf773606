"""Tensors and their gradients, variables, and the choice between branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def tensor(x: Any) -> Any:
    """The tensor that ``x`` is, without a gradient where ``x`` is pending (fast kernels only)."""
    return x


def connected(x: Any) -> Any:
    """The tensor that ``x`` is, with its gradient."""
    return x


def connect(value: Any, gradient: Callable[..., Sequence[Any]], *inputs: Any) -> Any:
    """``value`` as a function of ``inputs`` with the gradient given.

    Args:
      value: a tensor, or a list of them.
      gradient: the gradients for the inputs, given that for ``value``, or those for its tensors.
      inputs: the tensors that gradients are for.
    """

    def function(*_: Any) -> Any:
        return value, lambda *upstream: list(gradient(*upstream))

    return tf.custom_gradient(function)(*inputs)


def read_variable(variable: Any) -> Any:
    """The value of a variable, as a tensor; gradients do not go there."""
    return tf.stop_gradient(tf.convert_to_tensor(variable))


def assign_variable(variable: Any, value: Any) -> None:
    """Set a ``tf.Variable`` to a tensor of its dtype."""
    variable.assign(value, read_value=False)


def chosen(index: Any, *branches: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """What the branch of that index returns, the last one for all larger ones."""
    known = tf.get_static_value(index)
    if known is not None:
        return branches[min(int(known), len(branches) - 1)]()
    return tf.switch_case(index, list(branches))
