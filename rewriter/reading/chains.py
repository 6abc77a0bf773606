"""Chains of operations that are read together.

Of those that are one function of a number:

``x * tf.nn.relu6(x + 3) / 6`` in a model is four calls, each with a range of its own, and one
operator of LiteRT. The last of the calls is given the operation of them all, the others are
:class:`~rewriter.reading.roles.Within` it: they stay in the model, and no range is between them.

Of those that bring an axis before the batch to split it:
``q, k, v = unstack(transpose(qkv, (2, 0, 3, 1, 4)))``, or ``qkv[0], qkv[1], qkv[2]`` of it, is how
attention is often written. LiteRT's tensors here have the batch first, so the transposition is
lowered as ``(0, 2, 3, 1, 4)``, and what reads it takes the places of the second axis. That is right
where nothing else reads it.

And what keeps a number from 0 for a function in float. The grid of the sum would round that
constant away; so the sum stays in float with it. A root of such a sum, whose gradient at 0 is
infinite, is in one table with it, or, where something else reads the sum too, in float.
``1 / sqrt(x)`` is a reciprocal root.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.reading import (
    function_chains,
    functions,
    inside,
    masks,
    reasons,
    row_counts,
    stock_activations,
    stock_functions,
    units,
    whole_numbers,
)
from rewriter.reading.graph import Call, Graph, Ref
from rewriter.reading.operations import Operation, guards, is_floating
from rewriter.reading.roles import Opaque, Ours, Role, Within
from rewriter.reading.stock_moves import SECOND
from rewriter.reading.traces import Trace, trace

# What is worth an operator of its own, though each of its parts has one.
_BETTER = frozenset({"hard_silu", "hard_sigmoid", "gelu", "leaky_relu"})
_LAYERS = frozenset({"ReLU", "Activation", "Add", "Subtract", "Multiply", "Rescaling"})
_ROOTS = frozenset({"sqrt", "rsqrt"})
_LONGEST = 16
# Reasons.
_GUARDED = (
    "it is a root behind a constant that keeps it from 0, and something else reads their sum too, "
    "so that they are not one table; the grid of the sum would round the constant away. Give each "
    "reader a sum of its own"
)
_GUARD = "it only keeps from 0 what a layer in float reads. Give that layer an integer form"
_BATCH_MOVED = "it moves the axis of the samples, which is the first one in a file. Keep it there"


def join(graph: Graph) -> None:
    """Give the calls of every such chain their roles, and take those that do not fit the others."""
    finder = _Finder(graph)
    for index in reversed(range(len(graph.calls))):
        if isinstance(graph.calls[index].role, Within):
            continue
        found = None
        for members, source in finder.candidates(index):
            found = finder.read(members, source, index) or found
        if found is None:
            continue
        operation, members = found
        for member in members:
            graph.calls[member].role = operation if member == index else Within()
    _settle(graph)
    units.join(graph, finder)
    _reciprocal_roots(graph)
    function_chains.join(graph, finder)
    _keep_guards(graph)
    masks.refuse(graph)
    row_counts.settle(graph)
    whole_numbers.settle(graph)
    reasons.settle(graph)


def _reciprocal_roots(graph: Graph) -> None:
    """``1 / sqrt(x)`` as one operation, where nothing else reads the root."""
    readers, outputs = graph.consumers(), set(graph.output_refs())
    for index, call in enumerate(graph.calls):
        below = None
        if isinstance(call.role, Operation) and call.role.name == functions.NAME:
            below = stock_functions.reciprocal(graph.flavour, call)
        if below is None or below in outputs or readers[below] != [index]:
            continue
        root = graph.calls[below.call]
        if isinstance(root.role, Operation) and root.role.name == "sqrt":
            call.role, root.role = Operation("rsqrt", root.role.operands), Within()


def _keep_guards(graph: Graph) -> None:
    """Leave in float what only functions in float read, and what is to keep them from 0."""
    readers, outputs = graph.consumers(), set(graph.output_refs())
    for call in graph.calls:
        if isinstance(call.role, Operation) and call.role.name in _ROOTS:
            before = graph.calls[call.role.operands[0].call]
            while isinstance(before.role, Ours) and before.role.quantizes:
                before = graph.calls[before.refs[0].call]
            if guards(before.role):
                call.role, call.closed = Opaque(), _GUARDED
    for index, call in enumerate(graph.calls):
        read = readers.get(Ref(index), ())
        if not read or Ref(index) in outputs or not guards(call.role):
            continue
        if all(isinstance(graph.calls[each].role, Opaque) for each in read):
            call.role, call.closed = Opaque(), _GUARD


def _settle(graph: Graph) -> None:
    """Leave such transpositions, and their readers, their roles where they belong together."""
    readers, outputs = graph.consumers(), set(graph.output_refs())
    for index, call in enumerate(graph.calls):
        operation = _second(call.role)
        if operation is None:
            continue
        if operation.name == "transpose":
            read = [_second(graph.calls[each].role) for each in readers.get(Ref(index), ())]
            able = all(each is not None and each.name != "transpose" for each in read)
            right = able and Ref(index) not in outputs
        else:
            right = _second(graph.calls[call.refs[0].call].role) is not None
        if not right:
            call.role, call.closed = Opaque(), _BATCH_MOVED


def _second(role: Role) -> Operation | None:
    """The operation of such a call; None of any other."""
    found = isinstance(role, Operation) and SECOND.items() <= role.options.items()
    return role if found else None  # type: ignore[return-value]


class _Finder:
    """The calls of a graph that end in one call and begin with one tensor."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._readers = graph.consumers()
        self._outputs = set(graph.output_refs())
        self._able = [_able(graph.flavour, call) for call in graph.calls]

    def candidates(self, last: int) -> Iterator[tuple[set[int], Ref]]:
        """The calls from one tensor to ``last`` that nothing else reads, shortest first."""
        calls = self._graph.calls
        if not self._able[last]:
            return
        members = {last}
        frontier = set(calls[last].refs)
        while len(members) <= _LONGEST:
            if len(members) > 1 and len(frontier) == 1:
                (source,) = frontier
                if self._graph.shape(source) == calls[last].shapes[0]:
                    yield set(members), source
            able = [ref for ref in frontier if self._joins(ref, members)]
            if not able:
                return
            ref = max(able, key=lambda each: each.call)
            members.add(ref.call)
            frontier = (frontier - {ref}) | set(calls[ref.call].refs)

    def _joins(self, ref: Ref, members: set[int]) -> bool:
        read = set(self._readers.get(ref, ()))
        return self._able[ref.call] and ref not in self._outputs and read <= members

    def trace(
        self, members: set[int], source: Ref, last: int, shape: tuple[int | None, ...] = (None,)
    ) -> Trace | None:
        """What a chain computes of a tensor of this shape; without, of one row of numbers."""
        calls = self._graph.calls

        def function(x: Any) -> Any:
            values = {source: x}
            for index in sorted(members):
                values[Ref(index)] = functions.run(calls[index], values)
            return values[Ref(last)]

        return trace(function, [(None, *shape[1:])])

    def read(self, members: set[int], source: Ref, last: int) -> tuple[Operation, set[int]] | None:
        """The function of a chain, if it is one that has an operator."""
        calls = self._graph.calls
        traced = self.trace(members, source, last)
        found = None if traced is None else stock_activations.scalar(traced, source)
        if found is None or found.name in ("identity", "clamp"):
            return None
        opaque = any(_without_operator(calls[index].role) for index in members)
        return (found, members) if opaque or found.name in _BETTER else None


def _without_operator(role: Role) -> bool:
    table = isinstance(role, Operation) and role.name == functions.NAME
    return table or isinstance(role, Opaque)


def _able(flavour: Flavour, call: Call) -> bool:
    """Whether a call may be a part of such a chain: it has no state, and acts on one tensor."""
    layer = call.layer
    name = flavour.class_name(layer)
    stock = name in _LAYERS or name.startswith("ops.")
    if not (stock or _users(flavour, call)) or len(call.dtypes) != 1:
        return False
    if getattr(layer, "activity_regularizer", None) is not None or not call.refs:
        return False
    return all(
        is_floating(dtype) or dtype == "bool" for dtype in (*call.dtypes, *call.input_dtypes)
    )


def _users(flavour: Flavour, call: Call) -> bool:
    """Whether it is of a user's, or an operator that was lifted, and has no state."""
    layer = call.layer
    return (
        flavour.is_layer(layer)
        and inside.may_be_read(flavour, call)
        and not inside.masks(flavour, layer)
        and not flavour.own_variables(layer)
        and not flavour.sublayers(layer)
        and not inside.asks(flavour, layer)
    )
