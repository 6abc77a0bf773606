"""Calls that make one table together: functions of a number, and products with such.

``1 / (x + 1e-6)`` is two calls, and one function of ``x``. Read as that, no grid is between them
that would round the constant away. A chain begins behind an activation that the operator before it
has fused, whose range is the narrower one.

``x / (y + 1e-6)`` is a product of ``x`` with a function of ``y``, whose values lie as far apart as
those of ``1 / y``: on 256 levels the small ones would be lost. The product is given the function,
and the program holds it in 16 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rewriter.grid import FUSED_ACTIVATIONS
from rewriter.reading import functions, inside
from rewriter.reading.graph import Graph, Ref
from rewriter.reading.operations import MOVES, Operation, guards, is_floating
from rewriter.reading.roles import Host, Opaque, Role, Within
from rewriter.reading.traces import Trace

# Infinite, or with infinite gradients, at 0.
_GUARDED = ("sqrt", "rsqrt", "log")
TIMES = "times_function"

_Members = tuple[set[int], Ref]


class Finder(Protocol):
    """What finds the calls from one tensor to another, see :mod:`rewriter.reading.chains`."""

    def candidates(self, last: int) -> Iterator[_Members]:
        """The calls from one tensor to ``last`` that nothing else reads, shortest first."""

    def trace(self, members: set[int], source: Ref, last: int) -> Trace | None:
        """What they compute, as a function of one row of numbers."""


def join(graph: Graph, finder: Finder) -> None:
    """Give such calls their roles."""
    joiner = _Joiner(graph, finder)
    calls = range(len(graph.calls))
    for index in reversed(calls):
        joiner.function(index)
    for index in calls:
        joiner.single(index)
    joiner.products()
    joiner.poles()


class _Joiner:
    def __init__(self, graph: Graph, finder: Finder):
        self._graph, self._calls, self._finder = graph, graph.calls, finder
        self._readers = graph.consumers()
        self._outputs = set(graph.output_refs())

    # One function

    def function(self, last: int) -> None:
        """The longest chain that ends in a call, where it has no operator of its own."""
        if isinstance(self._calls[last].role, Within):
            return
        for members, source in reversed(list(self._finder.candidates(last))):
            if not self._wants_table(members) or not self._begins(members, source):
                continue
            traced = self._finder.trace(members, source, last)
            found = functions.of_trace(traced, source)
            if found is not None:
                self._give(found, members, last)
                return

    def single(self, index: int) -> None:
        """A function or a layer of a user's, which could not be read as several calls."""
        call = self._calls[index]
        if isinstance(call.role, Opaque) and not inside.asks(self._graph.flavour, call.layer):
            call.role = functions.of_call(self._graph.flavour, call) or call.role

    def _give(self, found: Operation, members: set[int], last: int) -> None:
        pole = self._pole(found)
        for member in members:
            reads = pole is not None and pole.ref in self._calls[member].refs
            self._calls[member].role = Within(pole if reads else None)
        self._calls[last].role = found

    def _wants_table(self, members: set[int]) -> bool:
        """Whether a chain is better one table than several operators.

        It has a part without an operator, or a division, or a root or logarithm behind a guard.
        """
        for index in members:
            role = self._calls[index].role
            if isinstance(role, Opaque) or _named(role, functions.NAME) or _named(role, TIMES):
                return True
            if isinstance(role, Operation) and role.name in _GUARDED:
                before = role.operands[0].call
                if before in members and guards(self._calls[before].role):
                    return True
        return False

    def _begins(self, members: set[int], source: Ref) -> bool:
        """Whether a chain may begin behind a tensor: it is one of the program's."""
        before = self._calls[source.call]
        if isinstance(before.role, Within) or not is_floating(before.dtypes[source.index]):
            return False
        first = [i for i in members if source in self._calls[i].refs]
        return not (len(first) == 1 and self._fused(first[0]))

    def _fused(self, index: int) -> bool:
        role = self._calls[index].role
        if not isinstance(role, Operation) or role.name != "clamp":
            return False
        return (role.options["low"], role.options["high"]) in FUSED_ACTIVATIONS.values()

    # Poles

    def poles(self) -> None:
        """Note of which tensors they are, with the operations."""
        for call in self._calls:
            operation = _named(call.role, functions.NAME) or _named(call.role, TIMES)
            if operation is not None:
                options = {**operation.options, "pole": self._pole(operation)}
                call.role = dataclasses.replace(operation, options=options)

    def _pole(self, operation: Operation) -> functions.Pole | None:
        function, ref = operation.options["function"], operation.operands[-1]
        if not functions.steep(function):
            return None
        width = functions.width(function) if self._has_zeros(ref) else 0.0
        return functions.Pole(ref, width) if np.isfinite(width) else None

    def _has_zeros(self, ref: Ref) -> bool:
        """Whether a tensor has zeros that no rounding makes: those of a ReLU."""
        role = self._calls[ref.call].role
        if isinstance(role, Host):
            return _named(role.activation, "clamp") is not None
        if not isinstance(role, Operation) or role.name == "clamp":
            return isinstance(role, Operation)
        moved = role.name in MOVES | {"multiply", "pool", "max", "maximum"}
        return moved and any(map(self._has_zeros, role.operands))

    # Products with a function

    def products(self) -> None:
        """Give divisions, and products with steep functions, what their factors are made of."""
        found = {index: self._pair(index) for index in range(len(self._calls))}
        factors = {index: pair for index, pair in found.items() if pair is not None}
        for index, (x, y) in factors.items():
            call = self._calls[index]
            division = _named(call.role, TIMES)
            chain = self._chain(y, factors)
            if chain is None:
                continue
            members, source, function = chain
            if division is not None:
                function = _composed(division.options["function"], function)
            self._give(Operation(TIMES, (x, source), {"function": function}), members, index)

    def _pair(self, index: int) -> tuple[Ref, Ref] | None:
        """A tensor, and the one that the other factor is made of."""
        role = self._calls[index].role
        operation = _named(role, TIMES) or _named(role, "multiply")
        if operation is None or len({*operation.operands}) != 2 or len(operation.operands) != 2:
            return None
        first, second = operation.operands
        if operation.name == TIMES:
            return first, second
        steep = (pair for pair in ((first, second), (second, first)) if self._steep(pair[1]))
        return next(steep, None)

    def _steep(self, ref: Ref) -> bool:
        role = self._calls[ref.call].role
        table = _named(role, functions.NAME)
        if table is None:
            return _named(role, "rsqrt") is not None
        return functions.steep(table.options["function"])

    def _chain(
        self, y: Ref, factors: Mapping[int, tuple[Ref, Ref]]
    ) -> tuple[set[int], Ref, functions.Function] | None:
        """The calls that make a factor of something else, if only such products read it."""
        read = self._readers.get(y, [])
        if y in self._outputs or not all(i in factors and factors[i][1] == y for i in read):
            return None
        for members, source in reversed(self._candidates(y.call)):
            if not self._begins(members, source):
                continue
            found = functions.of_trace(self._finder.trace(members, source, y.call), source)
            if found is not None:
                return members, source, found.options["function"]
        return None

    def _candidates(self, last: int) -> Sequence[_Members]:
        """With the call alone, whatever it is."""
        found = list(self._finder.candidates(last))
        call, refs = self._calls[last], list(dict.fromkeys(self._calls[last].refs))
        able = isinstance(call.role, Operation | Within) and len(refs) == 1
        plain = able and self._graph.shape(refs[0]) == call.shapes[0]
        return [({last}, refs[0]), *found] if plain else found


def _named(role: Role | None, name: str) -> Operation | None:
    """A role as an operation of this name; None of any other."""
    return role if isinstance(role, Operation) and role.name == name else None


def _composed(outer: functions.Function, inner: functions.Function) -> functions.Function:
    return lambda values: outer(inner(values))
