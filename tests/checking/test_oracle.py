"""The layers, the twin and the file against float64 NumPy, on nasty statistics."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

import builders
import claims
import oracles
import rewriter
from builders import HOST_CASES, KERASES, NormOptions

PROPERTY = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking a model takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
OPTIONS = st.builds(
    NormOptions,
    bias=st.booleans(),
    scale=st.booleans(),
    center=st.booleans(),
    epsilon=st.sampled_from([1e-7, 1e-5, 1e-3, 0.1]),
    relu=st.booleans(),
)
SEEDS = st.integers(0, 10_000)


@pytest.mark.wide
@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("case", HOST_CASES, ids=str)
def test_every_host(kind, case):
    """All of it for each host once: float phase, quantized layer, fold, integers."""
    model, x = builders.prepared(builders.keras_of(kind), case, NormOptions(), seed=7)
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, x)
    claims.check_host_quantized(model, qat, x)
    rewriter.calibrate(qat, x, progress=False)
    twin = rewriter.fold(qat)
    claims.check_grids(qat)
    claims.check_fold(model, qat, twin)
    claims.check_integers(model, qat, twin, x)


@pytest.mark.parametrize("kind", KERASES)
@PROPERTY
@given(case=st.sampled_from(HOST_CASES), options=OPTIONS, seed=SEEDS)
@example(case=HOST_CASES[0], options=NormOptions(scale=False, center=False, bias=False), seed=1)
@example(case=HOST_CASES[4], options=NormOptions(epsilon=1e-7), seed=2)
def test_quantized_layer(kind, case, options, seed):
    model, x = builders.prepared(builders.keras_of(kind), case, options, seed)
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, x)
    claims.check_host_quantized(model, qat, x)


@pytest.mark.parametrize("kind", KERASES)
@PROPERTY
@given(case=st.sampled_from(HOST_CASES), options=OPTIONS, seed=SEEDS)
def test_twin(kind, case, options, seed):
    model, x = builders.prepared(builders.keras_of(kind), case, options, seed)
    qat = builders.calibrated(model, x)
    twin = rewriter.fold(qat)
    claims.check_no_batch_norm(twin)
    claims.check_grids(qat)
    claims.check_fold(model, qat, twin)
    claims.check_integers(model, qat, twin, x)


@pytest.mark.wide
@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("case", HOST_CASES, ids=str)
def test_dead_channels_in_the_file(kind, case, tmp_path):
    """gamma 0, 1e-30 and 1e-7, variance 0, kernels of zeros: no NaN, and the file is the twin."""
    relu = kind == "tf_keras"  # with and without, once each
    model, x = builders.prepared(builders.keras_of(kind), case, NormOptions(relu=relu), seed=11)
    builders.kill_channels(model, seed=11)
    qat = builders.calibrated(model, x)
    twin = rewriter.fold(qat)
    claims.check_fold(model, qat, twin)
    claims.check_integers(model, qat, twin, x)
    claims.check_file(qat, twin, x, tmp_path)


@pytest.mark.parametrize("kind", KERASES)
@settings(PROPERTY, max_examples=5)
@given(case=st.sampled_from(HOST_CASES), options=OPTIONS, seed=SEEDS)
def test_file(kind, case, options, seed, tmp_path):
    model, x = builders.prepared(builders.keras_of(kind), case, options, seed)
    qat = builders.calibrated(model, x)
    claims.check_file(qat, rewriter.fold(qat), x, tmp_path)


# Normalizations that stand alone

STANDALONE = (((6,), -1), ((5, 4), -1), ((5, 4), 1), ((4, 5, 3), -1), ((4, 5, 3), 1))


def standalone(keras, shape, axis, seed, **options):
    x = image = keras.Input(shape, name="image")
    x = keras.layers.BatchNormalization(axis=axis, name="norm", **options)(x)
    model = keras.Model(image, keras.layers.ReLU(name="relu")(x))
    builders.randomise(model, seed)
    data = np.random.default_rng(seed).normal(0.5, 2, (6, *shape)).astype(np.float32)
    return model, data


def _moved(x, axis):
    return np.moveaxis(np.asarray(x, np.float64), axis, -1)


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize(("shape", "axis"), STANDALONE, ids=str)
@pytest.mark.parametrize("epsilon", [1e-3, 1e-7])
def test_standalone(kind, shape, axis, epsilon):
    """Inference against the formula; one step of training against the batch's moments."""
    model, x = standalone(builders.keras_of(kind), shape, axis, seed=3, epsilon=epsilon)
    norm = model.get_layer("norm")
    fused = bool(getattr(norm, "fused", False))
    oracle = oracles.norm_of(norm)
    qat = rewriter.rewrite(model)
    found = _moved(qat(x, training=False), axis)
    claims.assert_close(found, np.maximum(oracle(_moved(x, axis)), 0), 1e-5)

    rest = tuple(range(len(shape)))
    values = _moved(x, axis)
    batch = dataclasses.replace(oracle, mean=values.mean(axis=rest), variance=values.var(axis=rest))
    n = values.size // values.shape[-1]
    found = _moved(qat(x, training=True), axis)
    claims.assert_close(found, np.maximum(batch(values), 0), 1e-5)
    layer = qat.get_layer("norm")
    moved = batch.variance * (n / (n - 1) if fused else 1)
    claims.assert_close(layer.moving_variance, 0.99 * oracle.variance + 0.01 * moved, 1e-5)
    claims.assert_close(layer.moving_mean, 0.99 * oracle.mean + 0.01 * batch.mean, 1e-5)
    model(x, training=True)
    claims.assert_close(layer.moving_variance, np.asarray(norm.moving_variance), 1e-5)


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("shape", [(6,), (5, 4), (4, 5, 3)], ids=str)
def test_standalone_file(kind, shape, tmp_path):
    """One int8 depthwise convolution; within a step of float64 on the same grids."""
    model, x = standalone(builders.keras_of(kind), shape, -1, seed=5)
    norm = model.get_layer("norm")
    oracle = oracles.norm_of(norm)
    qat = builders.calibrated(model, x)
    twin = rewriter.fold(qat)
    first, last = (claims.range_of(layer) for layer in claims.quantize_layers(qat))
    expected = last(np.maximum(oracle(first(x)), 0))
    steps = np.rint(np.abs(np.asarray(twin(x)) - expected) / last.scale)
    assert steps.max() <= 1
    assert (steps == 0).mean() >= 0.99
    claims.check_file(qat, twin, x, tmp_path)


# Statistics after a step of training


@pytest.mark.wide
@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("case", HOST_CASES, ids=str)
def test_statistics(kind, case):
    """Bessel's correction as the Keras has it: tf_keras in its fused kernel (rank 4), else none."""
    model, x = builders.prepared(
        builders.keras_of(kind), case, NormOptions(), seed=13, low=0.1, high=10
    )
    model.get_layer("norm").momentum = 0.6
    bessel = kind == "tf_keras" and len(case.shape) == 3
    claims.check_statistics(model, rewriter.rewrite(model), x, bessel)


@pytest.mark.parametrize("kind", KERASES)
@pytest.mark.parametrize("case", [HOST_CASES[0], HOST_CASES[7], HOST_CASES[9]], ids=str)
def test_frozen(kind, case):
    model, x = builders.prepared(builders.keras_of(kind), case, NormOptions(), seed=17)
    model.get_layer("norm").trainable = False
    claims.check_frozen(model, rewriter.rewrite(model), x)
