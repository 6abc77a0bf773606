"""Conditions in the graph: what TensorFlow makes of them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from rewriter.switch import Switch


@pytest.mark.parametrize("heavy", [False, True])
def test_branches_give_the_same_apart_or_not(heavy):
    spec = tf.TensorSpec([None], tf.float32)
    switch = Switch([spec, spec], lambda a, b: (a + b, b), lambda a, b: (a * b, a), heavy=heavy)
    function = tf.function(lambda index, a, b: switch(index, (a, b), (a.shape, b.shape)))
    a, b = np.float32([1, 2, 3]), np.float32([5, 7, 11])
    for index, expected in ((0, (a + b, b)), (1, (a * b, a))):
        for got, value in zip(function(tf.constant(index), a, b), expected, strict=True):
            np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize("heavy", [False, True])
def test_heavy_branches_call_a_function_that_is_not_inlined(heavy):
    # Inlined into the branch, their kernels would miss the pass that chooses oneDNN's.
    spec = tf.TensorSpec([None], tf.float32)
    switch = Switch([spec], lambda a: (tf.nn.relu(a),), lambda a: (tf.nn.relu(-a),), heavy=heavy)

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32), spec])
    def function(index, a):
        return switch(index, (a,), (a.shape,))

    graph = function.get_concrete_function().graph.as_graph_def()
    library = {item.signature.name: item for item in graph.library.function}
    (case,) = [node for node in graph.node if node.op == "StatelessCase"]
    for branch in case.attr["branches"].list.func:
        nodes = library[branch.name].node_def
        calls = [node for node in nodes if node.op.endswith("PartitionedCall")]
        assert len(calls) == heavy
        called = [library[call.attr["f"].func.name] for call in calls]
        assert all(function.attr["_noinline"].b for function in called)
        assert "Relu" in {node.op for part in called for node in part.node_def} or not heavy


@pytest.mark.parametrize("enabled", [False, True])
def test_fused_kernels_are_onednns_where_it_is_in_use(enabled):
    code = """
import tensorflow as tf
from rewriter import fused_norm, onednn

print("in use:", onednn.in_use())
vectors = [tf.ones([3]) for _ in range(4)]

@tf.function
def function(x, frozen):
    options = {"epsilon": 1e-3, "momentum": 0.9, "bessel": True}
    return fused_norm.batch_norm(x, *vectors, frozen, **options)[0]

graph = function.get_concrete_function(tf.ones([2, 4, 4, 3]), tf.constant(0)).graph
print("apart:", any(f.attr["_noinline"].b for f in graph.as_graph_def().library.function))
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
    assert f"apart: {enabled}" in done.stdout
