"""Computes what a graph decides without its inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators
from rewriter.lifting.graph import Graph, Node, Out, adds_axes, constant
from rewriter.lifting.values import Domains, Known, Repeated

# Of a variable, they show the same values in another shape, order or type.
_TURNS = "Transpose"
_VIEWS = words("Identity ReadVariableOp Reshape Squeeze ExpandDims Cast EnsureShape Transpose")
_REPEATS = words("Tile BroadcastTo")  # they show rows several times
_SEVERAL = 3  # samples


class Evaluator:
    """Values of what does not depend on the inputs, each computed once."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._values: dict[Out, Known] = {}

    def known(self, out: Out) -> Known:
        """The value of a tensor that depends on constants and variables alone."""
        todo = [out]
        while todo:
            current = todo[-1]
            node = self._graph.nodes[current.node]
            missing = [i for i in node.inputs if i not in self._values]
            if current in self._values or not missing:
                todo.pop()
                if current not in self._values:
                    self._evaluate(current, node)
            else:
                todo += missing
        return self._values[out]

    def repeated(
        self, out: Out, domains: Domains, shape: Callable[[Out], tuple[int | None, ...]]
    ) -> Known | Repeated | None:
        """A tensor that depends on sizes, if it is one row again and again, or the same for any.

        Args:
          out: the tensor.
          domains: of the graph.
          shape: of a tensor that depends on the inputs: None for the batch.

        Returns:
          None for anything else, or where the row is computed from a variable.
        """
        one, several = (self._for_batch(out, domains, shape, batch) for batch in (1, _SEVERAL))
        if one is None or several is None:
            return None
        row = one.array
        if np.array_equal(row, several.array):
            return one  # of other sizes than the number of samples
        if row.dtype.kind != "f":
            return None
        if row.shape[:1] != (1,) or not np.array_equal(row.repeat(_SEVERAL, 0), several.array):
            return None
        return Repeated(one)

    def _for_batch(
        self,
        out: Out,
        domains: Domains,
        shape: Callable[[Out], tuple[int | None, ...]],
        batch: int,
    ) -> Known | None:
        """The value for so many samples; ``variable`` is the one that it shows rows of."""
        found: dict[Out, Known] = {}
        todo = [out]
        while todo:
            current = todo[-1]
            node = self._graph.nodes[current.node]
            if current in found:
                todo.pop()
            elif domains.known(current):
                found[current] = self.known(current)
            elif node.op == "Shape":
                sizes = shape(node.inputs[0])
                if None in sizes[1:]:
                    return None
                found[current] = Known(np.array([batch, *sizes[1:]], np.int32))
            elif missing := [i for i in node.inputs if i not in found]:
                todo += missing
            else:
                inputs = [found[i] for i in node.inputs]
                shown = inputs[0].variable
                kept = node.op != _TURNS and (self._views(node) or node.op in _REPEATS)
                if not kept and any(i.variable for i in inputs):
                    return None
                with tf.init_scope(), tf.device("cpu:0"):
                    results = operators.run(node.definition, [tf.constant(i.array) for i in inputs])
                made = enumerate(results)
                found |= {Out(current.node, i): Known(r.numpy(), shown) for i, r in made}
        return found[out]

    def _views(self, node: Node) -> bool:
        return node.op in _VIEWS or adds_axes(self._graph, node)

    def _evaluate(self, out: Out, node: Node) -> None:
        if out.node in self._graph.variables:
            variable = self._graph.variables[out.node]
            self._values[out] = Known(variable.numpy(), variable)
            return
        if out.node in self._graph.constants:
            self._values[out] = Known(self._graph.constants[out.node])
            return
        if node.op == "Const":
            self._values[out] = Known(constant(node))
            return
        inputs = [self._values[i] for i in node.inputs]
        if node.op in ("ReadVariableOp", "Identity"):
            self._values[out] = inputs[0]
            return
        if node.op == "ResourceGather":
            self._values[out] = Known(inputs[0].array[inputs[1].array])
            return
        with tf.init_scope(), tf.device("cpu:0"):
            results = operators.run(node.definition, [tf.constant(i.array) for i in inputs])
        shown = inputs[0] if self._views(node) and inputs else Known(np.zeros(()))
        if node.op == _TURNS:
            self._values[out] = shown.turned(inputs[1].array.tolist())
            return
        for index, result in enumerate(results):
            self._values[Out(out.node, index)] = Known(result.numpy(), shown.variable, shown.view)
