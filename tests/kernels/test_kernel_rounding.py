"""Rounded kernels, beside NumPy and beside the file's integers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from rewriter import grid, kernels
from rewriter.kernels import connected
from rewriter.lowering import folding
from rewriter.quantization import phases


def _assert_rounded(found, kernel, channel_axes, num_bits, rtol=0.0):
    """The nearest integers by float64, either one at a tie, times the float32 scale."""
    rest = tuple(axis for axis in range(kernel.ndim) if axis - kernel.ndim not in channel_axes)
    top = np.float32(2 ** (num_bits - 1) - 1)
    largest = np.abs(kernel).max(rest, keepdims=True)
    scale = np.where(largest > 0, largest / top, np.float32(1))
    integers = np.round(found / scale)
    tie = 2.0**-24 * 4 * top  # of rounding: an inverse and a product of up to ``top``
    exact = kernel.astype(np.float64) / np.where(largest > 0, largest, 1) * top
    assert np.abs(integers - exact).max() <= 0.5 + tie
    np.testing.assert_allclose(found, integers * scale, rtol=rtol, atol=0)


LAST = grid.kernel(axes=(-1,))


def _kernel(shape, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape) * np.exp(rng.normal(size=shape[-1]))
    values = values.astype("float32")
    values[..., 1] = 0.0
    values[..., 2] *= np.float32(1e-30)
    return values


@pytest.mark.parametrize("num_bits", [8, 5, 4, 2])
@pytest.mark.parametrize(
    ("shape", "channel_axes"),
    [
        ((3, 3, 16, 24), (-1,)),
        ((3, 3, 128, 4), (-2, -1)),
        ((1, 1, 512, 1024), (-1,)),
        ((3, 3, 256, 256), (-2,)),
        ((1024, 640), (-1,)),
    ],
)
def test_the_integers_of_the_file(shape, channel_axes, num_bits):
    phase, given = tf.Variable(phases.FLOAT), grid.kernel(num_bits, channel_axes)

    @tf.function
    def rounded(kernel):
        return connected(kernels.quantized_kernel(kernel, phase.value(), given))

    kernel = _kernel(shape)
    np.testing.assert_array_equal(rounded(kernel), kernel)
    for code in (phases.QUANTIZE, phases.QUANTIZE_FROZEN):
        phase.assign(code)
        _assert_rounded(rounded(kernel).numpy(), kernel, channel_axes, num_bits)
        # At ties as well.
        integers, scale = folding.kernel_integers(kernel, given)
        shape = [n if i - kernel.ndim in channel_axes else 1 for i, n in enumerate(kernel.shape)]
        np.testing.assert_array_equal(rounded(kernel), integers * scale.reshape(shape))


def test_the_gradient_of_a_kernel_is_straight_through():
    phase, kernel = tf.Variable(phases.QUANTIZE), tf.constant(_kernel((1024, 640)))
    upstream = tf.constant(_kernel((1024, 640), seed=1))

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            rounded = connected(kernels.quantized_kernel(kernel, phase.value(), LAST))
        return tape.gradient(rounded, kernel, output_gradients=upstream)

    np.testing.assert_array_equal(gradient(), upstream)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_xla_compiles_whole(compiled):
    kernel, phase = _kernel((1024, 640)), tf.Variable(phases.QUANTIZE)

    @tf.function(jit_compile=compiled)
    def function():
        return connected(kernels.quantized_kernel(tf.constant(kernel), phase.value(), LAST))

    # Where XLA sees all, it multiplies by 1 / 127: the scale is a rounding off.
    _assert_rounded(function().numpy(), kernel, (-1,), 8, rtol=3e-7 if compiled else 0.0)


@pytest.mark.parametrize("magnitude", [2.0**-111, 1e-38, 1e-42])
def test_a_channel_without_an_inverse_is_one_of_zeros(magnitude):
    kernel = _kernel((3, 3, 8, 4))
    kernel[..., 0] = magnitude
    phase = tf.Variable(phases.QUANTIZE)
    found = connected(kernels.quantized_kernel(tf.constant(kernel), phase.value(), LAST)).numpy()
    assert np.isfinite(found).all() and not found[..., 0].any() and found[..., 3].any()
    integers, scale = folding.kernel_integers(kernel, LAST)
    assert not integers[..., 0].any() and scale[0] == 1
