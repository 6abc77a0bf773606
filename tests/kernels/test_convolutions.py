"""Convolutions with gradients of their own, beside TensorFlow's in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from claims import assert_close
from convolution_gradients import gradients, second_gradients
from rewriter import kernels
from rewriter.kernels.fast import machine, thresholds

# kernel size, strides, dilations, padding, spatial sizes of the input
CASES = {
    "pointwise": ((1, 1), (1, 1), (1, 1), "SAME", (5, 7)),
    "pointwise, strided, even sizes": ((1, 1), (2, 2), (1, 1), "VALID", (6, 4)),
    "pointwise, strided, odd sizes": ((1, 1), (2, 3), (1, 1), "SAME", (5, 7)),
    "pointwise, large": ((1, 1), (1, 1), (1, 1), "SAME", (5, 10)),
    "pointwise, one pixel": ((1, 1), (1, 1), (1, 1), "VALID", (1, 1)),
    "odd, same": ((3, 5), (1, 1), (1, 1), "SAME", (6, 7)),
    "even, same": ((2, 4), (1, 1), (1, 1), "SAME", (6, 7)),
    "valid": ((3, 2), (1, 1), (1, 1), "VALID", (6, 7)),
    "larger than the image": ((5, 5), (1, 1), (1, 1), "SAME", (2, 3)),
    "strided": ((3, 3), (2, 2), (1, 1), "SAME", (6, 7)),
    "of few pixels": ((3, 5), (1, 1), (1, 1), "SAME", (2, 2)),
    "of few pixels, strided": ((3, 3), (2, 2), (1, 1), "SAME", (2, 2)),
    "of one pixel": ((3, 3), (1, 1), (1, 1), "SAME", (1, 1)),
    "of few pixels, even": ((2, 3), (1, 1), (1, 1), "SAME", (1, 3)),
    "of few pixels, valid": ((1, 3), (1, 1), (1, 1), "VALID", (1, 4)),
    "dilated": ((3, 3), (1, 1), (2, 2), "VALID", (6, 7)),
    "one axis, pointwise": ((1,), (1,), (1,), "VALID", (9,)),
    "one axis, pointwise, strided": ((1,), (2,), (1,), "SAME", (9,)),
    "one axis, pointwise, long": ((1,), (1,), (1,), "SAME", (60,)),
    "one axis, even": ((4,), (1,), (1,), "SAME", (9,)),
    "one axis, strided": ((3,), (2,), (1,), "SAME", (9,)),
    "one axis, dilated": ((3,), (1,), (3,), "VALID", (9,)),
}


def _ours(*arguments):
    return kernels.connected(kernels.convolution(*arguments))


def _stock(x, kernel, strides, padding, dilations):
    return tf.nn.convolution(x, kernel, list(strides), padding, dilations=list(dilations))


def _data(size, spatial, channels, dtype="float64"):
    rng = np.random.default_rng(7)
    return (
        tf.constant(rng.normal(size=(3, *spatial, channels)), dtype),
        tf.constant(rng.normal(size=(*size, channels, 6)), dtype),
    )


@pytest.fixture(params=["plain", "fast", "fast with oneDNN"])
def ways(request, monkeypatch):
    """All ways that the gradients may take, whatever this processor has."""
    monkeypatch.setattr(machine, "onednn", lambda: "oneDNN" in request.param)
    monkeypatch.setattr(thresholds, "PATCHED_CHANNELS", 6)
    with kernels.using(request.param.split()[0]):
        yield request.param


@pytest.fixture
def fast():
    with kernels.using("fast"):
        yield


@pytest.mark.wide
@pytest.mark.parametrize("channels", [3, 9])
@pytest.mark.parametrize("case", list(CASES))
def test_gradients(ways, case, channels):
    size, strides, dilations, padding, spatial = CASES[case]
    x, kernel = _data(size, spatial, channels)
    options = strides, padding, dilations
    expected = gradients(_stock, x, kernel, *options)
    found = gradients(_ours, *(tf.cast(t, tf.float32) for t in (x, kernel)), *options)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert_close(a, b, 1e-5)


@pytest.mark.wide
@pytest.mark.parametrize("case", list(CASES))
def test_output_is_tensorflows_own(ways, case):
    size, strides, dilations, padding, spatial = CASES[case]
    x, kernel = _data(size, spatial, 9, "float32")
    for convolve in (_ours, tf.function(_ours)):
        np.testing.assert_array_equal(
            convolve(x, kernel, strides, padding, dilations),
            _stock(x, kernel, strides, padding, dilations),
        )


def test_kernels_are_turned_in_the_backward_pass(fast, monkeypatch):
    """Otherwise every turned kernel is in memory from the start of a step to its end."""
    monkeypatch.setattr(machine, "onednn", lambda: False)
    monkeypatch.setattr(thresholds, "PATCHED_CHANNELS", 6)

    def turned(case):
        size, strides, dilations, padding, spatial = CASES[case]
        x, kernel = _data(size, spatial, 9, "float32")
        function = tf.function(lambda: gradients(_ours, x, kernel, strides, padding, dilations))
        nodes = function.get_concrete_function().graph.get_operations()
        return [node for node in nodes if node.type == "ReverseV2"]

    found = [*turned("odd, same"), *turned("of few pixels")]
    assert found and all(node.control_inputs for node in found)


@pytest.mark.parametrize(
    ("case", "unknown"),
    list(
        itertools.product(
            ("odd, same", "pointwise", "pointwise, strided, odd sizes", "of few pixels"),
            ("NHW", "N"),
        )
    ),
)
def test_shapes_that_are_not_known(ways, case, unknown):
    size, strides, dilations, padding, spatial = CASES[case]
    x, kernel = _data(size, spatial, 9, "float32")
    shape = [None if axis in unknown else x.shape["NHWC".index(axis)] for axis in "NHWC"]

    @tf.function(input_signature=[tf.TensorSpec(shape, x.dtype)])
    def differentiated(x):
        return gradients(_ours, x, kernel, strides, padding, dilations)

    for a, b in zip(
        differentiated(x), gradients(_stock, x, kernel, strides, padding, dilations), strict=True
    ):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("case", ["odd, same", "pointwise, strided, odd sizes", "of few pixels"])
def test_gradients_of_gradients(ways, case):
    size, strides, dilations, padding, spatial = CASES[case]
    x, kernel = _data(size, spatial, 9, "float32")
    # TensorFlow's own has none outside of a function.
    results = [
        tf.function(second_gradients)(f, x, kernel, strides, padding, dilations)
        for f in (_ours, _stock)
    ]
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", ["odd, same", "pointwise", "of few pixels"])
def test_sixteen_bits(ways, case, dtype):
    size, strides, dilations, padding, spatial = CASES[case]
    x, kernel = _data(size, spatial, 9, dtype)
    found = gradients(_ours, x, kernel, strides, padding, dilations)
    expected = gradients(
        _stock, *(tf.cast(t, "float64") for t in (x, kernel)), strides, padding, dilations
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert_close(tf.cast(a, "float64"), b, 5e-3 if dtype == "float16" else 4e-2)


def test_which_gradients_are_whose(fast, monkeypatch):
    def kinds(size, channels, *, gpu=False, with_onednn=False, spatial=(6, 7)):
        monkeypatch.setattr(machine, "on_gpu", lambda: gpu)
        monkeypatch.setattr(machine, "onednn", lambda: with_onednn)
        x, kernel = _data(size, spatial, channels, "float32")
        function = tf.function(lambda: gradients(_ours, x, kernel, (1, 1), "SAME", (1, 1)))
        graph = function.get_concrete_function().graph
        return {node.type for node in graph.get_operations() if "Backprop" in node.type}

    stock = {"Conv2DBackpropInput", "Conv2DBackpropFilter"}
    assert kinds((1, 1), 9) == kinds((1, 1), 9, with_onednn=True) == set()
    assert kinds((3, 3), 9) == {"Conv2DBackpropFilter"}
    assert kinds((3, 3), 3) == kinds((3, 3), 9, with_onednn=True) == stock
    assert kinds((3, 3), 9, gpu=True) == kinds((1, 1), 9, gpu=True) == stock
    assert kinds((3, 3), 9, with_onednn=True, spatial=(2, 2)) == stock
    monkeypatch.setattr(thresholds, "PATCHED_CHANNELS", 6)
    assert kinds((3, 3), 9, with_onednn=True, spatial=(2, 2)) == set()
    assert kinds((3, 3), 9, spatial=(2, 2)) == set()
    assert kinds((3, 3), 9, with_onednn=True, spatial=(2, 3)) == stock
