"""What TensorFlow computes on in this process."""

from __future__ import annotations

import functools

import tensorflow as tf


@functools.cache
def on_gpu() -> bool:
    """Whether TensorFlow has a GPU, and puts its operators there."""
    return bool(tf.config.list_physical_devices("GPU"))


def compiled_by_xla() -> bool:
    """Whether what is traced now is for XLA to compile (``jit_compile=True``)."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
