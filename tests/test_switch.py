"""Conditions in the graph: what TensorFlow makes of them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from rewriter.switch import Switch


@pytest.mark.parametrize("lowered", [False, True])
def test_branches_give_the_same_lowered_or_not(lowered):
    spec = tf.TensorSpec([None], tf.float32)
    switch = Switch([spec, spec], lambda a, b: (a + b, b), lambda a, b: (a * b, a), lowered=lowered)
    function = tf.function(lambda index, a, b: switch(index, (a, b), (a.shape, b.shape)))
    a, b = np.float32([1, 2, 3]), np.float32([5, 7, 11])
    for index, expected in ((0, (a + b, b)), (1, (a * b, a))):
        for got, value in zip(function(tf.constant(index), a, b), expected, strict=True):
            np.testing.assert_array_equal(got, value)


def test_only_lowered_branches_become_part_of_the_callers_graph():
    """What is in the graph when kernels are chosen, and what a branch keeps to itself."""
    spec = tf.TensorSpec([None], tf.float32)

    def ran(lowered):
        switch = Switch([spec], lambda a: (tf.nn.elu(a),), lambda a: (a,), lowered=lowered)
        v1 = tf.compat.v1
        metadata = v1.RunMetadata()
        with tf.Graph().as_default():
            index, a = v1.placeholder(tf.int32, []), v1.placeholder(tf.float32, [3])
            outputs = switch(index, (a,), (a.shape,))
            options = v1.RunOptions(output_partition_graphs=True)
            with v1.Session() as session:
                values = {index: 0, a: [1.0, 2.0, 3.0]}
                session.run(outputs, values, options=options, run_metadata=metadata)
        return {node.op for graph in metadata.partition_graphs for node in graph.node}

    assert "Elu" in ran(True)
    assert "Elu" not in ran(False)


@pytest.mark.parametrize("enabled", [False, True])
def test_fused_kernels_are_lowered_where_onednn_is_in_use(enabled):
    code = """
import tensorflow as tf
from rewriter import fused_norm, onednn

print("in use:", onednn.in_use())
vectors = [tf.ones([3]) for _ in range(4)]

@tf.function
def function(x, frozen):
    options = {"epsilon": 1e-3, "momentum": 0.9, "bessel": True}
    return fused_norm.batch_norm(x, *vectors, frozen, **options)[0].value

graph = function.get_concrete_function(tf.ones([2, 4, 4, 3]), tf.constant(0)).graph
(case,) = [node for node in graph.as_graph_def().node if node.op == "StatelessCase"]
print("lowered:", case.attr["_lower_using_switch_merge"].b)
"""
    environment = {"TF_ENABLE_ONEDNN_OPTS": str(int(enabled)), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert f"in use: {enabled}" in done.stdout
    assert f"lowered: {enabled}" in done.stdout
