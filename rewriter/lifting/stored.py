"""The values of variables, from the checkpoint of a SavedModel.

Which value belongs to which variable is what the saver's own operators say; they are read, not run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError, short
from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators
from rewriter.lifting.flatten import Flat
from rewriter.lifting.graph import Graph, Node, Out

_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
# What bringing back variables needs beyond them. It is looked at, not run.
_RESTORING = words(
    """RestoreV2 Assign AssignVariableOp StringJoin Select StaticRegexFullMatch ShardedFilename
    DisableCopyOnRead"""
)


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A variable of a file.

    Attributes:
      name: its own.
      array: its value.
      trainable: whether the file says that it is trained; frozen graphs and TensorFlow 1 do not.
    """

    name: str
    array: np.ndarray
    trainable: bool = True

    def numpy(self) -> np.ndarray:
        """Its value."""
        return self.array


def values(path: Path, meta: Any, flat: Flat, graph: Graph, where: str) -> dict[int, Stored]:
    """What the checkpoint has for the variables of a graph.

    Args:
      path: the folder of the SavedModel.
      meta: its ``MetaGraphDef``.
      flat: that graph, followed to the tensors of a signature.
      graph: what is left of it for them.
      where: what it is, for messages.

    Returns:
      By the number of the variable's node in ``graph``.

    Raises:
      LoadError: the checkpoint is missing, damaged, or has no value for one.
    """
    wanted = {i: node for i, node in enumerate(graph.nodes) if node.op in _VARIABLES}
    if not wanted:
        return {}
    keys, told = _keys(meta, where), _told(meta, flat)
    reader, found = _Checkpoint(path), {}
    for number, node in wanted.items():
        key = keys.get(node.name, node.name)
        name, trainable = told.get(node.name, (_shared_name(node), True))
        array = reader.read(key, node.name)
        found[number] = Stored(name, array, trainable)
    return found


def _shared_name(node: Node) -> str:
    text = node.definition.attr["shared_name"].s.decode("utf-8", "replace")
    return text or node.name


def _keys(meta: Any, where: str) -> dict[str, str]:
    """For each variable by its node: under which key its value is in the checkpoint.

    The saver's own operators say it: they assign to a variable what they restore of a key.
    """
    restore = meta.saver_def.restore_op_name
    if not restore:
        return {}
    flat = Flat(meta.graph_def, where, operators.ALLOWED | _RESTORING)
    flat.tensors([f"^{restore.partition(':')[0]}"])
    found = {}
    texts: dict[Out, list[str]] = {}  # one list has the keys of all variables
    for node in flat.nodes:
        if node.op in ("Assign", "AssignVariableOp"):
            variable, value = (_behind(flat, out) for out in node.inputs[:2])
            source = flat.nodes[value.node]
            if source.op == "RestoreV2" and flat.nodes[variable.node].op in _VARIABLES:
                for out in source.inputs[1:3]:
                    if out not in texts:
                        texts[out] = _texts(flat, out)
                names, slices = (texts[out] for out in source.inputs[1:3])
                if value.index < min(len(names), len(slices)) and not slices[value.index]:
                    found[flat.nodes[variable.node].name] = names[value.index]
    return found


def _behind(flat: Flat, out: Out) -> Out:
    while flat.nodes[out.node].op == "Identity":
        out = flat.nodes[out.node].inputs[0]
    return out


def _texts(flat: Flat, out: Out) -> list[str]:
    node = flat.nodes[_behind(flat, out).node]
    if node.op != "Const":
        return []
    values = np.atleast_1d(tf.make_ndarray(node.definition.attr["value"].tensor))
    return [v.decode("utf-8", "replace") for v in values]


def _told(meta: Any, flat: Flat) -> dict[str, tuple[str, bool]]:
    """What the objects of the file say of variables, by node: name, and whether it is trained."""
    objects = meta.object_graph_def
    found = {}
    for function, inputs in flat.called:
        bound = objects.concrete_functions[function].bound_inputs
        for out, place in zip(inputs[max(0, len(inputs) - len(bound)) :], bound, strict=False):
            node = flat.nodes[out.node]
            if 0 <= place < len(objects.nodes) and node.op in _VARIABLES:
                kept = objects.nodes[place]
                if kept.WhichOneof("kind") == "variable" and kept.variable.name:
                    found[node.name] = (kept.variable.name, bool(kept.variable.trainable))
    return found


class _Checkpoint:
    """The values beside a SavedModel."""

    def __init__(self, path: Path):
        self._path = path
        self._size = sum(f.stat().st_size for f in (path / "variables").glob("variables.data-*"))
        try:
            self._reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
            self._shapes = self._reader.get_variable_to_shape_map()
            self._dtypes = self._reader.get_variable_to_dtype_map()
        except Exception as error:  # whatever TensorFlow raises for a damaged or missing one
            raise self._error(short(error)) from error

    def read(self, key: str, name: str) -> np.ndarray:
        """The value under a key.

        Raises:
          LoadError: there is none, or it cannot be read.
        """
        if key not in self._shapes:
            raise self._error(f"there is no value of {name!r}")
        taken = int(np.prod(self._shapes[key], dtype=object)) * self._dtypes[key].size
        if taken > self._size:
            raise self._error(f"the value of {name!r} takes {taken:,} bytes, and it has less")
        try:
            return np.asarray(self._reader.get_tensor(key))
        except Exception as error:  # as above
            raise self._error(short(error)) from error

    def _error(self, reason: str) -> LoadError:
        return LoadError(
            f"The variables of {str(self._path)!r} cannot be read: {reason}. Copy the whole "
            "folder, with its variables/."
        )
