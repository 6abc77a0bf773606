"""Graphs from files: a SavedModel of either TensorFlow, or a frozen ``.pb``.

The file is read as data. TensorFlow's own loader would first run what the file has it run: the
initialization of its tables, or the main operation of TensorFlow 1. Here its messages are parsed,
its functions followed, and the values of its variables read from the checkpoint beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.files import boundaries
from rewriter.keras_compat import private_tensorflow
from rewriter.lifting import operators, stored
from rewriter.lifting.flatten import Flat, pruned
from rewriter.lifting.graph import Graph, Out

_INITIALIZER = "__saved_model_init_op"  # a signature that is none
# A condition that is only looked at has no value, and is left out: the model computes the same.
_RUNNING = operators.ALLOWED | {"Assert"}


def signatures(path: Path) -> list[str]:
    """The names of the signatures of a SavedModel.

    Raises:
      LoadError: it is damaged.
    """
    with boundaries.model(path):
        found = _meta_graph(path).signature_def
        return sorted(name for name in found if name != _INITIALIZER)


def saved_model(path: Path, signature: str) -> Graph:
    """The graph of a signature of a SavedModel, with the values of its variables.

    Args:
      path: the folder.
      signature: its name.

    Raises:
      LoadError: it is damaged, there is no such signature, an input has no rank, or an operator may
        not stand there.
    """
    with boundaries.model(path):
        return _of_signature(path, signature, f"The signature {signature!r} of {str(path)!r}")


def _of_signature(path: Path, signature: str, where: str) -> Graph:
    meta = _meta_graph(path)
    if signature == _INITIALIZER or signature not in meta.signature_def:
        raise LoadError(
            f"{str(path)!r} has no signature {signature!r}. It has: "
            f"{', '.join(signatures(path)) or 'none'}."
        )
    chosen = meta.signature_def[signature]
    feeds = {key: _named(info, key, where) for key, info in sorted(chosen.inputs.items())}
    ends = {key: _named(info, key, where) for key, info in sorted(chosen.outputs.items())}
    fed = [name.partition(":")[0] for name in feeds.values()]
    flat = Flat(meta.graph_def, where, _RUNNING, fed)
    described = {
        key: (tf.TensorShape(info.tensor_shape), tf.dtypes.as_dtype(info.dtype))
        for key, info in chosen.inputs.items()
    }
    graph = _graph(flat, where, feeds, ends, described)
    return dataclasses.replace(graph, variables=stored.values(path, meta, flat, graph, where))


def frozen(
    path: Path, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
) -> Graph:
    """The graph of a frozen ``.pb`` file, in which the variables are constants.

    Args:
      path: the file.
      inputs: names of tensors or nodes; None for its placeholders.
      outputs: likewise; None for those that nothing reads.

    Raises:
      LoadError: it is damaged, has no such tensor, an input has no rank, or an operator may not
        stand there.
    """
    with boundaries.model(path):
        return _of_frozen(path, inputs, outputs, repr(str(path)))


def _of_frozen(
    path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None, where: str
) -> Graph:
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(path.read_bytes())
    by_name = {node.name: node for node in definition.node}
    if outputs is None:
        read = {
            text.removeprefix("^").partition(":")[0] for n in definition.node for text in n.input
        }
        idle = ("NoOp", "Assert", "Const", "Placeholder")
        outputs = [n.name for n in definition.node if n.name not in read and n.op not in idle]
        if not outputs:
            raise LoadError(f"{where} has no operator with a result: it holds no model.")
    if inputs is None:
        inputs = [node.name for node in definition.node if node.op == "Placeholder"]
    for name in (*inputs, *outputs):
        if name.partition(":")[0] not in by_name:
            raise LoadError(
                f"{where} has no tensor {name!r}. Its inputs may be "
                f"{[n.name for n in definition.node if n.op == 'Placeholder'][:8]}."
            )
    feeds = {name.partition(":")[0]: name for name in inputs}
    flat = Flat(definition, where, _RUNNING, feeds)
    described = {key: _described(by_name[key], where) for key in feeds}
    ends = {name.removesuffix(":0"): name for name in outputs}
    graph = _graph(flat, where, feeds, ends, described)
    return dataclasses.replace(graph, variables=_frozen_variables(graph))


def _meta_graph(path: Path) -> Any:
    """The graph for serving, of those in a SavedModel."""
    proto = private_tensorflow.SavedModel()
    proto.ParseFromString((path / "saved_model.pb").read_bytes())
    graphs = list(proto.meta_graphs)
    serving = [g for g in graphs if "serve" in g.meta_info_def.tags] or graphs
    if not serving:
        raise LoadError(f"{str(path)!r} is damaged: saved_model.pb is empty. Save it again.")
    return min(serving, key=lambda g: len(g.meta_info_def.tags))


def _named(info: Any, key: str, where: str) -> str:
    if info.WhichOneof("encoding") != "name":
        raise LoadError(
            f"{where} has {key!r}, which is sparse or made of several tensors. Export the model "
            "with dense tensors."
        )
    return str(info.name)


def _graph(
    flat: Flat,
    where: str,
    feeds: Mapping[str, str],
    ends: Mapping[str, str],
    described: Mapping[str, tuple[tf.TensorShape, tf.DType]],
) -> Graph:
    """The graph between tensors of these names; its variables have no values yet."""
    for key, name in feeds.items():
        if name.partition(":")[2] not in ("", "0"):
            raise LoadError(f"{where} has the input {key!r}, {name!r}, which is not an operator's "
                            "first output. Export the model with a placeholder.")  # fmt: skip
        if described[key][0].rank is None:
            raise LoadError(f"{where} has the input {key!r} of unknown rank. Give it a shape.")
    begins = dict(zip(feeds, flat.tensors(list(feeds.values())), strict=True))
    results = dict(zip(ends, flat.tensors(list(ends.values())), strict=True))
    nodes, moved = pruned(flat.nodes, [*begins.values(), *results.values()])
    inputs = {key: (moved(out).node, *described[key]) for key, out in begins.items()}
    outputs = {key: moved(out) for key, out in results.items()}
    fed = {number for number, _, _ in inputs.values()}
    for number, node in enumerate(nodes):
        if node.op == "Placeholder" and number not in fed:
            raise LoadError(
                f"{where} reads {node.name!r}, which nothing is given to. Name it as an input, or "
                "export the model without it."
            )
    return Graph(nodes, inputs, outputs, {}, {})


def _described(node: Any, where: str) -> tuple[tf.TensorShape, tf.DType]:
    """The shape and dtype of an input of a frozen graph."""
    dtype = node.attr["dtype"].type or node.attr["T"].type
    if not dtype:
        raise LoadError(f"{where} does not say of which type the input {node.name!r} is.")
    shapes = list(node.attr["_output_shapes"].list.shape)
    shape = node.attr["shape"].shape if "shape" in node.attr else None
    shape = shapes[0] if shape is None and shapes else shape
    return tf.TensorShape(shape), tf.dtypes.as_dtype(dtype)


def _frozen_variables(graph: Graph) -> dict[int, stored.Stored]:
    """Constants that stand where variables were: what read those still reads them."""
    found = {}
    for number, node in enumerate(graph.nodes):
        readers = [graph.nodes[r] for r in graph.consumers[Out(number)] if r >= 0]
        reads = [r for r in readers if r.op in ("Identity", "ReadVariableOp")]
        if node.op == "Const" and reads and len(reads) == len(readers):
            array = tf.make_ndarray(node.definition.attr["value"].tensor)
            if array.dtype.kind == "f" and array.ndim:
                found[number] = stored.Stored(node.name, array)
    return found
