"""Gradients of gradients: right where they are known, and refused where they are not."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from claims import assert_close
from rewriter import kernels
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
    # All in one, since those for a kernel before a normalization nearly cancel out.
    found = outer.gradient(loss, variables, unconnected_gradients="zero")
    return tf.concat([tf.reshape(g, [-1]) for g in found], 0)


def _bound(kind, training):
    # TensorFlow's own second gradient of the fused kernel, which tf_keras's stock layer is on too,
    # is that far from float64; Keras 3's stock layer is the formula written out.
    return 2e-2 if kind == "keras" and training else 1e-6


@pytest.fixture(params=["tf_keras", "keras"])
def kind(request):
    return request.param


@pytest.fixture
def models(kind):
    """The stock model and ours, and what both are given."""
    keras = importlib.import_module(kind)
    keras.utils.set_random_seed(1)
    model = _model(keras)
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 6, 6, 3)), tf.float32)
    return model, rewriter.rewrite(model), x


@pytest.mark.parametrize("training", [True, False])
def test_of_a_whole_model(arrangement, models, kind, training):
    model, rewritten, x = models
    with kernels.using("fast"):
        expected, found = (_penalty(m, x, training) for m in (model, rewritten))
        assert_close(found, expected, _bound(kind, training))
        # Not None, and not what is left where some gradients are missing.
        message = r"gradient of a gradient.*REWRITER_KERNELS=plain.*run_eagerly=True"
        with pytest.raises(UnsupportedModelError, match=message):
            tf.function(_penalty, autograph=False)(rewritten, x, training)


@pytest.mark.wide
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_with_the_plain_kernels(models, kind, training, compiled):
    """In every phase; where kernels and activations are quantized, straight through."""
    model, rewritten, x = models
    rewriter.calibrate(rewritten, np.asarray(x), progress=False, method="minmax")
    rewriter.set_phase(rewritten, "float")
    step = tf.function(_penalty, autograph=False) if compiled else _penalty
    expected = step(model, x, training)
    with kernels.using("plain"):
        ours = tf.function(_penalty, autograph=False) if compiled else _penalty
        assert_close(ours(rewritten, x, training), expected, _bound(kind, training))
        rewriter.set_phase(rewritten, "quantize")
        quantized = ours(rewritten, x, training)
    assert np.isfinite(quantized).all() and np.any(quantized)
    # Eight bits are near the float model, and not the same.
    off = float(tf.norm(quantized - expected) / tf.norm(expected))
    assert 1e-4 < off < 0.3, off
