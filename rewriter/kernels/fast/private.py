"""All that the fast kernels use and TensorFlow does not promise to keep.

Where this module cannot be imported, :mod:`rewriter.kernels` takes the plain ones. So it imports
TensorFlow only, and every name is looked up when it is imported.
"""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # nothing public tells a tape of an operation

record_operation = record.record_operation

# Without the decorator, which binds all arguments to look for one that is deprecated.
create_op = inspect.unwrap(tf.Graph.create_op)

_control_flow_context = tf.Graph._get_control_flow_context


def compiled_by_xla() -> bool:
    """Whether what is traced now is for XLA to compile (``jit_compile=True``)."""
    graph: Any = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = _control_flow_context(graph)
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
