"""Batch normalizations that the graph has in pieces, found by algebra.

In inference a batch normalization is ``x * F + T`` per channel, with ``F = gamma / sqrt(variance +
epsilon)`` and ``T = beta - mean * F``. In what order a graph multiplies and adds does not matter:
the chain of operators is expanded into factors and terms, and those are compared.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from rewriter.keras_compat.pure_functions import words
from rewriter.lifting.evaluator import Evaluator
from rewriter.lifting.graph import Graph, Out
from rewriter.lifting.values import Domains

_SUMS = ("AddV2", "Add", "BiasAdd")
_PIECES = (*_SUMS, "Sub", "Mul", "RealDiv")
_THROUGH = ("Identity", "Reshape", "ExpandDims", "Squeeze", "Cast", "ReadVariableOp")
_LONGEST = 8  # operators of one normalization
LINEAR = words(
    """Conv2D Conv3D DepthwiseConv2dNative MatMul BatchMatMulV2 Conv2DBackpropInput
    Conv3DBackpropInputV2"""
)


@dataclasses.dataclass(frozen=True)
class _Root:
    """``1 / sqrt(variance + epsilon)``."""

    variance: Out
    epsilon: float


_Atom = Out | _Root
_Product = tuple[_Atom, ...]


@dataclasses.dataclass(frozen=True)
class Norm:
    """A batch normalization.

    Attributes:
      base: what it normalizes.
      variance, mean, gamma, beta: its vectors; None where it has none.
      epsilon: added to the variance.
      axis: of the channels, counted from the end.
      nodes: the numbers of the symbolic operators that it stands for; the last is its output.
    """

    base: Out
    variance: Out
    mean: Out | None
    gamma: Out | None
    beta: Out | None
    epsilon: float
    axis: int
    nodes: tuple[int, ...]


class Finder:
    """Finds them in a graph."""

    def __init__(self, graph: Graph, domains: Domains, evaluator: Evaluator):
        self._graph, self._domains, self._evaluator = graph, domains, evaluator

    def find(self) -> dict[int, Norm]:
        """By the number of the node that makes the output."""
        found: dict[int, Norm] = {}
        taken: set[int] = set()
        for number in reversed(range(len(self._graph.nodes))):
            if number in taken or self._graph.nodes[number].op not in _PIECES:
                continue
            norm = self._match(number)
            if norm is not None:
                found[number] = norm
                taken.update(norm.nodes)
        return found

    def _match(self, number: int) -> Norm | None:
        # The longest chain that is one: before it may stand another normalization.
        for length in range(_LONGEST, 1, -1):
            norm = self._match_chain(number, length)
            if norm is not None:
                return norm
        return None

    def _match_chain(self, number: int, length: int) -> Norm | None:
        expanded = self._expand(Out(number), length, outermost=True)
        if expanded is None:
            return None
        base, factors, terms, nodes, axis = expanded
        factors = [f for f in factors if not self._is_one(f)]
        roots = [f for f in factors if isinstance(f, _Root)]
        gammas = [f for f in factors if not isinstance(f, _Root)]
        if len(roots) != 1 or len(gammas) > 1 or axis is None:
            return None
        mean = beta = None
        for sign, term in terms:
            left = collections.Counter(a for a in term if not self._is_one(a))
            if not collections.Counter(factors) - left:
                left -= collections.Counter(factors)
                if sign > 0 or mean is not None or left.total() != 1:
                    return None
                (mean,) = left
            elif sign > 0 and beta is None and left.total() == 1:
                (beta,) = left
            else:
                return None
        vectors = (mean, beta, gammas[0] if gammas else None)
        if any(isinstance(v, _Root) for v in vectors):
            return None
        mean, beta, gamma = (v if isinstance(v, Out) else None for v in vectors)
        root = roots[0]
        return Norm(base, root.variance, mean, gamma, beta, root.epsilon, axis, tuple(nodes))

    def _expand(
        self, out: Out, length: int, outermost: bool = False
    ) -> tuple[Out, list[_Atom], list[tuple[int, _Product]], list[int], int | None] | None:
        """``out`` as base, factors and terms; None where it is nothing of the kind."""
        node = self._graph.nodes[out.node]
        alone = outermost or len(self._graph.consumers[out]) == 1
        split = self._operands(out.node)
        if not alone or split is None or not length:
            return None if outermost else (out, [], [], [], None)
        symbolic, known, first = split
        before = self._expand(symbolic, length - 1)
        if before is None:
            return None
        base, factors, terms, nodes, axis = before
        if node.op in _SUMS and base == symbolic and self._is_bias(symbolic, known):
            return None if outermost else (out, [], [], [], None)
        place = self._axis(known)
        if place is None or (axis is not None and place != axis):
            return None if outermost else (out, [], [], [], None)
        nodes = [*nodes, out.node]
        if node.op == "Mul":
            own = self._factors(known)
            return base, factors + own, [(s, (*t, *own)) for s, t in terms], nodes, place
        if node.op == "RealDiv":
            root = self._below(known) if first else None
            if root is None:
                return None if outermost else (out, [], [], [], None)
            return base, [*factors, root], [(s, (*t, root)) for s, t in terms], nodes, place
        if node.op == "Sub" and not first:
            return None if outermost else (out, [], [], [], None)
        sign = -1 if node.op == "Sub" else 1
        return base, factors, terms + self._terms(known, sign), nodes, place

    def _operands(self, number: int) -> tuple[Out, Out, bool] | None:
        """The symbolic and the known operand of a binary operator, and whether the first is the
        symbolic one."""
        node = self._graph.nodes[number]
        if node.op not in _PIECES or len(node.inputs) != 2:
            return None
        a, b = node.inputs
        if self._domains.symbolic(a) and self._domains.known(b):
            return a, b, True
        if self._domains.symbolic(b) and self._domains.known(a):
            return b, a, False
        return None

    def _is_bias(self, symbolic: Out, known: Out) -> bool:
        """Whether a sum is the bias of the linear operator before it."""
        linear = self._graph.nodes[symbolic.node].op in LINEAR
        return linear and isinstance(self._atom(known), Out) and len(self._terms(known, 1)) == 1

    def _axis(self, known: Out) -> int | None:
        """The axis of the channels, counted from the end; None if it is no vector."""
        shape = self._evaluator.known(known).array.shape
        places = [i - len(shape) for i, size in enumerate(shape) if size != 1]
        if not places:
            return -1 if shape else None  # of one channel
        return places[0] if len(places) == 1 else None

    def _through(self, out: Out) -> Out:
        node = self._graph.nodes[out.node]
        while node.op in _THROUGH and out.node not in self._graph.variables:
            out = node.inputs[0]
            node = self._graph.nodes[out.node]
        return out

    def _atom(self, out: Out) -> _Atom | None:
        out = self._through(out)
        node = self._graph.nodes[out.node]
        if node.op == "Rsqrt":
            return self._root(node.inputs[0])
        if node.op == "Pow" and self._number(node.inputs[1]) == -0.5:
            return self._root(node.inputs[0])
        if node.op in ("Reciprocal", "Inv"):
            return self._below(node.inputs[0])
        if node.op == "RealDiv" and self._number(node.inputs[0]) == 1:
            return self._below(node.inputs[1])
        return out if node.op in ("Const", *_THROUGH) or out.node in self._graph.variables else None

    def _below(self, out: Out) -> _Root | None:
        """What it is to divide by a standard deviation."""
        out = self._through(out)
        node = self._graph.nodes[out.node]
        halved = node.op == "Pow" and self._number(node.inputs[1]) == 0.5
        return self._root(node.inputs[0]) if node.op == "Sqrt" or halved else None

    def _root(self, out: Out) -> _Root | None:
        """``1 / sqrt(out)``, where that is a variance and a number."""
        added = self._graph.nodes[self._through(out).node]
        if added.op in ("AddV2", "Add"):
            for a, b in (added.inputs, added.inputs[::-1]):
                number = self._number(b)
                if number is not None:
                    return _Root(self._through(a), number)
        return None

    def _number(self, out: Out) -> float | None:
        """The value of a constant that is one number."""
        known = self._evaluator.known(out)
        if known.variable is not None or known.array.size != 1:
            return None
        return float(known.array.ravel()[0])

    def _factors(self, out: Out) -> list[_Atom]:
        atom = self._atom(out)
        if atom is not None:
            return [atom]
        out = self._through(out)
        node = self._graph.nodes[out.node]
        if node.op == "Mul":
            return [*self._factors(node.inputs[0]), *self._factors(node.inputs[1])]
        if node.op == "RealDiv" and (root := self._below(node.inputs[1])) is not None:
            return [*self._factors(node.inputs[0]), root]
        return [out]

    def _terms(self, out: Out, sign: int) -> list[tuple[int, _Product]]:
        inner = self._through(out)
        node = self._graph.nodes[inner.node]
        if node.op in ("AddV2", "Add", "Sub"):
            second = -sign if node.op == "Sub" else sign
            return self._terms(node.inputs[0], sign) + self._terms(node.inputs[1], second)
        if node.op == "Neg":
            return self._terms(node.inputs[0], -sign)
        factors: list[_Atom] = []
        for factor in self._factors(out):
            while not isinstance(factor, _Root) and self._graph.nodes[factor.node].op == "Neg":
                sign, factor = -sign, self._through(self._graph.nodes[factor.node].inputs[0])
            factors.append(factor)
        return [(sign, tuple(factors))]

    def _is_one(self, atom: _Atom) -> bool:
        if isinstance(atom, _Root) or atom.node in self._graph.variables:
            return False
        if self._graph.nodes[atom.node].op != "Const":
            return False
        return bool(np.all(self._evaluator.known(atom).array == 1)) and (
            self._evaluator.known(atom).array.size == 1
        )
