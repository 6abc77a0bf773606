"""What the tensors of a user's layer are computed as: equal numbers for equal computations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import private_tensorflow
from rewriter.lifting.block import Block, Inner
from rewriter.lifting.graph import Node, Out


def numbers(
    block: Block,
    number: Callable[[Any], int],
    frozen: Callable[[Any, Mapping[Any, int]], Any],
    skips: Callable[[Any, Any], bool],
) -> tuple[Any, dict[int, list[Inner]]]:
    """Numbers for what the tensors are: equal ones are computed alike.

    Args:
      block: the graph.
      number: gives equal numbers for equal keys.
      frozen: the key of a structure, given the numbers of its tensors by ``Out``.
      skips: whether a layer inside, called with a flag, only passes its input on.

    Returns:
      of the results; and of every call inside that is not skipped.
    """
    known: dict[Any, int] = {
        Out(node): number(("argument", i)) for i, node in enumerate(block.arguments)
    }
    calls: dict[int, list[Inner]] = {}
    seen: set[int] = set()
    for place, node in enumerate(block.graph.nodes):
        if place in block.inner:
            inner = block.inner[place]
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            flat = tf.nest.flatten(inner.outputs)
            if skips(inner.layer, inner.training):
                source = next(o for o in tf.nest.flatten(inner.args) if isinstance(o, Out))
                known[flat[0]] = known[source]
                continue
            own = number((id(inner.layer), frozen((inner.args, inner.kwargs), known)))
            calls.setdefault(own, []).append(inner)
            known.update((out, number((own, i))) for i, out in enumerate(flat))
        elif place in block.graph.variables:
            known[Out(place)] = number(("variable", id(block.graph.variables[place])))
        elif Out(place) not in known:
            reads = tuple(known[out] for out in node.inputs)
            definition = type(node.definition)()
            definition.CopyFrom(node.definition)
            definition.name = ""
            del definition.input[:]
            key = number((definition.SerializeToString(deterministic=True), reads))
            for index in range(_results(node)):
                known[Out(place, index)] = number((key, index))
    return frozen(block.outputs, known), calls


def _results(node: Node) -> int:
    """An upper bound of how many tensors a node makes."""
    definition = private_tensorflow.op_definition(node.op)
    count = 0
    for argument in definition.output_arg:
        if argument.number_attr:
            count += int(node.definition.attr[argument.number_attr].i)
        elif argument.type_list_attr:
            count += len(node.definition.attr[argument.type_list_attr].list.type)
        else:
            count += 1
    return count
