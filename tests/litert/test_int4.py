"""Kernels of 4 bits: what they are written as, and what LiteRT computes with them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import builders
import litert_files
import litert_single_op
import rewriter
import widths
from rewriter import grid
from rewriter.checking import interpreter
from rewriter.litert import integer, integer_kernels, writer
from rewriter.lowering.lower import lower

KERASES = builders.KERASES

# 1x1 convolutions, and the kernels that LiteRT computes with


def _pointwise(channels, strides=1, bits=4):
    keras = builders.fresh(builders.keras_of(KERASES[0]))
    image = keras.Input((5, 6, channels))
    y = keras.layers.Conv2D(7, 1, strides=strides, activation="relu", name="host")(image)
    x = np.random.default_rng(0).normal(size=(8, 5, 6, channels)).astype(np.float32)
    qat = builders.calibrated(keras.Model(image, y), x, widths.recipe("explicit", bits))
    (step,) = (s for s in lower(qat).steps if s.operator.kernel is not None)
    assert widths.decibels(qat(x, training=False), rewriter.fold(qat)(x)) > 46
    return step.operator


def test_a_pointwise_convolution_of_four_bits_is_a_product():
    operator = _pointwise(6)
    assert operator.kind == "FULLY_CONNECTED" and operator.activation == "relu"
    assert operator.attributes == {"keep_num_dims": True} and operator.kernel.shape == (6, 7)
    assert integer_kernels.delegated(operator) and operator.kernel_grid == grid.kernel(4, (-1,))


@pytest.mark.parametrize("options", [{"channels": 5}, {"channels": 6, "strides": 2},
                                     {"channels": 6, "bits": 5}])  # fmt: skip
def test_others_stay_convolutions(options):
    operator = _pointwise(**options)
    assert operator.kind == "CONV_2D" and operator.kernel.shape[:2] == (1, 1)


_SAME = {"strides": [1, 1], "padding": "SAME", "dilations": [1, 1]}
FILES = {
    "conv": ("CONV_2D", (6, 5, 6), (3, 3, 6, 10), (-1,), _SAME),
    "conv-strided": ("CONV_2D", (6, 5, 5), (3, 3, 5, 7), (-1,),
                     {**_SAME, "strides": [2, 2], "padding": "VALID"}),
    "conv-dilated": ("CONV_2D", (6, 5, 6), (3, 3, 6, 10), (-1,), {**_SAME, "dilations": [2, 2]}),
    "conv-grouped": ("CONV_2D", (6, 5, 6), (3, 3, 3, 10), (-1,), _SAME),
    "pointwise-odd": ("CONV_2D", (6, 5, 5), (1, 1, 5, 10), (-1,), _SAME),
    "depthwise-8": ("DEPTHWISE_CONV_2D", (6, 5, 8), (3, 3, 8, 1), (-2, -1), _SAME),
    "depthwise-19": ("DEPTHWISE_CONV_2D", (6, 5, 19), (3, 3, 19, 1), (-2, -1), _SAME),
    "depthwise-3x3": ("DEPTHWISE_CONV_2D", (6, 5, 3), (3, 3, 3, 3), (-2, -1),
                      {**_SAME, "strides": [2, 2]}),
    "dense": ("FULLY_CONNECTED", (64,), (64, 9), (-1,), {}),
    "dense-odd": ("FULLY_CONNECTED", (63,), (63, 9), (-1,), {}),
    "product": ("FULLY_CONNECTED", (6, 5, 6), (6, 9), (-1,), {"keep_num_dims": True}),
    "product-odd": ("FULLY_CONNECTED", (6, 5, 5), (5, 9), (-1,), {"keep_num_dims": True}),
}  # fmt: skip


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("case", FILES)
def test_the_twin_is_litert(case, bits):
    """Bit for bit, whichever of LiteRT's kernels it is, at scales where two roundings matter."""
    kind, shape, kernel_shape, axes, attributes = FILES[case]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        activation = ("none", "relu", "relu6", "none")[seed]
        wide = litert_single_op.linear(kind, rng, kernel_shape, axes, attributes, activation)
        narrow = grid.kernel(bits, axes)
        integers = np.rint(wide.kernel / 127 * narrow.qmax).astype(np.int8)
        operator = dataclasses.replace(
            wide, kernel=integers, bias=wide.bias * narrow.qmax // 127, kernel_grid=narrow,
            kernel_scale=np.float32(wide.kernel_scale * (127 / narrow.qmax * rng.uniform(0.2, 1))),
        )  # fmt: skip
        q = rng.integers(-128, 128, (3, *shape))
        expected = integer.compute(operator, tf.constant(q, tf.int32)).numpy()
        content = writer.write(litert_files.one_operator(operator, [shape], expected.shape[1:]))
        (found,) = interpreter.run(content, [q.astype(np.int8)])
        np.testing.assert_array_equal(found, expected)
