"""Activation functions that a graph has in pieces, found by what they compute.

A swish, a GELU or a clipping can be written in many ways. Which operators stand there, and in what
order, does not matter: what they make of one tensor, number by number, is evaluated at many places
and compared with the functions that layers compute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from rewriter import formulas
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators
from rewriter.lifting.evaluator import Evaluator
from rewriter.lifting.graph import Graph, Node, Out
from rewriter.lifting.values import Domains

_OPERATORS = words(
    """Abs Add AddV2 Div Erf Erfc Exp Greater GreaterEqual Identity IdentityN LeakyRelu Less
    LessEqual Maximum Minimum Mul Neg Pow RealDiv Relu Relu6 Select SelectV2 Sigmoid Softplus Square
    Sub Tanh StopGradient ZerosLike"""
)
_MOST = 24  # operators of one function
_PLACES = np.concatenate(
    [np.linspace(-12, 12, 961), [-1e4, -1e3, -100, -50, -20, 20, 50, 100, 1e3, 1e4]]
).astype(np.float32)
_ALPHAS = (0.3, -0.7)  # what stands for the slope of a PReLU while it is looked at


@dataclasses.dataclass(frozen=True)
class Match:
    """One function.

    Attributes:
      name: by which :data:`FUNCTIONS` has it, or ``leaky_relu``, ``relu``, ``clip`` or ``prelu``.
      of: the tensor that it is applied to.
      options: its numbers.
      alpha: of a PReLU: its slopes.
      nodes: the operators that nothing but it reads; the last is its output.
    """

    name: str
    of: Out
    options: Mapping[str, float]
    alpha: Out | None
    nodes: tuple[int, ...]


# Of the formulas, those that no single operator is.
FUNCTIONS = ("silu", "gelu", "gelu_tanh", "hard_silu", "hard_sigmoid", "hard_sigmoid_fifth")


class Finder:
    """Finds them in a graph.

    Args:
      graph: the graph.
      domains: of its tensors.
      evaluator: of its constants.
      names: the functions that are looked for.
      taken: operators that are part of something else.
    """

    def __init__(
        self,
        graph: Graph,
        domains: Domains,
        evaluator: Evaluator,
        names: Iterable[str],
        taken: Iterable[int],
    ):
        self._graph, self._domains, self._evaluator = graph, domains, evaluator
        self._taken = set(taken)
        self._table = {
            name: formulas.ACTIVATIONS[name](_PLACES.astype(np.float64)) for name in names
        }

    def find(self) -> dict[int, Match]:
        """By the number of the node that makes the output."""
        found: dict[int, Match] = {}
        for number in reversed(range(len(self._graph.nodes))):
            if number in self._taken or not self._is_piece(number):
                continue
            match = self._match(number)
            if match is not None:
                found[number] = match
                self._taken.update(match.nodes)
        return found

    def _is_piece(self, number: int) -> bool:
        node = self._graph.nodes[number]
        return (
            node.op in _OPERATORS
            and number not in self._taken
            and self._domains.symbolic(Out(number))
            and node.attribute("T", [tf.float32]) in (tf.float32, [tf.float32] * len(node.inputs))
        )

    def _match(self, number: int) -> Match | None:
        """Of all tensors that the node is a function of: the first in the graph that fits."""
        region, found = [number], None
        while len(region) <= _MOST:
            reads = {out for n in region for out in self._symbolic(n) if out.node not in region}
            if len(reads) == 1 and len(region) > 1:
                found = self._fitting(number, region, next(iter(reads))) or found
            # The last one made is opened next: what comes before it may be what all others read.
            last = max((out.node for out in reads), default=-1)
            if last < 0 or not self._is_piece(last) or not self._scalars(last):
                break
            region.append(last)
        return found

    def _symbolic(self, number: int) -> list[Out]:
        return [o for o in self._graph.nodes[number].inputs if self._domains.symbolic(o)]

    def _scalars(self, number: int) -> bool:
        """Whether what else it reads is known."""
        inputs = self._graph.nodes[number].inputs
        return all(self._domains.symbolic(out) or self._domains.known(out) for out in inputs)

    def _fitting(self, number: int, region: list[int], of: Out) -> Match | None:
        slopes: dict[Out, tuple[Out, int]] = {}
        numbers: dict[Out, np.ndarray] = {}
        for piece in region:
            for out in self._graph.nodes[piece].inputs:
                if self._domains.symbolic(out):
                    continue
                if not self._domains.known(out):
                    return None
                known, slope = self._evaluator.known(out), self._slope(out)
                if slope is not None:
                    slopes[out] = slope
                elif known.array.size == 1:
                    numbers[out] = known.array.reshape(())
                else:
                    return None
        order = sorted(region)
        nodes = tuple(self._alone(order, number))
        if not slopes:
            values = self._evaluate(order, of, Out(number), numbers)
            fit = None if values is None else self._named(values)
            return fit and Match(fit[0], of, fit[1], None, nodes)
        alphas = [out for out, _ in slopes.values()]
        if len({id(self._evaluator.known(out).variable) for out in alphas}) > 1:
            return None
        for alpha in _ALPHAS:
            given = {out: np.float32(sign * alpha) for out, (_, sign) in slopes.items()}
            values = self._evaluate(order, of, Out(number), {**numbers, **given})
            wanted = np.where(_PLACES > 0, _PLACES, alpha * _PLACES.astype(np.float64))
            if values is None or not _equal(values, wanted):
                return None
        return Match("prelu", of, {}, alphas[0], nodes)

    def _slope(self, out: Out) -> tuple[Out, int] | None:
        """A variable that may be a slope, and the sign with which it is read; None for others."""
        if self._evaluator.known(out).variable is not None:
            return out, 1
        node = self._graph.nodes[out.node]
        if node.op == "Neg" and self._evaluator.known(node.inputs[0]).variable is not None:
            return node.inputs[0], -1
        return None

    def _alone(self, order: list[int], number: int) -> list[int]:
        """Those of the pieces that no one else reads."""
        alone = {number}
        for piece in reversed(order[:-1]):
            indexes = range(len(self._graph.nodes[piece].inputs))
            readers = [r for i in indexes for r in self._graph.consumers.get(Out(piece, i), [])]
            if all(reader in alone for reader in readers):
                alone.add(piece)
        return sorted(alone)

    def _evaluate(
        self, order: list[int], of: Out, result: Out, numbers: Mapping[Out, np.ndarray]
    ) -> np.ndarray | None:
        """The values of a function at the places where it is looked at."""
        with tf.init_scope(), tf.device("cpu:0"):
            values = {out: tf.constant(number) for out, number in numbers.items()}
            values[of] = tf.constant(_PLACES)
            for piece in order:
                node: Node = self._graph.nodes[piece]
                made = operators.run(node.definition, [values[out] for out in node.inputs])
                values |= {Out(piece, index): value for index, value in enumerate(made)}
            array: np.ndarray = values[result].numpy()
        return array if array.shape == _PLACES.shape else None

    def _named(self, values: np.ndarray) -> tuple[str, dict[str, float]] | None:
        x = _PLACES.astype(np.float64)
        for name, wanted in self._table.items():
            if _equal(values, wanted):
                return name, {}
        low, high = float(values.min()), float(values.max())
        slope = float(values[_PLACES == -1][0]) * -1
        if 0 < slope < 1 and _equal(values, np.where(x > 0, x, slope * x)):
            return "leaky_relu", {"alpha": slope}
        if (
            low < high
            and high < x.max()
            and low > x.min()
            and _equal(values, np.clip(x, low, high))
        ):
            return ("relu", {"high": high}) if low == 0 else ("clip", {"low": low, "high": high})
        return None


def _equal(values: np.ndarray, wanted: np.ndarray) -> bool:
    bound = 2e-6 * np.maximum(1, np.abs(wanted))
    return bool(np.all(np.isfinite(values)) and np.all(np.abs(values - wanted) <= bound))


def named(flavour: Flavour) -> list[str]:
    """The activations in pieces that a Keras has a name or a function for."""
    return [n for n in FUNCTIONS if n == "gelu_tanh" or flavour.spelled(n) is not None]
