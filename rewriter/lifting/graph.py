"""The graph of a signature: flat, in topological order, with its variables."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators

# Of a variable, they show the same values: it is a weight itself. A cast makes others of them.
_VIEWS = words("Identity ReadVariableOp Reshape Squeeze ExpandDims")
_TRANSPARENT = ("CheckNumerics", "EnsureShape", "Identity", "Snapshot")


@dataclasses.dataclass(frozen=True)
class Out:
    """The ``index``-th tensor that a node makes."""

    node: int
    index: int = 0


@dataclasses.dataclass(eq=False)
class Node:
    """One operator.

    Attributes:
      name: its name in the graph.
      op: the operator.
      definition: its ``NodeDef``.
      inputs: what it reads; control inputs are left out.
    """

    name: str
    op: str
    definition: Any
    inputs: list[Out]

    def attribute(self, name: str, default: Any = None) -> Any:
        """One of its attributes as Python has it."""
        if name not in self.definition.attr:
            return default
        value = operators.attribute(self.definition.attr[name])
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    @property
    def scope(self) -> list[str]:
        """The parts of its name, without those that calls of functions put there."""
        parts = self.name.split("/")
        return [
            p for p in parts if not p.startswith(("StatefulPartitionedCall", "PartitionedCall"))
        ]


@dataclasses.dataclass(eq=False)
class Graph:
    """What a signature computes.

    Attributes:
      nodes: in topological order; only what the outputs need.
      inputs: for each input by name: its node, its shape with the batch, its dtype.
      outputs: by name.
      variables: by the number of the node that stands for them.
      constants: what the function captured as a value, likewise.
    """

    nodes: list[Node]
    inputs: dict[str, tuple[int, tf.TensorShape, tf.DType]]
    outputs: dict[str, Out]
    variables: dict[int, tf.Variable]
    constants: dict[int, np.ndarray]
    consumers: dict[Out, list[int]] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.consumers = collections.defaultdict(list)
        for number, node in enumerate(self.nodes):
            for out in node.inputs:
                self.consumers[out].append(number)
        for out in self.outputs.values():
            self.consumers[out].append(-1)  # someone outside


def direct(graph: Graph) -> Graph:
    """The same graph, in which what is computed is read at once, and not through an ``Identity``.

    Where a function was called stand such nodes, and what follows them belongs to what is before.
    Nodes keep their numbers, outputs what they are; such a node that no one reads has no input.
    """
    held = {*graph.variables, *graph.constants}
    source: dict[Out, Out] = {}
    nodes = []
    for number, node in enumerate(graph.nodes):
        inputs = [source.get(out, out) for out in node.inputs]
        if node.op in _TRANSPARENT and "_gradient_op_type" not in node.definition.attr:
            before = inputs[0].node
            if before not in held and graph.nodes[before].op != "Const":
                source[Out(number)] = inputs[0]
        nodes.append(Node(node.name, node.op, node.definition, inputs))
    ends = set(graph.outputs.values())
    for out in source:
        if out not in ends:
            nodes[out.node].inputs = []
    return dataclasses.replace(graph, nodes=nodes)


def adds_axes(graph: Graph, node: Node) -> bool:
    """Whether an operator is a slice that takes all, with axes of size 1 beside: ``x[None, :]``."""
    if node.op != "StridedSlice" or node.attribute("shrink_axis_mask", 0):
        return False
    steps = graph.nodes[node.inputs[3].node]
    if steps.op != "Const":
        return False
    names = ("new_axis_mask", "ellipsis_mask", "begin_mask", "end_mask")
    new, rest, first, last = (node.attribute(name, 0) for name in names)
    free = new | rest | (first & last)
    return all(
        free >> place & 1 and (step == 1 or (new | rest) >> place & 1)
        for place, step in enumerate(constant(steps))
    )


def shows(graph: Graph, node: Node) -> bool:
    """Whether an operator shows the values of a variable as they are, in another shape."""
    return node.op in _VIEWS or adds_axes(graph, node)


def check(nodes: Any, where: str) -> None:
    """Raise LoadError if an operator stands there that is not known to compute values only."""
    for node in nodes:
        if node.op not in operators.ALLOWED:
            raise LoadError(
                f"{where} has the operator {node.op} ({node.name!r}), which is none of those that "
                "only compute values, or is not known here. Export the model without it, or save "
                "it with its layers: model.save('model.keras')."
            )


def constant(node: Node) -> np.ndarray:
    """The value of a ``Const``."""
    value: np.ndarray = tf.make_ndarray(node.definition.attr["value"].tensor)
    return value
