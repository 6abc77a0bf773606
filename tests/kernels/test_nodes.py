"""Nodes that are put into graphs directly."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rewriter.kernels.fast import nodes


def test_integers_are_shared_in_a_graph_and_wait_for_nothing():
    made = []

    @tf.function
    def function(x):
        with tf.control_dependencies([x + 1.0]):
            made.append(nodes.integers(-1, 3))
        made.append(nodes.integers(-1, 3))
        made.append(nodes.integers((1, 2), (3, 4)))
        return tf.reshape(x, made[0]), made[2]

    rows, matrix = function(tf.zeros([2, 6]))
    assert rows.shape == (4, 3)
    np.testing.assert_array_equal(matrix, [[1, 2], [3, 4]])
    assert made[0] is made[1] and made[0] is not made[2]
    assert not made[0].op.control_inputs
    np.testing.assert_array_equal(nodes.integers(5, 6), [5, 6])


def test_create():
    @tf.function
    def function(x):
        types = nodes.attribute(type=[tf.float32.as_datatype_enum] * 2)
        return nodes.create("IdentityN", [x, 2.0], [tf.float32] * 2, {"T": types})

    for found, expected in zip(function(tf.ones([3])), (np.ones(3), 2.0), strict=True):
        np.testing.assert_array_equal(found, expected)
