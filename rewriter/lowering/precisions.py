"""Functions of 16-bit and float64 layers in float32, as LiteRT has no operators of these types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import private_tensorflow
from rewriter.reading.operations import is_floating

_FLOAT = tf.float32.as_datatype_enum
_OTHERS = {t.as_datatype_enum for t in (tf.float16, tf.bfloat16, tf.float64)}


def other(dtype: str | None) -> bool:
    """Whether it is the name of a floating-point type other than float32."""
    return dtype is not None and is_floating(dtype) and dtype != "float32"


def in_float32(function: Callable[..., Any], shapes: Sequence[Any]) -> Callable[..., Any]:
    """``function`` with float32 in the place of every other floating-point type inside it.

    Its graph is edited, because what a layer computes in is set in too many places: policies of
    layers inside layers, variables, constants.

    Args:
      function: of float32 tensors.
      shapes: of these.

    Returns:
      A function that returns a list.
    """
    specs = [tf.TensorSpec(shape, name=f"x{i}") for i, shape in enumerate(shapes)]
    wrapped = tf.compat.v1.wrap_function(
        lambda *x: [tf.identity(y) for y in tf.nest.flatten(function(*x))], specs
    )
    frozen, graph = private_tensorflow.with_constants(wrapped)
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    # TensorFlow knows those of a loop by their names already, in the other types.
    names = {f.signature.name: f"{f.signature.name}_float32" for f in graph.library.function}
    for node in nodes:
        node.op = names.get(node.op, node.op)
        for attribute in node.attr.values():
            _edit(attribute, names)
    for signature in (f.signature for f in graph.library.function):
        signature.name = names[signature.name]
        for argument in [*signature.input_arg, *signature.output_arg]:
            argument.type = _FLOAT if argument.type in _OTHERS else argument.type
    inputs, outputs = ([t.name for t in ts] for ts in (frozen.inputs, frozen.outputs))

    def imported(*x: Any) -> Any:
        given = dict(zip(inputs, x, strict=True))
        return tf.graph_util.import_graph_def(graph, given, outputs, name="float32")

    result: Callable[..., Any] = tf.compat.v1.wrap_function(imported, specs)
    return result


def _edit(attribute: Any, names: Mapping[str, str]) -> None:
    """Replace other floating-point types, and the names of functions, in an attribute of a node."""
    for function in [attribute.func, *attribute.list.func]:
        if function.name in names:
            function.name = names[function.name]
    if attribute.type in _OTHERS:
        attribute.type = _FLOAT
    for place, kind in enumerate(attribute.list.type):
        attribute.list.type[place] = _FLOAT if kind in _OTHERS else kind
    if attribute.tensor.dtype in _OTHERS:
        values = tf.make_ndarray(attribute.tensor).astype("float32")
        attribute.tensor.CopyFrom(tf.make_tensor_proto(values))
