"""Layer normalizations that a graph has in pieces, found by what they compute.

``gamma * (x - mean) / sqrt(variance + epsilon) + beta`` over the last axis (Ba, Kiros and Hinton
2016, arXiv:1607.06450). In what order a graph multiplies and adds does not matter: what the
operators make of random rows is compared with the formula.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators
from rewriter.lifting.evaluator import Evaluator
from rewriter.lifting.graph import Graph, Node, Out
from rewriter.lifting.values import Domains, Known

_OPERATORS = words(
    """Add AddV2 BiasAdd Identity Mean Mul Neg Pow RealDiv Rsqrt Sqrt Square SquaredDifference
    StopGradient Sub"""
)
_ROOTS = ("Rsqrt", "Sqrt", "Pow")
_MOST = 24  # operators of one normalization
_ROWS = 64
_CHANNELS = 7  # where nothing says how many


@dataclasses.dataclass(frozen=True)
class Norm:
    """A layer normalization over the last axis.

    Attributes:
      of: what it normalizes.
      gamma, beta: its vectors; None where it has none.
      epsilon: added to the variance.
      nodes: the operators that nothing but it reads; the last is its output.
      rank: of the tensor: where an axis is counted from the front, it is the last one of this rank
        only. None for any.
      least: axes that the tensor has to have, so that the vectors give it none.
    """

    of: Out
    gamma: Known | None
    beta: Known | None
    epsilon: float
    nodes: tuple[int, ...]
    rank: int | None
    least: int


class Finder:
    """Finds them in a graph.

    Args:
      graph: the graph.
      domains: of its tensors.
      evaluator: of its constants.
      taken: operators that are part of something else.
    """

    def __init__(self, graph: Graph, domains: Domains, evaluator: Evaluator, taken: set[int]):
        self._graph, self._domains, self._evaluator = graph, domains, evaluator
        self._taken = set(taken)

    def find(self) -> dict[int, Norm]:
        """By the number of the node that makes the output."""
        found: dict[int, Norm] = {}
        if not any(node.op == "Mean" for node in self._graph.nodes):
            return found
        for number in reversed(range(len(self._graph.nodes))):
            norm = self._match(number) if self._is_piece(number) else None
            if norm is not None:
                found[number] = norm
                self._taken.update(norm.nodes)
        return found

    def _is_piece(self, number: int) -> bool:
        node = self._graph.nodes[number]
        return (
            node.op in _OPERATORS
            and number not in self._taken
            and self._domains.symbolic(Out(number))
            and all(self._domains.symbolic(o) or self._domains.known(o) for o in node.inputs)
        )

    def _match(self, number: int) -> Norm | None:
        region = [number]
        while len(region) <= _MOST:
            inputs = [out for n in region for out in self._graph.nodes[n].inputs]
            reads = {o for o in inputs if self._domains.symbolic(o) and o.node not in region}
            kinds = {self._graph.nodes[n].op for n in region}
            if len(reads) == 1 and "Mean" in kinds and kinds & set(_ROOTS):
                norm = self._fitting(region, next(iter(reads)))
                if norm is not None:
                    return norm
            last = max((out.node for out in reads), default=-1)
            if last < 0 or not self._is_piece(last):
                return None
            region.append(last)
        return None

    def _fitting(self, region: Sequence[int], of: Out) -> Norm | None:
        order = sorted(region)
        nodes = [self._graph.nodes[n] for n in order]
        known = {
            out: self._evaluator.known(out)
            for node in nodes
            for out in node.inputs
            if not self._domains.symbolic(out)
        }
        axes = {self._axis(known[node.inputs[1]].array) for node in nodes if node.op == "Mean"}
        axis = next(iter(axes))
        if len(axes) != 1 or axis is None:
            return None
        vectors = [k for k in known.values() if k.array.size > 1]
        sizes = {k.array.size for k in vectors} or {_CHANNELS}
        if len(sizes) != 1:
            return None
        least = max(k.array.ndim for k in known.values())
        x = self._rows(sizes.pop(), max(3, least) if axis < 0 else axis + 1)
        y = self._evaluate(order, of, x, known)
        if y is None:
            return None
        x, y = x.reshape(_ROWS, -1).astype(np.float64), y.reshape(_ROWS, -1)
        scalars = [float(k.array.ravel()[0]) for k in known.values() if k.array.size == 1]
        for epsilon in sorted({s for s in scalars if 0 < s <= 0.1}):
            spread = np.sqrt(x.var(-1, keepdims=True) + epsilon)
            z = (x - x.mean(-1, keepdims=True)) / spread
            gamma = ((z - z.mean(0)) * (y - y.mean(0))).mean(0) / z.var(0)
            beta = y.mean(0) - gamma * z.mean(0)
            if np.abs(y - (gamma * z + beta)).max() > 1e-4 * np.abs(y).max():
                continue
            own = [_vector(vectors, fit, plain) for fit, plain in ((gamma, 1.0), (beta, 0.0))]
            if all(found for found, _ in own):
                alone = tuple(self._alone(order))
                rank = None if axis < 0 else axis + 1
                return Norm(of, own[0][1], own[1][1], epsilon, alone, rank, least)
        return None

    def _axis(self, axes: np.ndarray) -> int | None:
        """The one axis of a mean: -1, or counted from the front; None for others."""
        flat = [int(a) for a in np.atleast_1d(axes)]
        return flat[0] if len(flat) == 1 and (flat[0] == -1 or flat[0] >= 1) else None

    def _rows(self, channels: int, rank: int) -> np.ndarray:
        generator = np.random.default_rng(0)
        sizes = 10.0 ** generator.uniform(-3, 1, (_ROWS, 1))  # small ones show the epsilon
        rows = generator.normal(size=(_ROWS, channels)) * sizes + generator.normal(size=(_ROWS, 1))
        shape = (_ROWS, *(1,) * (rank - 2), channels)
        return rows.reshape(shape).astype(np.float32)

    def _evaluate(
        self, order: Sequence[int], of: Out, x: np.ndarray, known: dict[Out, Known]
    ) -> np.ndarray | None:
        """What the operators make of ``x``, in float64; None if it has another shape.

        Computed so, too: in float32 the order in which a small epsilon comes in would count.
        """
        with tf.init_scope(), tf.device("cpu:0"):
            values = {out: tf.constant(_double(k.array)) for out, k in known.items()}
            values[of] = tf.constant(_double(x))
            try:
                for piece in order:
                    node: Node = self._graph.nodes[piece]
                    made = operators.run(node.definition, [values[out] for out in node.inputs])
                    values |= {Out(piece, index): value for index, value in enumerate(made)}
            except tf.errors.OpError:
                return None  # shapes that do not go together: it is something else
            array: np.ndarray = values[Out(order[-1])].numpy()
        return array if array.shape == x.shape else None

    def _alone(self, order: Sequence[int]) -> list[int]:
        """Those of the pieces that no one else reads."""
        alone = {order[-1]}
        for piece in reversed(order[:-1]):
            if all(reader in alone for reader in self._graph.consumers.get(Out(piece), [])):
                alone.add(piece)
        return sorted(alone)


def _double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _vector(vectors: Sequence[Known], fit: np.ndarray, plain: float) -> tuple[bool, Known | None]:
    """Whether what was fitted is one of the vectors or says nothing, and which."""
    size = max(1.0, float(np.abs(fit).max()))
    near = [
        (float(np.abs(k.array.ravel() - fit).max()), index)
        for index, k in enumerate(vectors)
        if k.array.size == fit.size
    ]
    if near and min(near)[0] <= 1e-3 * size:
        return True, vectors[min(near)[1]]
    return bool(np.abs(fit - plain).max() <= 1e-3), None
