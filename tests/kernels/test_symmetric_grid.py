"""Activations on their grid of 16 bits, beside NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from rewriter import grid, kernels
from rewriter.kernels.codes import QUANTIZE_FIXED
from rewriter.kernels.plain.quantization import on_symmetric_grid
from rewriter.lowering import folding

WIDE = grid.activation(16)
TOP = 32767
CLAMPS = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}
RANGES = [(-7.3, 6.1), (-2.0, 5.123), (0.0, 9.7), (0.0, 3.0), (-4.0, 0.0), (0.0, 0.0)]


def _values(scale: float) -> np.ndarray:
    """Normal ones, multiples of a step, places half-way between two, and what is far outside."""
    steps = np.arange(-40, 41) / 2 * scale
    far = [-1e30, 1e30, -np.inf, np.inf]
    normal = np.random.default_rng(0).normal(0, 4, 5000)
    return np.concatenate([normal, steps, far]).astype(np.float32)


def _expected(x: np.ndarray, clamp: str, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Places on the grid before they are rounded, and those after."""
    places = np.clip(np.clip(x.astype(np.float64), *CLAMPS[clamp]) / scale, -TOP, TOP)
    return places, np.rint(places)


@pytest.mark.parametrize("implementation", kernels.IMPLEMENTATIONS)
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("ends", RANGES)
def test_an_activation(ends: tuple[float, float], clamp: str, implementation: str) -> None:
    """On the grid of the file, and as near to the clamped value as that allows."""
    scale = folding.activation_quantization(*ends, WIDE).scale
    x = _values(scale)
    low, high = (tf.Variable(end, dtype=tf.float32) for end in ends)
    with kernels.using(implementation):
        pending, _ = kernels.activation(
            tf.constant(x), low, high, tf.constant(QUANTIZE_FIXED), rate=0.0, follow=False,
            clamp=clamp, grid=WIDE,
        )  # fmt: skip
        y = kernels.connected(pending).numpy()
    places, rounded = _expected(x, clamp, scale)
    integers = np.rint(y.astype(np.float64) / scale)
    assert np.array_equal(y, (integers.astype(np.float32) * np.float32(scale)))
    # A product in float32 may be half a bit off 32767, which decides where it is all but a tie.
    assert np.abs(integers - places).max() <= 0.5 + TOP * 2.0**-23
    near = np.abs(np.abs(places - np.floor(places)) - 0.5) < TOP * 2.0**-23
    assert np.array_equal(integers[~near], rounded[~near])
    assert np.all(np.diff(integers[np.argsort(x, kind="stable")]) >= 0)


@pytest.mark.parametrize("relu", [False, True])
def test_ties_go_to_even_and_what_is_no_number_stays(relu: bool) -> None:
    x = tf.constant([0.5, 1.5, 2.5, -0.5, -1.5, np.nan])
    found = on_symmetric_grid(x, WIDE, 0.0, float(TOP), relu=relu).numpy()
    assert np.array_equal(found[:5], [0, 2, 2, 0, 0 if relu else -2])
    assert np.isnan(found[5])


@pytest.mark.parametrize("ends", [(0.0, np.nan), (np.nan, 1.0), (np.inf, -np.inf)])
def test_a_range_that_is_none_is_no_error_of_the_operator(ends: tuple[float, float]) -> None:
    """Its steps are 1; the layers above refuse such a range, or replace it."""
    low, high = map(tf.constant, ends)
    assert on_symmetric_grid(tf.constant([1.25, -3.0]), WIDE, low, high).numpy().tolist() == [1, -3]


@pytest.mark.parametrize("relu", [False, True])
def test_compiled(relu: bool) -> None:
    """By XLA: the same integers, but for those that are all but ties."""
    x = tf.constant(_values(3.0 / TOP)[:-4])

    def on_grid(values: Any) -> Any:
        return on_symmetric_grid(values, WIDE, tf.constant(-1.0), tf.constant(3.0), relu=relu)

    plain, compiled = (tf.function(on_grid, jit_compile=jit)(x).numpy() for jit in (False, True))
    off = np.abs(plain - compiled) > 1e-6
    assert off.mean() < 0.01
    assert np.abs(plain - compiled).max() < 1.01 * 3.0 / TOP
