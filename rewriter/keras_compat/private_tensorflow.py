"""What is used of TensorFlow beyond its public names, outside of the fast kernels.

Public means are missing: for the object behind an exported name, without importing or calling
anything; for a function as a graph in which variables are constants; for an operator's definition;
and for the message that a ``saved_model.pb`` holds.
"""

from __future__ import annotations

from typing import Any

from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import op_def_registry
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2_as_graph,
)
from tensorflow.python.util import tf_export

__all__ = ["SavedModel", "op_definition", "symbol", "with_constants"]


def symbol(name: str) -> Any:
    """What TensorFlow or tf_keras exports under a dotted name; None if nothing."""
    return tf_export.get_symbol_from_name(name)


def with_constants(function: Any) -> tuple[Any, Any]:
    """A concrete function whose variables are constants, and its graph as a ``GraphDef``."""
    found: tuple[Any, Any] = convert_variables_to_constants_v2_as_graph(
        function, lower_control_flow=False
    )
    return found


def op_definition(name: str) -> Any:
    """The ``OpDef`` of an operator; None if TensorFlow has none of that name."""
    return op_def_registry.get(name)
