"""One training step of a host in phase ``quantize``, compiled, beside the definition in float64.

Kernels are rounded and activations quantized straight through; the range of the output follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter

SAME = {"padding": "same", "bias_initializer": "random_normal"}
# layer, its arguments, axes of the kernel that index channels, its linear part
HOSTS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Any]] = {
    "3x3": (
        "Conv2D",
        {"filters": 6, "kernel_size": 3, **SAME},
        (3,),
        lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"),
    ),
    "1x1, strided": (
        "Conv2D",
        {"filters": 6, "kernel_size": 1, "strides": 2, **SAME},
        (3,),
        lambda x, k: tf.nn.conv2d(x, k, 2, "SAME"),
    ),
    "depthwise": (
        "DepthwiseConv2D",
        {"kernel_size": 3, **SAME},
        (2, 3),
        lambda x, k: tf.nn.depthwise_conv2d(x, k, [1] * 4, "SAME"),
    ),
    "dense": (
        "Dense",
        {"units": 6, "bias_initializer": "random_normal"},
        (1,),
        lambda x, k: tf.tensordot(x, k, 1),
    ),
}


def _straight(value: Any, exact: Any) -> Any:
    return exact + tf.stop_gradient(tf.cast(value, exact.dtype) - exact)


def _rounded(kernel: Any, channels: tuple[int, ...]) -> Any:
    rest = tuple(axis for axis in range(kernel.ndim) if axis not in channels)
    scale = np.abs(kernel).max(rest, keepdims=True) / np.float32(127)
    return np.round(kernel / scale) * scale


def _range(layer: Any) -> list[float]:
    return [float(np.asarray(layer.range_variables[key])) for key in ("min_var", "max_var")]


@pytest.mark.parametrize("kind", builders.KERASES)
@pytest.mark.parametrize("name", list(HOSTS))
@pytest.mark.parametrize("ending", ["normalized", "relu"])
def test_gradients_and_ranges(arrangement, kind, name, ending):
    keras = builders.fresh(builders.keras_of(kind))
    cls, arguments, channels, linear = HOSTS[name]
    normalized = ending == "normalized"
    inputs = keras.Input((6, 6, 5))
    more = {} if normalized else {"activation": "relu"}
    y = getattr(keras.layers, cls)(name="host", **arguments, **more)(inputs)
    if normalized:
        y = keras.layers.BatchNormalization(name="bn", beta_initializer="random_normal")(y)
    qat = rewriter.rewrite(keras.Model(inputs, y))
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 5)).astype("float32")
    rewriter.calibrate(qat, x, progress=False, method="minmax")
    rewriter.set_phase(qat, "quantize")
    first, *_, last = claims.quantize_layers(qat)
    start, variables = _range(last), list(qat.trainable_variables)
    sources = [v if isinstance(v, tf.Variable) else v.value for v in variables]
    values = [np.asarray(v) for v in variables]

    low, high = _range(first)
    seen = tf.quantization.fake_quant_with_min_max_vars(x, low, high)
    exact = [tf.constant(v, tf.float64) for v in values]
    with tf.GradientTape() as tape:
        tape.watch(exact)
        by_size = sorted(exact, key=lambda v: len(v.shape))
        kernel, vectors = by_size[-1], by_size[:-1]
        kernel = _straight(_rounded(np.asarray(kernel, np.float32), channels), kernel)
        # In the order of the layers: bias, gamma, beta.
        bias, *norm = vectors
        y = linear(tf.cast(seen, tf.float64), kernel) + bias
        if normalized:
            gamma, beta = norm
            y = tf.nn.batch_normalization(y, *tf.nn.moments(y, [0, 1, 2]), beta, gamma, 1e-3)
        else:
            y = tf.nn.relu(y)
        batch = min(float(tf.reduce_min(y)), 0.0), float(tf.reduce_max(y))
        moved = [old + 0.01 * (new - old) for old, new in zip(start, batch, strict=True)]
        quantized = tf.quantization.fake_quant_with_min_max_vars(tf.cast(y, tf.float32), *moved)
        weights = np.random.default_rng(1).normal(size=y.shape)
        # A ReLU's gradient is taken where its quantized output is not 0.
        passes = 1.0 if normalized else tf.cast(quantized > 0, tf.float64)
        loss = tf.reduce_sum(y * passes * weights)
    expected = tape.gradient(loss, exact)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            output = qat(x, training=True)
            loss = tf.reduce_sum(output * tf.cast(weights, tf.float32))
        return output, tape.gradient(loss, sources)

    largest = max(float(np.abs(g).max()) for g in expected)
    output, gradients = step()
    assert float(tf.reduce_mean(tf.cast(output == quantized, tf.float32))) > 0.999
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4 * largest)
    np.testing.assert_allclose(_range(last), moved, rtol=1e-4, atol=1e-6)
    assert moved != start
