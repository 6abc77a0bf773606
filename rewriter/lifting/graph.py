"""The graph of a signature: flat, in topological order, with its variables."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.keras_compat import private_tensorflow
from rewriter.lifting import operators


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
        return value.decode() if isinstance(value, bytes) else value

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


def read(function: Any, where: str) -> Graph:
    """The graph of a concrete function.

    Args:
      function: a signature of a loaded SavedModel, or a pruned function.
      where: what it is, for messages.

    Raises:
      LoadError: it has an operator that may not stand there, or inputs of unknown rank.
    """
    definition = private_tensorflow.inlined(function)
    check(definition.node, where)
    captured = {
        placeholder.op.name: handle
        for placeholder, handle in zip(
            function.graph.inputs[len(function.graph.inputs) - len(function.captured_inputs) :],
            function.captured_inputs,
            strict=True,
        )
    }
    by_handle = {id(variable.handle): variable for variable in function.graph.variables}
    by_handle |= {id(variable.handle): variable for variable in function.variables}
    by_name = {node.name: node for node in definition.node}
    names = sorted(function.structured_outputs)
    ends = [tensor.name for tensor in function.outputs]
    order = list(_ordered(by_name, [_split(end)[0] for end in ends]))
    for tensor in function.inputs:  # also those that no output needs
        if tensor.op.name not in captured and tensor.op.name not in order:
            order.append(tensor.op.name)
    number = {name: place for place, name in enumerate(order)}
    nodes = []
    for name in order:
        node = by_name[name]
        inputs = [_split(text) for text in node.input if not text.startswith("^")]
        nodes.append(Node(name, node.op, node, [Out(number[n], i) for n, i in inputs]))
    variables, constants = {}, {}
    for name, handle in captured.items():
        if name in number and handle.dtype not in (tf.resource, tf.variant):
            constants[number[name]] = handle.numpy()
        elif name in number:
            variable = by_handle.get(id(handle))
            if variable is None:
                raise LoadError(
                    f"{where} reads {name!r}, which is no variable but another resource, such as a "
                    "table. Export the model without that step."
                )
            variables[number[name]] = variable
    inputs_of = {}
    for key, spec in function.structured_input_signature[1].items():
        name = spec.name or key
        place = next((n for n in (name, key) if n in number), None)
        if place is None:
            continue
        if spec.shape.rank is None:
            raise LoadError(f"{where} has the input {key!r} of unknown rank. Give it a shape.")
        inputs_of[key] = (number[place], spec.shape, spec.dtype)
    outputs = {}
    for key, end in zip(names, ends, strict=True):
        name, index = _split(end)
        outputs[key] = Out(number[name], index)
    return Graph(nodes, inputs_of, outputs, variables, constants)


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


def _split(text: str) -> tuple[str, int]:
    name, _, index = text.partition(":")
    return name, int(index or 0)


def _ordered(nodes: Mapping[str, Any], ends: list[str]) -> Iterator[str]:
    """The names of what ``ends`` need, each after what it reads."""  # graphs are deep: a stack
    done: set[str] = set()
    todo = [(end, False) for end in reversed(ends)]
    while todo:
        name, ready = todo.pop()
        if name in done:
            continue
        if ready:
            done.add(name)
            yield name
            continue
        todo.append((name, True))
        for text in reversed(nodes[name].input):
            if not text.startswith("^"):
                before = _split(text)[0]
                if before not in done:
                    todo.append((before, False))
