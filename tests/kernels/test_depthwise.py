"""Depthwise convolutions with gradients by hand, beside TensorFlow's in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from claims import assert_close
from convolution_gradients import gradients, second_gradients
from rewriter import depthwise_convolutions, devices, onednn
from rewriter.depthwise_convolutions import depthwise_convolution
from rewriter.gradients import connected

SIZES = {"narrow": (3, 3), "wide": (5, 5), "even": (4, 6), "low": (1, 5), "high": (5, 1)}


def _ours(x, kernel, stride, padding):
    return connected(depthwise_convolution(x, kernel, stride, padding))


def _stock(x, kernel, stride, padding):
    return tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], padding)


def _data(size, channels=17, multiplier=1, dtype="float32", image=(9, 8)):
    rng = np.random.default_rng(3)
    return (
        tf.constant(rng.normal(size=(2, *image, channels)), dtype),
        tf.constant(rng.normal(size=(*size, channels, multiplier)), dtype),
    )


@pytest.fixture(params=[False, True], ids=["plain", "onednn"])
def kernels(request, monkeypatch):
    """Both ways that the gradients may take, whatever this processor has."""
    monkeypatch.setattr(onednn, "in_use", lambda: request.param)
    monkeypatch.setattr(depthwise_convolutions, "_TURNED_ELEMENTS", 100)
    monkeypatch.setattr(depthwise_convolutions, "_TURNED_PIXELS", 0)


@pytest.mark.parametrize("channels", [5, 17])
@pytest.mark.parametrize("size", list(SIZES))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_gradients(kernels, stride, padding, size, channels):
    for multiplier, image in itertools.product((1, 2), ((9, 8), (6, 7))):
        x, kernel = _data(SIZES[size], channels, multiplier, "float64", image)
        expected = gradients(_stock, x, kernel, stride, padding)
        for dtype, bound in (("float64", 1e-12), ("float32", 1e-5)):
            given = [tf.cast(t, dtype) for t in (x, kernel)]
            for a, b in zip(gradients(_ours, *given, stride, padding), expected, strict=True):
                assert_close(a, b, bound)


@pytest.mark.parametrize("image", [(1, 1), (2, 3)])
def test_kernel_larger_than_the_image(kernels, image):
    x, kernel = _data((5, 7), image=image, dtype="float64")
    found = gradients(_ours, *(tf.cast(t, "float32") for t in (x, kernel)), 1, "SAME")
    for a, b in zip(found, gradients(_stock, x, kernel, 1, "SAME"), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("unknown", ["N", "NHW"])
@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_shapes_that_are_not_known(kernels, stride, padding, unknown):
    x, kernel = _data((5, 5))
    shape = [None if axis in unknown else x.shape["NHWC".index(axis)] for axis in "NHWC"]

    @tf.function(input_signature=[tf.TensorSpec(shape, x.dtype)])
    def differentiated(x):
        return gradients(_ours, x, kernel, stride, padding)

    for a, b in zip(differentiated(x), gradients(_stock, x, kernel, stride, padding), strict=True):
        assert_close(a, b, 1e-5)


def test_gradients_of_gradients(kernels):
    x, kernel = _data((5, 5))
    for a, b in zip(
        *[tf.function(second_gradients)(f, x, kernel, 1, "SAME") for f in (_ours, _stock)],
        strict=True,
    ):
        assert_close(a, b, 1e-4)


def test_compiled_by_xla(kernels):
    x, kernel = _data((5, 5))
    compiled = tf.function(gradients, jit_compile=True)(_ours, x, kernel, 2, "SAME")
    for a, b in zip(compiled, gradients(_stock, x, kernel, 2, "SAME"), strict=True):
        assert_close(a, b, 1e-5)


def test_which_gradients_are_whose(monkeypatch):
    def kinds(size, *, channels=17, multiplier=1, gpu=False, with_onednn=True, **more):
        """The paddings of the gradients for the input, if it is that operator, and the kernel."""
        monkeypatch.setattr(devices, "on_gpu", lambda: gpu)
        monkeypatch.setattr(onednn, "in_use", lambda: with_onednn)
        stride, padding = more.pop("stride", 1), more.pop("padding", "SAME")
        x, kernel = _data(size, channels, multiplier, **more)
        function = tf.function(lambda: gradients(_ours, x, kernel, stride, padding))
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
