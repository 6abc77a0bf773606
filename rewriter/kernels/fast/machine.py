"""What TensorFlow computes on in this process: a GPU or not, oneDNN's kernels or its own."""

from __future__ import annotations

import functools

import tensorflow as tf


@functools.cache
def on_gpu() -> bool:
    """Whether TensorFlow has a GPU, and puts its operators there."""
    return bool(tf.config.list_physical_devices("GPU"))


@functools.cache
def onednn() -> bool:
    """Whether a convolution on the CPU becomes oneDNN's: asked once, of a graph that is run.

    That depends on the build, the processor and the environment (``TF_ENABLE_ONEDNN_OPTS``), and
    decides which of two ways to compute the same thing is the faster one.
    """
    v1 = tf.compat.v1
    ran = v1.RunMetadata()
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [1, 1, 1, 1])
        y = tf.nn.conv2d(x, tf.ones([1, 1, 1, 1]), 1, "VALID")
        options = v1.RunOptions(output_partition_graphs=True)
        with v1.Session(config=v1.ConfigProto(device_count={"GPU": 0})) as session:
            session.run(y, {x: [[[[0.0]]]]}, options=options, run_metadata=ran)
    return any("Mkl" in node.op for graph in ran.partition_graphs for node in graph.node)
