"""Nodes that every layer puts several of into its graph, by the shortest way.

The wrappers of ``tf.raw_ops`` look up, check and convert all that an operator may be given. Where
that takes longer than making the node, and hundreds of nodes are alike, it is done here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter.errors import UnsupportedModelError
from rewriter.kernels.fast import private

_CONSTANTS = "_rewriter_constants"  # of a graph: by value


def attribute(**values: Any) -> Any:
    """An attribute that is a list, such as ``type=[...]``."""
    return tf.compat.v1.AttrValue(list=tf.compat.v1.AttrValue.ListValue(**values))


def create(
    kind: str, inputs: Sequence[Any], dtypes: Sequence[tf.DType], attributes: Mapping[str, Any]
) -> list[Any]:
    """The outputs of a new operator in the graph that is being made; no tape is told of it.

    Args:
      kind: its name in TensorFlow's registry.
      inputs: tensors, or what becomes tensors.
      dtypes: of the outputs.
      attributes: protos ``AttrValue``, all that have no default.
    """
    given = [x if isinstance(x, tf.Tensor) else tf.convert_to_tensor(x) for x in inputs]
    graph = tf.compat.v1.get_default_graph()
    return list(private.create_op(graph, kind, given, list(dtypes), attrs=attributes).outputs)


def not_differentiable(outputs: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of :func:`create`, which a tape may not pass in silence.

    Their first gradients are given by hand; who asks for another one gets UnsupportedModelError.
    """

    def backward(*_: Any) -> Any:
        raise UnsupportedModelError(
            f"The gradient of a gradient is not known for {outputs[0].name!r}: inside of a "
            "tf.function, the fast kernels have first gradients only. Set REWRITER_KERNELS=plain "
            "in the environment of the process, compile the model with run_eagerly=True, or do "
            "without the term that needs it (a gradient penalty)."
        )

    floating = [x for x in inputs if isinstance(x, tf.Tensor) and x.dtype.is_floating]
    private.record_operation("NotDifferentiable", list(outputs), floating, backward)
    return list(outputs)


def read_variable(variable: Any) -> Any:
    """The value of a variable that is not trainable, as a tensor; no tape is told of it."""
    if _elsewhere(variable):
        return tf.convert_to_tensor(variable)
    dtype = variable.dtype
    return create("ReadVariableOp", [variable.handle], [dtype], {"dtype": _proto(dtype)})[0]


def assign_variable(variable: Any, value: Any) -> None:
    """Set a variable to a tensor of its dtype; in a graph, after all that was read before."""
    if _elsewhere(variable):
        variable.assign(value, read_value=False)
        return
    attributes = {"dtype": _proto(variable.dtype)}
    create("AssignVariableOp", [variable.handle, value], [], attributes)


def _elsewhere(variable: Any) -> bool:
    """Whether a variable has no handle that an operator of this graph could be given."""
    shared = isinstance(variable, tf.distribute.DistributedValues) or tf.distribute.has_strategy()
    return tf.executing_eagerly() or shared or not isinstance(variable, tf.Variable)


def integers(*values: int | tuple[int, ...]) -> Any:
    """An int32 vector, or a matrix of rows, one node for all that ask for the same in a graph."""
    return _constant(values, tf.int32)


def zeros(count: int) -> Any:
    """A float32 vector, one node for all that ask for the same in a graph."""
    return _constant((0.0,) * count, tf.float32)


def _constant(value: Any, dtype: tf.DType) -> Any:
    if tf.executing_eagerly() or tf.distribute.has_strategy():  # replicas are on several devices
        return tf.constant(value, dtype)
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, _CONSTANTS):
        setattr(graph, _CONSTANTS, {})
    known, key = getattr(graph, _CONSTANTS), (value, dtype)
    if key not in known:
        with tf.control_dependencies(None):  # whoever is first must not hold up the others
            known[key] = tf.constant(value, dtype)
    return known[key]


def operator(
    kind: str,
    inputs: Mapping[str, Any],
    dtypes: Sequence[tf.DType],
    types: Mapping[str, tf.DType],
    **attributes: Any,
) -> list[Any]:
    """The outputs of ``tf.raw_ops``'s ``kind``; in a graph by the shortest way, not differentiable.

    Args:
      kind: its name.
      inputs: by name, in the order of TensorFlow's registry.
      dtypes: of the outputs.
      types: the attributes that TensorFlow's wrapper takes from the inputs.
      **attributes: the others without a default, and those that differ from it.
    """
    if tf.executing_eagerly():
        outputs = getattr(tf.raw_ops, kind)(**inputs, **attributes)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]
    protos = {name: _proto(value) for name, value in {**types, **attributes}.items()}
    tensors = list(inputs.values())
    return not_differentiable(create(kind, tensors, dtypes, protos), tensors)


@functools.lru_cache(maxsize=None, typed=True)  # 1 is not True
def _proto(value: Any) -> Any:
    """An attribute of an operator: a type, a truth value, a number, a name, or some integers."""
    if isinstance(value, tf.DType):
        return tf.compat.v1.AttrValue(type=value.as_datatype_enum)
    if isinstance(value, tuple):
        return attribute(i=value)
    if isinstance(value, str):
        value = value.encode()
    field = {bool: "b", int: "i", float: "f", bytes: "s"}[type(value)]
    return tf.compat.v1.AttrValue(**{field: value})
