"""Gradients by hand in a row, beside TensorFlow's own of the same functions."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import tensorflow as tf

from claims import assert_close
from rewriter import grid, kernels
from rewriter.kernels.fast.gradients import Pending, connect, connected, tensor
from rewriter.quantization import phases


def _square(x):
    value = tensor(x)
    return Pending(value**2, lambda g: (2.0 * value * g,), (x,))


def _product(x, y):
    a, b = tensor(x), tensor(y)
    return Pending(a * b, lambda g: (g * b, g * a), (x, y))


@pytest.mark.parametrize("compiled", [False, True])
def test_the_chain_rule_in_trees(compiled):
    def gradients(x, y):
        with tf.GradientTape() as tape:
            tape.watch([x, y])
            value = connected(_product(_square(_product(x, y)), _square(y)))
        return value, *tape.gradient(value, [x, y], output_gradients=tf.constant([3.0, 5.0]))

    x, y, up = tf.constant([2.0, -1.0]), tf.constant([0.5, 3.0]), np.float32([3, 5])
    value, dx, dy = (tf.function(gradients) if compiled else gradients)(x, y)
    np.testing.assert_allclose(value, x**2 * y**4)
    np.testing.assert_allclose(dx, 2 * x * y**4 * up)
    np.testing.assert_allclose(dy, 4 * x**2 * y**3 * up)


def test_one_connection_for_all_of_a_chain():
    """Two operators for each are what TensorFlow adds; the chain saves those between."""

    def nodes(function):
        graph = tf.function(function).get_concrete_function(tf.TensorSpec([2])).graph
        return [node.type for node in graph.get_operations()].count("IdentityN")

    assert nodes(lambda x: connected(_square(_square(_square(x))))) == 1
    assert nodes(lambda x: connected(_square(connected(_square(x))))) == 2


def test_what_is_no_pending_tensor_stays_what_it_is():
    x = tf.constant([1.0])
    assert connected(x) is x
    assert tensor(x) is x


def test_lists_of_values():
    x, y = tf.constant(2.0), tf.constant(3.0)
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        a, b = connect([x + 1.0, y + 1.0], lambda *up: up, x, y)
        loss = 5.0 * a + 7.0 * b
    assert [float(g) for g in tape.gradient(loss, [x, y])] == [5.0, 7.0]


def _rounded(x):
    three = 3.0 * tf.ones_like(x)  # of the graph, as what a gradient needs mostly is
    return connect(tf.round(x), lambda up: (three * up,), x)


def test_whoever_differentiates():
    """A tape, one outside of the function, a graph, loops, conditions: the gradient given."""
    x = tf.constant([1.2, 2.7])
    called = tf.function(lambda x: _rounded(x) ** 2)

    def taped(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    once = [6.0, 18.0]  # 2 * round(x) * 3
    loop = lambda x: tf.while_loop(lambda i, v: i < 2, lambda i, v: (i + 1, _rounded(v)), [0, x])[1]  # noqa: E731
    branch = lambda x: tf.cond(x[0] > 0, lambda: _rounded(x), lambda: x)  # noqa: E731
    np.testing.assert_array_equal(taped(called), once)
    np.testing.assert_array_equal(tf.function(lambda: taped(lambda x: _rounded(x) ** 2))(), once)
    np.testing.assert_array_equal(tf.function(lambda: taped(called))(), once)
    np.testing.assert_array_equal(tf.function(lambda: taped(loop))(), [9.0, 9.0])
    np.testing.assert_array_equal(tf.function(lambda: taped(branch))(), [3.0, 3.0])
    with tf.Graph().as_default():
        given = tf.compat.v1.placeholder(tf.float32, [2])
        (gradient,) = tf.gradients(_rounded(given) ** 2, given)
        with tf.compat.v1.Session() as session:
            np.testing.assert_array_equal(session.run(gradient, {given: x.numpy()}), once)


@pytest.mark.parametrize("saved", [False, True])
def test_a_saved_model_that_is_differentiated(tmp_path, saved):
    module = tf.Module()
    module.call = tf.function(_rounded, input_signature=[tf.TensorSpec([2])])
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=saved)
    tf.saved_model.save(module, str(tmp_path), options=options)
    if not saved:  # then it is known as long as the one that was saved
        del module
        gc.collect()
    loaded, x = tf.saved_model.load(str(tmp_path)), tf.constant([1.2, 2.7])

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = loaded.call(x)
        return tape.gradient(y, x)

    np.testing.assert_array_equal(loaded.call(x), [1.0, 3.0])
    if saved:
        np.testing.assert_array_equal(gradient(), [3.0, 3.0])
    else:
        with pytest.raises(LookupError, match="Call the model again"):
            gradient()


def test_a_graph_that_nobody_has_is_freed():
    """TensorFlow's registry of gradients has no end: it must not keep what it knows of."""
    function = tf.function(_rounded)
    graph = weakref.ref(function.get_concrete_function(tf.TensorSpec([2])).graph)
    assert graph() is not None
    del function
    gc.collect()
    assert graph() is None


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("code", [phases.FLOAT, phases.QUANTIZE])
@pytest.mark.parametrize("frozen", [0, 1])
def test_convolution_normalization_and_activation_share_one(fast_kernels, size, code, frozen):
    """The gradients are those of the same three connected one by one, and TensorFlow's in float."""
    rng = np.random.default_rng(5)
    draw = lambda *shape: tf.constant(rng.normal(size=shape).astype("float32"))  # noqa: E731
    x, kernel = draw(4, 6, 5, 3), draw(size, size, 3, 8)
    gamma, beta, mean, variance = draw(8), draw(8), draw(8), draw(8) ** 2 + 0.5
    watched = [x, kernel, gamma, beta]

    def ours(link):
        phase, options = tf.constant(code), {"epsilon": 1e-3, "momentum": 0.9, "bessel": True}
        q = link(kernels.quantized_kernel(kernel, phase, grid.kernel(axes=(-1,))))
        y = link(kernels.convolution(x, q, (1, 1), "SAME", (1, 1)))
        y, _, _ = kernels.batch_norm(
            link(y), gamma, beta, mean, variance, tf.constant(frozen), **options
        )
        return kernels.connected(kernels.fixed_activation(link(y), -3.0, 3.0, phase, clamp="relu"))

    def stock():
        y = tf.nn.conv2d(x, kernel, 1, "SAME")
        m, v = (mean, variance) if frozen else tf.nn.moments(y, [0, 1, 2])
        return tf.nn.relu(tf.nn.batch_normalization(y, m, v, beta, gamma, 1e-3))

    def gradients(function, *arguments):
        with tf.GradientTape() as tape:
            tape.watch(watched)
            y = function(*arguments)
            loss = tf.reduce_sum(y * tf.reshape(tf.range(960.0) % 7 - 3, [4, 6, 5, 8]))
        return [y, *tape.gradient(loss, watched)]

    together, apart = gradients(ours, lambda x: x), gradients(ours, connected)
    for a, b in zip(together, apart, strict=True):
        np.testing.assert_array_equal(a, b)
    if code == phases.FLOAT:
        for a, b in zip(together, gradients(stock), strict=True):
            assert_close(tf.cast(a, "float64"), tf.cast(b, "float64"), 1e-4)
