"""Conditions in the graph: what TensorFlow makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from rewriter import fused_norm
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


def test_fused_kernels_are_called_from_their_branch():
    # Inlined into the branch, they would miss the pass that chooses oneDNN's kernels.
    variables = [tf.ones([3]) for _ in range(4)]

    @tf.function
    def function(x, frozen):
        return fused_norm.batch_norm(
            x, *variables, frozen, epsilon=1e-3, momentum=0.9, bessel=True
        )[0]

    graph = function.get_concrete_function(
        tf.TensorSpec([2, 4, 4, 3]), tf.TensorSpec([], tf.int32)
    ).graph.as_graph_def()
    library = {item.signature.name: item for item in graph.library.function}
    (case,) = [node for node in graph.node if node.op == "StatelessCase"]
    for branch in case.attr["branches"].list.func:
        (call,) = [n for n in library[branch.name].node_def if n.op.endswith("PartitionedCall")]
        called = library[call.attr["f"].func.name]
        assert called.attr["_noinline"].b
        assert "FusedBatchNormV3" in {node.op for node in called.node_def}
