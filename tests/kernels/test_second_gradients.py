"""Gradients of gradients: right where they are known, and refused where they are not."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from claims import assert_close
from rewriter.errors import UnsupportedModelError


def _model(keras):
    k = keras.layers
    x = inputs = keras.Input((6, 6, 3))
    x = k.Activation("tanh")(k.BatchNormalization()(k.Conv2D(8, 3, use_bias=False)(x)))
    x = k.Flatten()(k.BatchNormalization()(k.Conv2D(4, 1, use_bias=False)(x)))
    return keras.Model(inputs, k.Dense(1)(x))


def _penalty(model, x, training):
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = model(x, training=training)
        loss = tf.reduce_mean(tf.square(inner.gradient(y, x)))
    variables = [v if isinstance(v, tf.Variable) else v.value for v in model.trainable_variables]
    return outer.gradient(loss, variables, unconnected_gradients="zero")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["tf_keras", "keras"])
def test_of_a_whole_model(arrangement, kind, training):
    keras = importlib.import_module(kind)
    keras.utils.set_random_seed(1)
    model = _model(keras)
    rewritten = rewriter.rewrite(model)
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 6, 6, 3)), tf.float32)
    expected, found = (_penalty(m, x, training) for m in (model, rewritten))
    # All in one, since those for a kernel before a normalization nearly cancel out. TensorFlow's own
    # second gradient of the fused kernel, which tf_keras's stock layer is on too, is that far from
    # float64; Keras 3's stock layer is the formula written out.
    bound = 2e-2 if kind == "keras" and training else 1e-6
    found, expected = (tf.concat([tf.reshape(g, [-1]) for g in gs], 0) for gs in (found, expected))
    assert_close(found, expected, bound)
    # Not None, and not what is left where some gradients are missing.
    with pytest.raises(UnsupportedModelError, match=r"gradient of a gradient.*run_eagerly=True"):
        tf.function(_penalty, autograph=False)(rewritten, x, training)
