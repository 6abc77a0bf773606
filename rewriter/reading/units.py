"""Calls that bring vectors to length 1 together: one operator of LiteRT, whatever they are.

``x / tf.norm(x)``, ``x * rsqrt(sum(x * x))`` and their like would have the squares on a grid of
their own, where vectors much shorter than the longest are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from rewriter.keras_compat.pure_functions import words
from rewriter.reading.graph import Graph, Ref
from rewriter.reading.operations import Operation, along, is_floating
from rewriter.reading.roles import Within
from rewriter.reading.traces import Trace

_ENDS = frozenset({"times_function", "multiply"})
_PARTS = words("""AddV2 Maximum Mul Pow RealDiv Reciprocal Inv Rsqrt Sqrt Square Sum""")
# Lengths that a unit is told by: a constant that keeps from 0 is far below their squares.
_LENGTHS = np.array([0.1, 1.0, 10.0, 100.0])
_NEAR = 2e-3


class Finder(Protocol):
    """What finds the calls from one tensor to another, see :mod:`rewriter.reading.chains`."""

    def candidates(self, last: int) -> Iterator[tuple[set[int], Ref]]:
        """The calls from one tensor to ``last`` that nothing else reads, shortest first."""

    def trace(
        self, members: set[int], source: Ref, last: int, shape: tuple[int | None, ...] = (None,)
    ) -> Trace | None:
        """What they compute of a tensor of this shape."""


def join(graph: Graph, finder: Finder) -> None:
    """Give such calls their roles."""
    for last, call in enumerate(graph.calls):
        role = call.role
        if (
            not isinstance(role, Operation)
            or role.name not in _ENDS
            or not is_floating(call.dtypes[0])
        ):
            continue
        for members, source in finder.candidates(last):
            shape = graph.shape(source)
            if None in shape[1:] or isinstance(graph.calls[source.call].role, Within):
                continue
            axis = _axis(finder.trace(members, source, last, shape), shape)
            found = None if axis is None else along("unit", call, source, axis)
            if found is not None:
                for member in members:
                    graph.calls[member].role = Within()
                call.role = found
                break


def _axis(traced: Trace | None, shape: tuple[int | None, ...]) -> int | None:
    """The axis along which a function brings vectors to length 1; None if it does not."""
    if traced is None or any(node.kind not in _PARTS for node in traced.nodes):
        return None
    sums = [node for node in traced.nodes if node.kind == "Sum"]
    if len(sums) != 1 or not isinstance(sums[0].inputs[1], np.ndarray):
        return None
    axes = np.atleast_1d(sums[0].inputs[1]) % len(shape)
    if len(axes) != 1 or axes[0] == 0:
        return None
    axis = int(axes[0])
    x = np.random.default_rng(0).normal(size=(len(_LENGTHS), *(n or 1 for n in shape[1:])))
    x /= np.linalg.norm(x, axis=axis, keepdims=True)
    given = x * _LENGTHS.reshape(-1, *(1,) * (len(shape) - 1))
    made = np.asarray(traced.run(given.astype(np.float32)))
    near = made.shape == x.shape and np.allclose(made, x, rtol=_NEAR, atol=_NEAR)
    return axis if near else None
