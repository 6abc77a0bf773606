"""What Keras 3 writes around an operator on TensorFlow, taken away again.

``keras.ops.take`` counts negative numbers from the end, ``tf.where(i < 0, i + size, i)``, which its
Embedding does by itself. ``keras.ops.argmax`` puts -0.0 before 0.0, by bits of the number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from rewriter.lifting.graph import Graph, Node, Out, constant

_SMALLEST = np.finfo(np.float32).tiny
# The places of what is looked up by, and of what a place is found in.
_NUMBERS = {"ResourceGather": 1, "GatherV2": 1}
_VALUES = {"ArgMax": 0, "ArgMin": 0}


def plain(graph: Graph) -> Graph:
    """The same graph, in which such operators read what stands in the middle of it.

    Nodes keep their numbers; those that no one reads any more have no inputs.
    """
    nodes = [dataclasses.replace(node, inputs=list(node.inputs)) for node in graph.nodes]
    changed = False
    for places, inner in ((_NUMBERS, _number), (_VALUES, _value)):
        for node in nodes:
            place = places.get(node.op)
            found = None if place is None else _within(nodes, node.inputs[place], inner)
            if place is not None and found is not None:
                node.inputs[place], changed = found, True
    if not changed:
        return graph
    read = {out.node for out in graph.outputs.values()}
    for number in reversed(range(len(nodes))):
        if number not in read:
            nodes[number].inputs = []
        read.update(out.node for out in nodes[number].inputs)
    return dataclasses.replace(graph, nodes=nodes)


def _within(
    nodes: list[Node], out: Out, inner: Callable[[list[Node], Node, Out], bool]
) -> Out | None:
    """What a choice stands for, if it is one of these."""
    node = nodes[out.node]
    if node.op != "SelectV2" or not inner(nodes, node, node.inputs[2]):
        return None
    return node.inputs[2]


def _number(nodes: list[Node], choice: Node, number: Out) -> bool:
    """``where(number < 0, number + size, number)``."""
    less, more = (nodes[out.node] for out in choice.inputs[:2])
    return (
        (less.op, more.op) == ("Less", "AddV2")
        and less.inputs[0] == more.inputs[0] == number
        and _is_zero(nodes, less.inputs[1])
    )


def _value(nodes: list[Node], choice: Node, value: Out) -> bool:
    """``where(value == 0 and ..., the smallest number, value)``."""
    both, small = (nodes[out.node] for out in choice.inputs[:2])
    if (
        both.op != "LogicalAnd"
        or small.op != "Const"
        or np.any(np.abs(constant(small)) > _SMALLEST)
    ):
        return False
    equal = nodes[both.inputs[0].node]
    zero = equal.op == "Equal" and equal.inputs[0] == value
    return zero and _is_zero(nodes, equal.inputs[1])


def _is_zero(nodes: list[Node], out: Out) -> bool:
    node = nodes[out.node]
    return node.op == "Const" and not np.any(constant(node))
