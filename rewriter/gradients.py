"""Gradients by hand, and functions in a row that share one.

``tf.custom_gradient`` costs half a millisecond of tracing and some operators each time. Where a
convolution, a normalization and an activation follow each other, each with a gradient by hand,
nothing needs those of the tensors between them: one connection, with the chain rule inside, serves
all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

Gradient = Callable[..., Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Pending:
    """A tensor whose gradient is known but not connected to what it was made of.

    Whoever takes ``value`` for an operation of TensorFlow must take :func:`connected` instead, or
    no gradient passes.

    Attributes:
      value: the tensor.
      gradient: from the gradient for ``value`` to those for ``inputs``.
      inputs: tensors, or others that are pending.
    """

    value: Any
    gradient: Gradient
    inputs: tuple[Any, ...]

    def chained(self) -> tuple[list[Any], Gradient]:
        """The tensors that it all was made of, and the gradients for them."""
        before = [x.chained() if isinstance(x, Pending) else ([x], _itself) for x in self.inputs]

        def gradient(upstream: Any) -> list[Any]:
            found = self.gradient(upstream)
            return [
                result
                for (_, previous), own in zip(before, found, strict=True)
                for result in previous(own)
            ]

        return [tensor for tensors, _ in before for tensor in tensors], gradient


def _itself(upstream: Any) -> list[Any]:
    return [upstream]


def tensor(x: Any) -> Any:
    """The tensor that ``x`` is or has, for functions that give a gradient by hand themselves."""
    return x.value if isinstance(x, Pending) else x


def connected(x: Any) -> Any:
    """The tensor that ``x`` is or has, with its gradient."""
    if not isinstance(x, Pending):
        return x
    inputs, gradient = x.chained()
    return connect(x.value, gradient, *inputs)


def connect(value: Any, gradient: Gradient, *inputs: Any) -> Any:
    """``value`` as a function of ``inputs`` with the gradient given.

    Args:
      value: a tensor, such as the chosen branch of a switch computed, or a list of them.
      gradient: the gradients for the inputs, given that for ``value``, or those for its tensors.
      inputs: the tensors that gradients are for.
    """

    # What the gradient needs is no argument: TensorFlow copies and differentiates arguments.
    def function(*_: Any) -> Any:
        return value, gradient

    # TensorFlow also asks for the gradients of the copies that it makes of the inputs. Of what
    # has this name it does not make them up of zeros, three operators for each.
    function.__name__ = "FusedBatchNorm"
    return tf.custom_gradient(function)(*inputs)
