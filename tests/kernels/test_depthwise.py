"""Depthwise convolutions with gradients by hand, beside TensorFlow's in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from claims import assert_close
from convolution_gradients import gradients, second_gradients
from rewriter import kernels
from rewriter.kernels.fast import depthwise, machine, thresholds

SIZES = {"narrow": (3, 3), "wide": (5, 5), "even": (4, 6), "low": (1, 5), "high": (5, 1)}


def _ours(x, kernel, stride, padding):
    return kernels.connected(kernels.depthwise_convolution(x, kernel, stride, padding))


def _stock(x, kernel, stride, padding):
    return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], padding)


def _data(size, channels=17, multiplier=1, dtype="float32", image=(9, 8)):
    rng = np.random.default_rng(3)
    return (
        tf.constant(rng.normal(size=(2, *image, channels)), dtype),
        tf.constant(rng.normal(size=(*size, channels, multiplier)), dtype),
    )


@pytest.fixture(params=["plain", "fast", "fast with oneDNN"])
def ways(request, monkeypatch):
    """All ways that the gradients may take, whatever this processor has."""
    monkeypatch.setattr(machine, "onednn", lambda: "oneDNN" in request.param)
    monkeypatch.setattr(thresholds, "TURNED_ELEMENTS", 100)
    monkeypatch.setattr(thresholds, "TURNED_PIXELS", 0)
    with kernels.using(request.param.split()[0]):
        yield request.param


@pytest.mark.wide
@pytest.mark.parametrize("channels", [5, 17])
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_gradients(ways, stride, padding, size, channels):
    for multiplier, image in itertools.product((1, 2), ((9, 8), (6, 7))):
        x, kernel = _data(SIZES[size], channels, multiplier, "float64", image)
        expected = gradients(_stock, x, kernel, stride, padding)
        for dtype, bound in (("float64", 1e-12), ("float32", 1e-5)):
            given = [tf.cast(t, dtype) for t in (x, kernel)]
            for a, b in zip(gradients(_ours, *given, stride, padding), expected, strict=True):
                assert_close(a, b, bound)


@pytest.mark.parametrize("image", [(1, 1), (2, 3)])
def test_kernel_larger_than_the_image(ways, image):
    x, kernel = _data((5, 7), image=image, dtype="float64")
    found = gradients(_ours, *(tf.cast(t, "float32") for t in (x, kernel)), 1, "SAME")
    for a, b in zip(found, gradients(_stock, x, kernel, 1, "SAME"), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("unknown", ["N", "NHW"])
@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_shapes_that_are_not_known(ways, stride, padding, unknown):
    x, kernel = _data((5, 5))
    shape = [None if axis in unknown else x.shape["NHWC".index(axis)] for axis in "NHWC"]

    @tf.function(input_signature=[tf.TensorSpec(shape, x.dtype)])
    def differentiated(x):
        return gradients(_ours, x, kernel, stride, padding)

    for a, b in zip(differentiated(x), gradients(_stock, x, kernel, stride, padding), strict=True):
        assert_close(a, b, 1e-5)


def test_gradients_of_gradients(ways):
    x, kernel = _data((5, 5))
    for a, b in zip(
        *[tf.function(second_gradients)(f, x, kernel, 1, "SAME") for f in (_ours, _stock)],
        strict=True,
    ):
        assert_close(a, b, 1e-4)


def test_compiled_by_xla(ways):
    x, kernel = _data((5, 5))
    compiled = tf.function(gradients, jit_compile=True)(_ours, x, kernel, 2, "SAME")
    for a, b in zip(compiled, gradients(_stock, x, kernel, 2, "SAME"), strict=True):
        assert_close(a, b, 1e-5)


def test_which_gradients_are_whose(monkeypatch):
    def kinds(size, *, channels=17, multiplier=1, gpu=False, with_onednn=True, **more):
        """The paddings of the gradients for the input, if it is that operator, and the kernel."""
        monkeypatch.setattr(machine, "on_gpu", lambda: gpu)
        monkeypatch.setattr(machine, "onednn", lambda: with_onednn)
        stride, padding = more.pop("stride", 1), more.pop("padding", "SAME")
        x, kernel = _data(size, channels, multiplier, **more)
        function = tf.function(lambda: gradients(_ours, x, kernel, stride, padding))
        with kernels.using("fast"):
            nodes = function.get_concrete_function().graph.get_operations()
        found = {n.type[-6:]: n.get_attr("padding") for n in nodes if "Backprop" in n.type}
        return found.get("pInput"), found["Filter"]

    stock, explicit = (b"SAME", b"SAME"), (b"SAME", b"EXPLICIT")
    turned = None, b"EXPLICIT"
    assert kinds((5, 5)) == turned
    assert kinds((1, 4)) == kinds((5, 5), stride=2) == kinds((5, 5), multiplier=2) == explicit
    assert kinds((5, 5), image=(4, 4)) == explicit and kinds((5, 5), image=(4, 5)) == turned
    assert kinds((5, 5), padding="VALID") == (b"VALID", b"EXPLICIT")
    assert kinds((3, 3)) == stock
    assert kinds((5, 3)) == kinds((3, 3), channels=32, image=(32, 32)) == (None, b"SAME")
    assert kinds((3, 3), channels=31, image=(32, 32)) == stock
    assert kinds((5, 5), channels=15) == (None, b"SAME")
    assert kinds((5, 5), dtype="bfloat16") == stock
    assert kinds((5, 5), with_onednn=False) == kinds((5, 5), gpu=True) == stock


@pytest.mark.parametrize(("size", "stride"), list(itertools.product((1, 2, 3, 5, 7), (1, 2, 3))))
def test_the_zeros_that_tensorflow_adds(size, stride):
    for length in range(1, 12):
        x = tf.reshape(tf.range(1.0, 1.0 + length**2), [1, length, length, 1])
        kernel = tf.ones([size, size, 1, 1])
        added = depthwise.added_zeros((length, length), (size, size), stride, "SAME")
        padded = tf.pad(x, [[0, 0], added[:2], added[2:], [0, 0]])
        np.testing.assert_array_equal(
            tf.nn.conv2d(padded, kernel, stride, "VALID"), tf.nn.conv2d(x, kernel, stride, "SAME")
        )
