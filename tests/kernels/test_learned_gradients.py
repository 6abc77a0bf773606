"""Learned scales: values and gradients against the papers' formulas in NumPy, float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from rewriter import grid as grids
from rewriter import kernels
from rewriter.grid import Grid
from rewriter.kernels import learned
from rewriter.kernels.closest import closest_scale
from rewriter.kernels.codes import OBSERVE, QUANTIZE, QUANTIZE_FIXED

pytestmark = pytest.mark.kernels
ways = pytest.mark.parametrize(("implementation", "graph"), [("plain", False), ("fast", True)])


def lsq(v, n, p, upstream, count):
    """arXiv:1902.08153, equations 1 to 3 and section 2.2: integers, gradients of x and of s."""
    inside = (v > n) & (v < p)
    slope = np.where(inside, np.rint(v) - v, np.where(v <= n, n, p))
    return np.clip(np.rint(v), n, p), upstream * inside, upstream * slope / np.sqrt(count * p)


def tqt(v, n, p, upstream, scale):
    """arXiv:1903.08066, equations 4 to 8: the same, of log2 t."""
    r = np.rint(v)
    inside = (r >= n) & (r <= p)
    slope = np.where(inside, r - v, np.where(r < n, n, p))
    return np.clip(r, n, p), upstream * inside, upstream * slope * scale * np.log(2)


def off_ties(rng, shape, scale, reach):
    """Values of which none is so near to a tie or a bound that float32 could decide otherwise."""
    whole = rng.integers(-reach, reach + 1, shape)
    return ((whole + rng.uniform(0.02, 0.48, shape) * rng.choice([-1, 1], shape)) * scale).astype(
        np.float32
    )


def gradients(function, graph, *inputs):
    """The value of ``function`` and the gradients of its product with ``upstream``, given last."""
    *inputs, upstream = map(tf.constant, inputs)

    def run(*given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            value = kernels.connected(function(*given))
            loss = tf.reduce_sum(value * upstream)
        return value, tape.gradient(loss, given, unconnected_gradients="zero")

    value, found = (tf.function(run) if graph else run)(*inputs)
    return value.numpy(), [each.numpy().astype(np.float64) for each in found]


ACTIVATIONS = {
    "lsq-signed": ("lsq", 0.11, 0.0, 0),
    "lsq-unsigned": ("lsq", 0.11, 0.0, -4),
    "lsq+": ("lsq+", 0.11, -0.24, 7),  # the zero point is the offset's: -2
    "lsq+-all-negative": ("lsq+", 0.11, -2.0, 7),
    "tqt-signed": ("tqt", np.log2(0.4), 0.0, 0),
    "tqt-unsigned": ("tqt", np.log2(0.4), 0.0, -4),
}


@ways
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name, graph, implementation):
    method, value, offset, zero = ACTIVATIONS[name]
    grid, rng = Grid(3), np.random.default_rng(0)
    if method == "tqt":
        scale = 2.0 ** np.ceil(value) / (4 if zero == 0 else 8)
    else:
        scale = float(np.float32(value))
    x = off_ties(rng, (5, 6, 7), scale, 9)
    upstream = rng.normal(size=x.shape).astype(np.float32)
    wide, up, count = x.astype(np.float64), upstream.astype(np.float64), 42
    if method == "lsq+":
        # arXiv:2004.09576, equations 3 to 6, with the offset on its nearest multiple of s.
        nudged = -scale * np.clip(np.rint(-offset / scale), 0, 7)
        v = (wide - nudged) / scale
        steps, to_x, to_scale = lsq(v, 0, 7, up, count)
        expected = steps * scale + nudged
        to_offset = (up * ~((v > 0) & (v < 7))).sum() / np.sqrt(count * 7)
    else:
        n, p = -4 - zero, 3 - zero
        found = tqt(wide / scale, n, p, up, scale) if method == "tqt" else None
        steps, to_x, to_scale = found or lsq(wide / scale, n, p, up, count)
        expected, to_offset = steps * scale, 0.0

    def function(phase):
        def run(x, learned_value, offset):
            return learned.activation(
                x, learned_value, offset, tf.constant(float(zero)), tf.constant(phase),
                method=learned.METHODS[method], grid=grid,
            )  # fmt: skip

        return run

    given = x, np.float32(value), np.float32(offset), upstream
    with kernels.using(implementation):
        for phase in (QUANTIZE, QUANTIZE_FIXED):
            y, found = gradients(function(phase), graph, *given)
            np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(found[0], to_x, rtol=1e-6)
            learns = phase == QUANTIZE
            np.testing.assert_allclose(found[1], learns * to_scale.sum(), rtol=2e-4, atol=1e-5)
            np.testing.assert_allclose(found[2], learns * to_offset, rtol=2e-4, atol=1e-5)
        y, found = gradients(function(OBSERVE), graph, *given)
        assert np.array_equal(y, x) and np.array_equal(found[0], upstream)
        assert found[1] == found[2] == 0


@ways
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("axes", [(), (-2, -1)], ids=str)
@pytest.mark.parametrize("method", ["lsq", "rooted", "tqt"])
def test_kernel(method, axes, folded, graph, implementation):
    """With a factor: of ``Q(w * f) / f``, by the chain rule; channel 1 has the factor 0."""
    grid, rng, shape = grids.kernel(4, axes), np.random.default_rng(1), (3, 3, 4, 2)
    kept = [axis % 4 for axis in axes]
    rest = tuple(axis for axis in range(4) if axis not in kept)
    spread = [shape[axis] if axis in kept else 1 for axis in range(4)]
    value = (
        np.log2(rng.uniform(0.3, 3, spread)) if method == "tqt" else rng.uniform(0.05, 0.3, spread)
    )
    value = value.astype(np.float32).astype(np.float64)
    scale = 2.0 ** np.ceil(value) / 8 if method == "tqt" else value
    factor = np.ones((1, 1, 1, 2))
    if folded:
        factor = np.array([-1.5, 0.0]).reshape(factor.shape)
    u = off_ties(rng, shape, scale, 9)
    w = np.where(factor == 0, u, u / np.where(factor == 0, 1, factor)).astype(np.float32)
    upstream = rng.normal(size=shape).astype(np.float32)
    wide, up = w.astype(np.float64), upstream.astype(np.float64)
    through = np.divide(up, factor, where=factor != 0, out=np.zeros_like(up))
    count = np.prod([shape[axis] for axis in rest])
    if method == "tqt":
        steps, inside, to_scale = tqt(wide * factor / scale, -7, 7, np.ones_like(up), scale)
    else:
        steps, inside, to_scale = lsq(wide * factor / scale, -7, 7, np.ones_like(up), count)
    quotient = np.divide(steps * scale, factor, where=factor != 0, out=wide.copy())
    to_w = np.where(factor == 0, up, up * inside)
    to_factor = (through * (inside * wide - quotient)).sum((0, 1, 2), keepdims=True)

    def function(w, learned_value, factor):
        return learned.kernel(
            w, learned_value, tf.constant(QUANTIZE), method=row, grid=grid,
            factor=factor if folded else None,
        )  # fmt: skip

    # SGD moves the scale by 1 / unit of what it moves this by, so by the same whatever the unit.
    row, unit = learned.METHODS.get(method), 1.0
    if method == "rooted":
        row = dataclasses.replace(learned.METHODS["lsq"], rooted=True)
        unit = np.sqrt(14)  # steps of 4 bits
    flat = (unit * value).reshape([-1] if axes else []).astype(np.float32)
    with kernels.using(implementation):
        y, found = gradients(function, graph, w, flat, factor.astype(np.float32), upstream)
    np.testing.assert_allclose(y, quotient, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0], to_w, rtol=1e-6)
    expected = unit * (through * to_scale).sum(rest).reshape(flat.shape)
    np.testing.assert_allclose(found[1], expected, rtol=1e-3, atol=1e-5)
    if folded:
        np.testing.assert_allclose(found[2], to_factor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("axes", [(-1,), (-2, -1), ()])
def test_the_closest_scale(bits, axes):
    """Within a fiftieth of the smallest error of a fine search; a channel of zeros has the 1."""
    grid = grids.kernel(bits, axes)
    w = np.random.default_rng(bits).normal(size=(3, 3, 4, 5)).astype(np.float32)
    w[..., 2, 3] = w[..., 2, 3] * 100
    if axes:
        w[..., 1, 1] = 0
    if axes == (-1,):
        w[..., 1] = 0
    found = closest_scale(tf.constant(w), grid).numpy()
    rows = w.reshape(-1, int(np.prod([w.shape[a] for a in axes])) if axes else 1)
    assert found.shape == ((rows.shape[1],) if axes else ())
    for row, scale in zip(rows.T, np.atleast_1d(found), strict=True):

        def error(s, row=row):
            return np.sum((np.clip(np.rint(row / s), grid.qmin, grid.qmax) * s - row) ** 2)

        largest = np.abs(row).max()
        if not largest:
            assert scale == 1
            continue
        best = min(error(s) for s in largest / grid.qmax * np.linspace(0.05, 1, 2000))
        assert error(scale) <= 1.02 * best + 1e-9


@pytest.mark.parametrize("method", learned.METHODS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kernel_start(method, bits):
    """The papers' first values; a channel of zeros has one that is finite."""
    w = np.random.default_rng(2).normal(0.1, 1, (3, 3, 5, 4)).astype(np.float32)
    w[..., 2] = 0
    row, grid = learned.METHODS[method], grids.kernel(bits, (-1,))
    found = learned.kernel_start(tf.constant(w), row, grid).numpy()
    flat = np.delete(w.astype(np.float64).reshape(-1, 4), 2, axis=1)
    mean, std = flat.mean(0), flat.std(0)
    expected = {
        "lsq": 2 * np.abs(flat).mean(0) / np.sqrt(2 ** (bits - 1) - 1),
        "lsq+": np.maximum(np.abs(mean - 3 * std), np.abs(mean + 3 * std)) / 2 ** (bits - 1),
        "tqt": np.log2(3 * np.sqrt((flat**2).mean(0))),
    }[method]
    np.testing.assert_allclose(np.delete(found, 2), expected, rtol=1e-5)
    assert found[2] == (0 if method == "tqt" else 1)
    rooted = learned.kernel_start(tf.constant(w), dataclasses.replace(row, rooted=True), grid)
    np.testing.assert_allclose(rooted, found * np.sqrt(2**bits - 2), rtol=1e-6)


@pytest.mark.parametrize("exponent", [-60, -8, 0, 3, 100])
def test_powers_of_two_are_exact(exponent):
    none = tf.constant(0.0)
    scale, _ = learned.placed(
        tf.constant(float(exponent)), none, none, learned.METHODS["tqt"], Grid(8)
    )
    assert scale.numpy() == np.float32(2.0 ** (exponent - 7))
