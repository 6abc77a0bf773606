"""Conditions in the graph: the branch that an index chooses, and the variables it may touch."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from rewriter.kernels.fast.switch import Switch

VECTOR = tf.TensorSpec([None], tf.float32)


def _kinds(function, *arguments):
    graph = tf.function(function).get_concrete_function(*arguments).graph
    return [node.type for node in graph.get_operations()]


@pytest.mark.parametrize("count", [2, 4])
def test_the_chosen_branch(count):
    branches = [lambda a, b, i=i: (a * (i + 2.0) + b, b * i) for i in range(count)]
    switch = Switch([VECTOR, VECTOR], *branches)
    function = tf.function(lambda index, a, b: switch(index, (a, b), (a.shape, b.shape)))
    a, b = tf.constant([1.0, 2.0, 3.0]), tf.constant([5.0, 7.0, 11.0])
    for index in range(count):
        expected = branches[index](a, b)
        eagerly = switch(tf.constant(index), (a, b), (a.shape, b.shape))
        for got, known, value in zip(
            function(tf.constant(index), a, b), eagerly, expected, strict=True
        ):
            np.testing.assert_array_equal(got, value)
            np.testing.assert_array_equal(known, value)
    assert function.experimental_get_tracing_count() == 1


def test_equal_branches_are_one_function():
    one, other = lambda a: (a + 1.0,), lambda a: (a * 2.0,)
    switch = Switch([VECTOR], one, one, other, one)
    a = tf.constant([3.0])
    function = tf.function(lambda index: switch(index, (a,), (a.shape,))[0])
    graph = function.get_concrete_function(tf.constant(0)).graph
    (case,) = (node for node in graph.get_operations() if node.type == "StatelessCase")
    names = [branch.name for branch in case.node_def.attr["branches"].list.func]
    assert len(set(names)) == 2 and names[0] == names[1] == names[3]
    assert [float(function(tf.constant(i))[0]) for i in range(4)] == [4, 4, 6, 4]


def _counting():
    """Nothing, a reading, and a maximum that is kept."""

    def kept(a, top):
        new = tf.maximum(top.value(), tf.reduce_max(a))
        top.assign(new, read_value=False)
        return (a / new,)

    return Switch(
        [VECTOR], lambda a, top: (a,), lambda a, top: (a / top.value(),), kept, variables=[()]
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_branches_read_and_write_variables(compiled):
    switch, top = _counting(), tf.Variable(2.0)

    def called(index, a):
        return switch(index, (a,), (a.shape,), (top,))[0]

    function = tf.function(called) if compiled else called
    a = tf.constant([1.0, 8.0])
    np.testing.assert_array_equal(function(tf.constant(0), a), a)
    np.testing.assert_array_equal(function(tf.constant(1), a), a / 2)
    assert float(top) == 2.0
    np.testing.assert_array_equal(function(tf.constant(2), a), a / 8)
    assert float(top) == 8.0


def test_what_is_written_is_what_is_read_after():
    """One variable in several places of a function: their order is that of the calls."""
    switch, top = _counting(), tf.Variable(1.0)

    @tf.function
    def function(index):
        call = lambda value: switch(index, (tf.constant([value]),), ([1],), (top,))[0]  # noqa: E731
        before = top.read_value()
        first, second = call(4.0), call(2.0)
        between = top.read_value()
        return before, first, second, between, call(8.0), top.read_value()

    values = [float(np.ravel(v)[0]) for v in function(tf.constant(2))]
    assert values == [1.0, 1.0, 0.5, 4.0, 1.0, 8.0]


def test_the_graph_of_the_caller_has_one_operator_of_it():
    """No reading, no writing, and nothing that a branch computes."""
    switch, top = _counting(), tf.Variable(2.0)
    kinds = _kinds(
        lambda i, a: switch(i, (a,), (a.shape,), (top,)), tf.TensorSpec((), tf.int32), VECTOR
    )
    assert kinds.count("Case") == 1
    assert not {"ReadVariableOp", "AssignVariableOp", "Maximum", "RealDiv"} & set(kinds)


def test_variables_of_a_strategy():
    """Of one device here: what has no handle outside of a replica is read and written outside."""
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        switch, top = _counting(), tf.Variable(2.0, trainable=False)

        @tf.function
        def function(index, a):
            return strategy.run(lambda a: switch(index, (a,), (a.shape,), (top,))[0], (a,))

        a = tf.constant([1.0, 8.0])
        np.testing.assert_array_equal(function(tf.constant(1), a), a / 2)
        np.testing.assert_array_equal(function(tf.constant(2), a), a / 8)
        assert float(top.read_value()) == 8.0


def test_every_graph_has_the_branches():
    switch = Switch([VECTOR], lambda a: (a,), lambda a: (a * 2.0,))
    signature = [tf.TensorSpec((), tf.int32), VECTOR]
    called = [tf.function(lambda i, a: switch(i, (a,), (a.shape,)), signature) for _ in range(2)]
    graphs = [function.get_concrete_function().graph for function in called]
    names = [{f.signature.name for f in g.as_graph_def().library.function} for g in graphs]
    assert names[0] == names[1] and len(names[0]) == 2


def test_operators_keep_sharing_the_functions_of_the_branches():
    """TensorFlow's optimizer gives each its own where arguments are not in the order of their use."""

    def last(a, b, c, top):
        return a * tf.reduce_sum(c) + b, b

    def kept(a, b, c, top):
        top.assign(tf.maximum(top.value(), tf.reduce_max(c)), read_value=False)
        return b * 2.0, c - a

    switch = Switch([VECTOR] * 3, last, kept, variables=[()])
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        top = tf.Variable(0.0)
        index, a = v1.placeholder(tf.int32, ()), v1.placeholder(tf.float32, [2])
        b, c = a + 1.0, a + 5.0
        for _ in range(3):
            b, c = switch(index, (a, b, c), (a.shape, a.shape), (top,))
        session.run(v1.global_variables_initializer())
        ran = v1.RunMetadata()
        options = v1.RunOptions(output_partition_graphs=True)
        found = session.run([b, c], {index: 1, a: [1.0, 2.0]}, options, ran)
        np.testing.assert_array_equal(found, [[16.0, 24.0], [3.0, 1.0]])
    cases = [n for graph in ran.partition_graphs for n in graph.node if n.op == "Case"]
    names = {function.name for case in cases for function in case.attr["branches"].list.func}
    assert len(cases) == 3
    assert len(names) == 2, names
