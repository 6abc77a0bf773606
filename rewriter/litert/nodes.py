"""Nodes of a TensorFlow graph, written as protos and put into the graph many at a time.

To trace an operation, TensorFlow's Python takes several times as long as to import its proto.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


class NodeError(ValueError):
    """TensorFlow does not take one of the nodes; the message names it as ``{{node its_name}}``."""


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """The one output of a node; TensorFlow's functions take it for its tensor.

    Attributes:
      name: of the operation in the default graph.
    """

    name: str


class Nodes:
    """Nodes that wait to be put into the default graph; see :func:`nodes`."""

    def __init__(self) -> None:
        self._sources: set[str] = set()
        self._waiting = _empty()
        self._names: set[str] = set()

    def add(self, op: str, *inputs: Node | tf.Tensor, name: str = "", **attributes: Any) -> Node:
        """A node in the current name scope.

        Args:
          op: the operation's registered name.
          *inputs: its inputs.
          name: if it is not ``op``; made unique.
          **attributes: ``bool``, ``int``, ``float``, ``str``, ``tf.DType`` or a list of ``int``;
            those with a default may be left out.
        """
        names = [self._name_of(value) for value in inputs]
        own = tf.compat.v1.get_default_graph().unique_name(name or op)
        node = self._waiting.node.add(name=own, op=op, input=names)
        for key, value in attributes.items():
            _set(node.attr[key], value)
        self._names.add(own)
        return Node(own)

    def constant(self, values: np.ndarray | Sequence[int] | int, name: str = "") -> Node:
        """A constant: float32, or int32 if these are integers."""
        values = np.asarray(values)
        dtype = tf.int32 if values.dtype.kind == "i" else tf.float32
        values = values.astype(dtype.as_numpy_dtype, copy=False)
        node = self.add("Const", name=name, dtype=dtype)
        proto = self._waiting.node[-1].attr["value"].tensor
        proto.dtype, proto.tensor_content = dtype.as_datatype_enum, values.tobytes()
        for size in values.shape:
            proto.tensor_shape.dim.add(size=size)
        return node

    def tensor(self, node: Node) -> tf.Tensor:
        """The tensor of one of these nodes; if it waits, all that wait are put into the graph.

        Raises:
          NodeError: one of those cannot be; it need not be ``node``.
        """
        graph = tf.compat.v1.get_default_graph()
        if node.name in self._names:
            sources = {name: graph.get_tensor_by_name(name) for name in self._sources}
            try:
                tf.graph_util.import_graph_def(self._waiting, input_map=sources, name="")
            except ValueError as error:
                raise NodeError(str(error)) from error
            self._waiting, self._sources, self._names = _empty(), set(), set()
        return graph.get_tensor_by_name(f"{node.name}:0")

    def graph_def(self) -> Any:
        """The default graph and the nodes that still wait, which wait no more, as a GraphDef."""
        found, self._waiting, self._sources, self._names = self._waiting, _empty(), set(), set()
        found.MergeFrom(tf.compat.v1.get_default_graph().as_graph_def())
        return found

    def _name_of(self, value: Node | tf.Tensor) -> str:
        if isinstance(value, Node) and value.name in self._names:
            return value.name
        name = str(tensor_of(value).name)
        self._sources.add(name)
        return name


_waiting: weakref.WeakKeyDictionary[tf.Graph, Nodes] = weakref.WeakKeyDictionary()


def nodes() -> Nodes:
    """The nodes that wait for the default graph."""
    graph = tf.compat.v1.get_default_graph()
    if graph not in _waiting:
        _waiting[graph] = Nodes()
    return _waiting[graph]


def tensor_of(value: Node | tf.Tensor) -> tf.Tensor:
    """The tensor in the graph."""
    return nodes().tensor(value) if isinstance(value, Node) else tf.convert_to_tensor(value)


def _empty() -> Any:
    graph = tf.compat.v1.GraphDef()
    graph.versions.producer = tf.version.GRAPH_DEF_VERSION
    return graph


def _set(attribute: Any, value: Any) -> None:
    if isinstance(value, bool):
        attribute.b = value
    elif isinstance(value, int):
        attribute.i = value
    elif isinstance(value, float):
        attribute.f = value
    elif isinstance(value, str):
        attribute.s = value.encode()
    elif isinstance(value, tf.DType):
        attribute.type = value.as_datatype_enum
    else:
        attribute.list.i.extend(value)


tf.register_tensor_conversion_function(
    Node, lambda value, dtype=None, name=None, as_ref=False: tensor_of(value)
)
