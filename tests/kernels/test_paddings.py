"""Layers that pad before a convolution: their copy is left out in training where it is not needed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from rewriter import paddings

CONVOLUTIONS = {
    "depthwise": ("DepthwiseConv2D", {"kernel_size": 3}),
    "full": ("Conv2D", {"filters": 4, "kernel_size": 3}),
    "separable": ("SeparableConv2D", {"filters": 4, "kernel_size": 3}),
}


@pytest.mark.parametrize(("size", "stride"), list(itertools.product((1, 2, 3, 5, 7), (1, 2, 3))))
def test_the_zeros_that_tensorflow_adds(size, stride):
    for length in range(1, 12):
        x = tf.reshape(tf.range(1.0, 1.0 + length**2), [1, length, length, 1])
        kernel = tf.ones([size, size, 1, 1])
        added = paddings.explicit((length, length), (size, size), (stride, stride), "SAME")
        padded = tf.pad(x, [[0, 0], added[:2], added[2:], [0, 0]])
        np.testing.assert_array_equal(
            tf.nn.conv2d(padded, kernel, stride, "VALID"), tf.nn.conv2d(x, kernel, stride, "SAME")
        )


def _models(kind, name, image, added, stride):
    keras = builders.fresh(builders.keras_of(kind))
    cls, arguments = CONVOLUTIONS[name]
    inputs = keras.Input((*image, 3))
    x = keras.layers.Conv2D(3, 1)(inputs)
    x = keras.layers.ZeroPadding2D(added)(x)
    arguments = {**arguments, "strides": stride, "padding": "valid", "use_bias": False}
    x = getattr(keras.layers, cls)(**arguments)(x)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    return model, rewriter.rewrite(model)


def _trained(model, x):
    """Output and gradients in training, and what the convolutions are given."""

    @tf.function
    def differentiated(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
            loss = tf.reduce_sum(tf.sin(y * 3.0))
        variables = model.trainable_variables
        sources = [v if isinstance(v, tf.Variable) else v.value for v in variables]
        return y, tape.gradient(loss, [x, *sources])

    return differentiated(x), _given(differentiated.get_concrete_function(x).graph)


def _given(graph):
    """What makes the inputs of a graph's convolutions."""
    kinds = "Conv2D", "DepthwiseConv2dNative"
    return {op.inputs[0].op.type for op in graph.get_operations() if op.type in kinds}


@pytest.mark.parametrize("kind", builders.KERASES)
@pytest.mark.parametrize("name", list(CONVOLUTIONS))
@pytest.mark.parametrize(
    ("image", "added", "stride", "same"),
    [
        ((8, 6), ((0, 1), (0, 1)), 2, True),  # as Keras's applications
        ((7, 9), 1, 2, True),
        ((8, 6), 1, 1, True),
        ((8, 6), 1, 2, False),
        ((8, 6), ((1, 0), (0, 1)), 2, False),
        ((8, 7), ((0, 1), (0, 1)), 2, False),
        ((8, 6), 2, 1, False),
    ],
)
def test_training_with_and_without_the_copy(kind, name, image, added, stride, same):
    original, qat = _models(kind, name, image, added, stride)
    x = tf.constant(np.random.default_rng(0).normal(size=(4, *image, 3)), tf.float32)
    (expected, gradients), _ = _trained(original, x)
    (found, ours), given = _trained(qat, x)
    assert ("Pad" in given) != same
    claims.assert_close(found, expected, 1e-5)
    for a, b in zip(ours, gradients, strict=True):
        claims.assert_close(a, b, 1e-4)
    inference = tf.function(lambda x: qat(x, training=False)).get_concrete_function(x)
    assert "Pad" in _given(inference.graph)  # the original's bits are wanted


def test_what_cannot_be_left_out():
    """Sizes that are not known, other axes, other values, and no graph."""

    def given(shape, added, value=0, constant=True, stride=2):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32)])
        def function(x):
            amounts = tf.constant(added)
            if not constant:
                amounts = amounts + tf.cast(tf.size(x) * 0, tf.int32)
            y = tf.pad(x, amounts, constant_values=value)
            kinds.append(paddings.absorbed(y, (3, 3), (stride, stride), "VALID")[1])
            return y

        kinds: list[str] = []
        function.get_concrete_function()
        return kinds.pop()

    added = [[0, 0], [0, 1], [0, 1], [0, 0]]
    assert given((2, 8, 6, 3), added) == given((None, 8, 6, 3), added) == "SAME"
    assert given((2, None, 6, 3), added) == "VALID"
    assert given((2, 8, 6, 3), added, constant=False) == "VALID"
    assert given((2, 8, 6, 3), added, value=1) == "VALID"
    assert given((2, 8, 6, 3), [[0, 0], [0, 1], [0, 1], [0, 1]]) == "VALID"
    assert given((2, 8, 6, 3), [[1, 0], [0, 1], [0, 1], [0, 0]]) == "VALID"
    assert given((None, None, None, 3), [[0, 0], [1, 1], [1, 1], [0, 0]], stride=1) == "SAME"
    x = tf.pad(tf.zeros((2, 8, 6, 3)), added)
    eagerly = lambda: paddings.absorbed(x, (3, 3), (2, 2), "VALID")[0]  # noqa: E731
    assert eagerly() is x and tf.function(eagerly)().shape == x.shape
