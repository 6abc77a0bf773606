"""Gradients by hand, and functions in a row that share one.

A gradient by hand costs some tracing and some operators each time. Where a convolution, a
normalization and an activation follow each other, each with a gradient by hand, nothing needs those
of the tensors between them: one connection, with the chain rule inside, serves all.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.fast import nodes, private

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


def moved(y: Any, add: Callable[[Any, Any], Any], bias: Any) -> Pending:
    """As :func:`rewriter.kernels.plain.moved`; pending."""
    return Pending(add(tensor(y), bias), lambda dy: (dy,), (y,))


def connect(value: Any, gradient: Gradient, *inputs: Any) -> Any:
    """``value`` as a function of ``inputs`` with the gradient given.

    Args:
      value: a tensor, such as the chosen branch of a switch computed, or a list of them.
      gradient: the gradients for the inputs, given that for ``value``, or those for its tensors.
      inputs: the tensors that gradients are for.
    """

    if tf.executing_eagerly():

        def function(*_: Any) -> Any:
            return value, gradient

        return tf.custom_gradient(function)(*inputs)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    found = _in_graph(values, gradient, list(inputs))
    return found if isinstance(value, (list, tuple)) else found[0]


# A SavedModel may hold names of another process, whose gradients it does not hold.
_names = (f"RewriterGradient-{uuid.uuid4().hex}-{number}" for number in itertools.count())


def _in_graph(values: list[Any], gradient: Gradient, inputs: list[Any]) -> list[Any]:
    """What ``tf.custom_gradient`` does in a graph, in a third of the time.

    It looks for variables between the inputs and the values, and has no end: its registry keeps
    every graph. Here the graph keeps its gradients.
    """
    graph, count = tf.compat.v1.get_default_graph(), len(values)
    name = next(_names)

    def gradients(*upstream: Any) -> list[Any]:
        found = gradient(*upstream[:count])
        return [None] * count + list(found)

    if not hasattr(graph, _GRADIENTS):
        setattr(graph, _GRADIENTS, {})
    getattr(graph, _GRADIENTS)[name] = gradients
    tf.RegisterGradient(name)(functools.partial(_of_operator, weakref.ref(graph), name))
    given = [tf.convert_to_tensor(x) for x in (*values, *inputs)]  # TFMOT's wrapper gives variables
    dtypes = [x.dtype for x in given]
    attributes = {
        "T": nodes.attribute(type=[dtype.as_datatype_enum for dtype in dtypes]),
        "_gradient_op_type": tf.compat.v1.AttrValue(s=name.encode()),
    }
    results = nodes.create("IdentityN", given, dtypes, attributes)
    # A tape also asks for the gradients of the copies of the inputs. Of what has this name it does
    # not make them up of zeros, three operators for each.
    private.record_operation("FusedBatchNorm", results, given, gradients)
    return results[:count]


_GRADIENTS = "_rewriter_gradients"  # of a graph: by name


def _of_operator(graph: Any, name: str, operator: Any, *upstream: Any) -> list[Any]:
    """The gradients of an operator that :func:`_in_graph` made, where no tape has been told them.

    That is where a whole function is differentiated, or written into a SavedModel.
    """
    known = getattr(graph(), _GRADIENTS, {})
    if name not in known:
        raise LookupError(
            f"The gradient {name!r} of a copied operator is not known: the graph that it was made "
            "in is gone. Call the model again, in the function that is to be differentiated."
        )
    return known[name](*upstream)
