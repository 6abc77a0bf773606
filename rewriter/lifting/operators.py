"""Operators by name: which may stand in a lifted graph, and how one is run by itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

from rewriter.errors import LoadError, short
from rewriter.keras_compat import private_tensorflow, pure_functions
from rewriter.keras_compat.pure_functions import words

# What only passes a tensor on.
PASSING = words(
    """Identity IdentityN StopGradient PreventGradient CheckNumerics EnsureShape Snapshot
    PlaceholderWithDefault"""
)
# Of the graph itself: inputs, constants, variables and what reads them, and calls, which inlining
# resolves.
STRUCTURE = words(
    """Placeholder Const VarHandleOp ReadVariableOp ResourceGather VariableV2 Variable NoOp
    PartitionedCall StatefulPartitionedCall"""
)
# They compute values of tensors from values of tensors, and do nothing else.
ALLOWED = (
    pure_functions.OPERATIONS
    | PASSING
    | STRUCTURE
    | words(
        """Acosh Asin Asinh Atan2 Atanh BatchMatMulV3 BatchToSpace Bitcast BitwiseAnd BroadcastArgs
        Bucketize Conv3DBackpropInputV2 Cosh Cumprod Dilation2D Erfc Erfinv ExtractImagePatches
        FusedBatchNorm FusedBatchNormV2 Inv IsFinite IsInf IsNan Lgamma LinSpace
        MatrixBandPart MaxPoolV2 MulNoNan NonMaxSuppressionV3 ResizeArea ResizeBicubic ScatterNd
        SegmentSum Sinh SpaceToBatch TensorScatterUpdate TruncateDiv UnsortedSegmentSum Xdivy
        Xlogy"""
    )
) - words("RandomStandardNormal RandomUniform")


def run(node: Any, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of one operator.

    Args:
      node: a ``NodeDef``; only what it is called with counts, not its inputs' names.
      inputs: tensors in the operator's order.
    """
    definition = private_tensorflow.op_definition(node.op)
    function, names = getattr(tf.raw_ops, node.op), parameters(node.op)
    given: dict[str, Any] = {}
    left = list(inputs)
    for argument in definition.input_arg:
        if argument.number_attr or argument.type_list_attr:
            listed = node.attr[argument.number_attr or argument.type_list_attr]
            count = listed.i if argument.number_attr else len(listed.list.type)
            given[names[argument.name]], left = left[:count], left[count:]
        else:
            given[names[argument.name]], left = left[0], left[1:]
    for name, value in node.attr.items():
        if name in names:
            given[names[name]] = attribute(value)
    outputs = function(**given)
    if not definition.output_arg:
        return []
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@functools.cache
def parameters(op: str) -> dict[str, str]:
    """What the function of an operator calls its inputs and attributes, by the operator's names.

    Some differ: the axes of ``Mean`` are its ``reduction_indices``. Those stand in the same order.
    Attributes that follow from the inputs, such as their type, are no parameters.
    """
    definition = private_tensorflow.op_definition(op)
    wanted = [n for n in inspect.signature(getattr(tf.raw_ops, op)).parameters if n != "name"]
    implied = {
        name
        for argument in definition.input_arg
        for name in (argument.type_attr, argument.number_attr, argument.type_list_attr)
    }
    inputs = [argument.name for argument in definition.input_arg]
    attributes = [a.name for a in definition.attr if a.name not in implied]
    found = {name: name for name in (*inputs, *attributes) if name in wanted}
    others = [name for name in (*inputs, *attributes) if name not in wanted]
    left = [name for name in wanted if name not in found]
    return found | dict(zip(others, left, strict=True))


def attribute(value: Any) -> Any:
    """An attribute of a node as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "list":
        return [
            _CONVERT[field.name](v) for field, values in value.list.ListFields() for v in values
        ]
    return _CONVERT[kind](getattr(value, kind)) if kind else None


_CONVERT: Mapping[str, Any] = {
    "s": lambda value: value,
    "i": int,
    "f": float,
    "b": bool,
    "type": tf.dtypes.as_dtype,
    "shape": tf.TensorShape,
    "tensor": tf.make_ndarray,
    "func": lambda value: value.name,
}


def to_json(node: Any) -> dict[str, Any]:
    """A ``NodeDef`` as JSON values, without its name and inputs."""
    kept = type(node)(op=node.op)
    for name, value in node.attr.items():
        if not name.startswith("_"):
            kept.attr[name].CopyFrom(value)
    found: dict[str, Any] = json_format.MessageToDict(kept)
    return found


def from_json(values: Mapping[str, Any]) -> Any:
    """The ``NodeDef`` that :func:`to_json` described.

    Raises:
      LoadError: it is none, or not of an operator that only computes values.
    """
    node = tf.compat.v1.NodeDef()
    try:
        json_format.ParseDict(dict(values), node)
    except (json_format.ParseError, TypeError, ValueError) as error:
        raise LoadError(f"An operator in a file cannot be read: {short(error)}") from error
    if node.op not in ALLOWED - STRUCTURE:
        raise LoadError(f"A file has the operator {node.op!r}, which may not stand in a layer.")
    return node


def operand(array: np.ndarray, variable: tf.Variable | None) -> dict[str, Any]:
    """What a layer around an operator is told of an operand that is a weight of it.

    Args:
      array: its value.
      variable: of which it is; None for a constant, which is never trained.
    """
    found: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    trains = variable is not None and variable.trainable
    return found if trains else {**found, "trainable": False}
