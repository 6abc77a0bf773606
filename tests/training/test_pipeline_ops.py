"""The ready-made operations of a pipeline, against exact arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import rewriter
from pipelines import fixed_point
from rewriter import BatchNormPipeline, Clip, FixedPoint, PowerOfTwo
from rewriter.errors import RecipeError


def apply(op: Any, values: Any, dtype: str = "float32") -> np.ndarray:
    return np.asarray(op(tf.constant(values, dtype), training=False, weights={}))


magnitudes = st.floats(-60, 60).map(lambda e: 2.0**e)
vectors = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(vectors, magnitudes, st.integers(2, 16))
def test_fixed_point(values, magnitude, bits):
    x = (np.array(values) * magnitude).astype(np.float32)
    if not 2.0**-60 < np.abs(x).max() < 2.0**60:
        return
    np.testing.assert_array_equal(apply(FixedPoint(bits), x), fixed_point(x, bits))


@pytest.mark.wide
@pytest.mark.parametrize("exponent", range(-40, 41))
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_fixed_point_on_the_edge(bits, exponent):
    """The largest value on the grid itself needs no wider step, the next float does."""
    top = 2 ** (bits - 1) - 1
    edge = np.float32(top * 2.0**exponent)
    step = np.float32(2.0**exponent)
    assert apply(FixedPoint(bits), [edge, step])[1] == step
    if bits > 2:
        above = np.nextafter(edge, np.float32(np.inf))
        half = apply(FixedPoint(bits), [above, step])[1]
        assert half in (0, step)  # a step of twice the size rounds this one half to even


def test_fixed_point_with_fraction_bits():
    x = [-2.0, -1.01, -1.0, -0.376, 0.125, 0.375, 0.9, 7.0]
    found = apply(FixedPoint(4, fraction_bits=3), x)  # steps of 1/8 from -1 to 7/8
    np.testing.assert_array_equal(found, [-1, -1, -1, -0.375, 0.125, 0.375, 0.875, 0.875])
    np.testing.assert_array_equal(apply(FixedPoint(8, 2), [0.125, 0.375, -0.125]), [0, 0.5, 0])


@pytest.mark.parametrize("bits", [24, 28, 32])
def test_wide_fixed_point_stays_inside(bits):
    x = np.array([1.0, -1.0, 1 / 3, 0.99999], np.float32)
    found = apply(FixedPoint(bits), x)
    np.testing.assert_allclose(found, x, rtol=3e-7)
    clipped = apply(FixedPoint(bits, fraction_bits=bits - 1), [1.0])[0]  # 1 itself is one too many
    assert 1 - 2.0**-22 <= clipped < 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_power_of_two(bits):
    rng = np.random.default_rng(bits)
    x = (rng.choice([-1, 1], 200) * 2.0 ** rng.uniform(-12, 6, 200)).astype(np.float32)
    x[3] = 0
    exponents = [None if v == 0 else round(math.log2(abs(float(v)))) for v in x]
    high = max(e for e in exponents if e is not None)
    codes = 2 ** (bits - 1) - 1  # without the sign and the code of 0
    expected = [
        0.0 if e is None or e <= high - codes else math.copysign(2.0**e, v)
        for e, v in zip(exponents, x, strict=True)
    ]
    found = apply(PowerOfTwo(bits), x)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(np.abs(found))) <= codes + 1


@pytest.mark.parametrize("op", [FixedPoint(8), FixedPoint(6, 4), PowerOfTwo(4), Clip(-1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ready_made_for_zeros_and_wide_floats(op, dtype):
    assert not apply(op, np.zeros(3), dtype).any()
    found = apply(op, [0.7, -0.3], dtype)
    assert found.dtype == dtype and np.isfinite(found).all()


@pytest.mark.parametrize("op", [FixedPoint(3), FixedPoint(3, 1), PowerOfTwo(3)])
def test_straight_through(op):
    x = tf.constant([9.0, -0.3, 0.0, 1e-9])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(op(x, training=True, weights={}) * [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(tape.gradient(y, x), [1, 2, 3, 4])


def test_clip_has_no_gradient_where_it_clips():
    x = tf.constant([-2.0, -0.5, 0.5, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Clip(minimum=-1.0, maximum=1)(x, training=True, weights={})
    np.testing.assert_array_equal(y, [-1, -0.5, 0.5, 1])
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 0])
    np.testing.assert_array_equal(apply(Clip(minimum=0.0), [-5.0, 5.0]), [0, 5])
    np.testing.assert_array_equal(apply(Clip(maximum=0.0), [-5.0, 5.0]), [-5, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPoint(1), "num_bits must be in 2..32. Received: 1"),
        (lambda: FixedPoint(33), "num_bits"),
        (lambda: FixedPoint(8.0), "num_bits"),
        (lambda: FixedPoint(8, 0.5), "fraction_bits must be a whole number"),
        (lambda: PowerOfTwo(9), "num_bits must be in 2..8. Received: 9"),
        (lambda: Clip(2, 1), "minimum must not exceed maximum. Received: 2 and 1"),
        (lambda: BatchNormPipeline(gamma=3), r"batch_norm_pipeline.gamma must be callable"),
        (lambda: BatchNormPipeline(phases=()), "batch_norm_pipeline.phases must be some of"),
        (lambda: BatchNormPipeline(phases="quantize"), "batch_norm_pipeline.phases"),
        (lambda: BatchNormPipeline(phases=("quantise",)), "Received: .*quantise"),
        (lambda: BatchNormPipeline(layers=(1,)), "batch_norm_pipeline.layers must be patterns"),
        (lambda: rewriter.Recipe(batch_norm_pipeline={"gama": None}), "unknown field 'gama'"),
        (lambda: rewriter.Recipe(batch_norm_pipeline=7), "must be a mapping, a BatchNormPipeline"),
        (
            lambda: rewriter.Recipe(batch_norm_pipeline={"gamma": {"function": "os.system"}}),
            "operation .*os.system.* is not known",
        ),
        (
            lambda: BatchNormPipeline(gamma={"function": "tensorflow._os.system"}),
            "is not known",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


@pytest.mark.parametrize(
    "op", [rewriter.FixedPoint(8), rewriter.FixedPoint(6, 3), rewriter.PowerOfTwo(4)]
)
def test_rows_of_a_matrix_are_quantized_alone(op):
    """What equal operations on the variables of a layer are computed as."""
    rng = np.random.default_rng(0)
    rows = tf.constant(rng.normal(size=(4, 5)) * [[1e-3], [1], [40], [0]], tf.float32)
    found = op(rows, training=False, weights={})
    for row, value in zip(rows, found, strict=True):
        np.testing.assert_array_equal(value, op(row, training=False, weights={}))
