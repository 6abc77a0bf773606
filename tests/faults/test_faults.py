"""Seeded faults: each must turn the claim that is about it red, and nothing may hide it.

Every fault is one line that a person could get wrong. The claims are those that the other tests
make; here they are called with the fault in place.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import builders
import claims
import rewriter
from builders import HOST_CASES, KERASES, NormOptions, keras_of, kill_channels, prepared
from rewriter.grid import kernel as kernel_grid
from rewriter.keras_compat import flavour_of
from rewriter.layers.batch_norm import FusedBatchNormalizationMixin
from rewriter.litert import integer_conv
from rewriter.lowering import folding
from rewriter.quantization.quantizers import PerChannelQuantizer
from rewriter.reading import hosts
from rewriter.rewriting import placement

CONV, DEPTHWISE = HOST_CASES[0], HOST_CASES[4]
SQUARE = builders.HostCase("Dense", {"units": 6}, (6,))  # either axis would do for a shape


@pytest.fixture(params=KERASES)
def keras(request):
    return keras_of(request.param)


def _folded(model, x):
    qat = builders.calibrated(model, x)
    return qat, rewriter.fold(qat)


def _small_epsilon(keras, case=CONV):
    """Where epsilon is as large as the variance."""
    model, x = prepared(keras, case, NormOptions(epsilon=0.1), seed=3, low=1e-3, high=1e-1)
    return model, x


def test_the_claims_hold_without_faults(keras, tmp_path):
    for case in (CONV, DEPTHWISE, SQUARE):
        model, x = _small_epsilon(keras, case)
        qat = rewriter.rewrite(model)
        claims.check_float_phase(model, qat, x)
        claims.check_host_quantized(model, qat, x)
        qat, twin = _folded(model, x)
        claims.check_grids(qat)
        claims.check_fold(model, qat, twin)
        claims.check_integers(model, qat, twin, x)
        claims.check_file(qat, twin, x, tmp_path)


# The channel axis


@pytest.mark.parametrize(
    ("case", "axes"),
    [(SQUARE, (0,)), (CONV, (-2,)), (DEPTHWISE, (-1,))],
    ids=["dense-inputs", "conv-inputs", "depthwise-multiplier"],
)
def test_wrong_channel_axis(keras, case, axes, monkeypatch):
    """One scale for each input channel, or (as TFMOT has it) for each multiplier."""
    model, x = prepared(keras, case, NormOptions(), seed=3)
    row = hosts.HOSTS[case.name]
    wrong = dataclasses.replace(
        row, kernels=(dataclasses.replace(row.kernels[0], channel_axes=axes),)
    )
    monkeypatch.setitem(hosts.HOSTS, case.name, wrong)
    qat = rewriter.rewrite(model)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_host_quantized(model, qat, x)


def test_one_scale_for_the_whole_kernel(keras, monkeypatch):
    model, x = prepared(keras, CONV, NormOptions(), seed=3)
    monkeypatch.setattr(PerChannelQuantizer, "grid", property(lambda self: kernel_grid(8)))
    with pytest.raises(AssertionError, match="off by"):
        claims.check_host_quantized(model, rewriter.rewrite(model), x)


def test_kernel_on_fewer_bits(keras, monkeypatch):
    model, x = prepared(keras, CONV, NormOptions(), seed=3)
    whole = PerChannelQuantizer.__init__
    monkeypatch.setattr(
        PerChannelQuantizer, "__init__",
        lambda self, num_bits=8, channel_axes=(-1,): whole(self, 7, channel_axes),
    )  # fmt: skip
    with pytest.raises(AssertionError, match="off by"):
        claims.check_host_quantized(model, rewriter.rewrite(model), x)


# Sign, epsilon, mean and beta


def test_sign_dropped(keras, monkeypatch):
    """A negative gamma folded as a positive one."""
    model, x = _small_epsilon(keras)
    whole = folding.fold_scale
    monkeypatch.setattr(
        folding, "fold_scale", lambda q, scale, factor, axes: whole(q, scale, np.abs(factor), axes)
    )
    qat, twin = _folded(model, x)
    with pytest.raises(AssertionError, match="kernel"):
        claims.check_fold(model, qat, twin)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_integers(model, qat, twin, x)


def test_epsilon_ignored_in_the_fold(keras, monkeypatch):
    model, x = _small_epsilon(keras)
    whole = folding.batch_norm_scale
    monkeypatch.setattr(
        folding, "batch_norm_scale", lambda gamma, variance, epsilon: whole(gamma, variance, 0.0)
    )
    qat, twin = _folded(model, x)
    with pytest.raises(AssertionError):
        claims.check_fold(model, qat, twin)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_integers(model, qat, twin, x)


def test_epsilon_changed_in_the_layer(keras, monkeypatch):
    """As older versions of TensorFlow raised small ones: visible at small variances only."""
    model, x = prepared(keras, CONV, NormOptions(epsilon=1e-7), seed=3, low=1e-3, high=2e-3)
    whole = FusedBatchNormalizationMixin.__init__

    def raised(self, *args, epsilon=1e-3, **kwargs):
        whole(self, *args, epsilon=max(epsilon, 1.001e-5), **kwargs)

    monkeypatch.setattr(FusedBatchNormalizationMixin, "__init__", raised)
    qat = rewriter.rewrite(model)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_float_phase(model, qat, x)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_host_quantized(model, qat, x)


@pytest.mark.parametrize("fault", ["mean-added", "beta-dropped", "bias-not-scaled"])
def test_bias_folded_wrongly(keras, fault, monkeypatch):
    model, x = _small_epsilon(keras)
    whole = folding.batch_norm_bias
    wrong = {
        "mean-added": lambda s, mean, beta, bias: whole(s, -np.asarray(mean), beta, bias),
        "beta-dropped": lambda s, mean, beta, bias: whole(s, mean, np.zeros_like(beta), bias),
        "bias-not-scaled": lambda s, mean, beta, bias: whole(s, mean, beta, 0 * s) + bias,
    }
    monkeypatch.setattr(folding, "batch_norm_bias", wrong[fault])
    qat, twin = _folded(model, x)
    with pytest.raises(AssertionError, match="bias"):
        claims.check_fold(model, qat, twin)
    with pytest.raises(AssertionError):
        claims.check_integers(model, qat, twin, x)


# Grids


def test_bias_rounded_on_the_wrong_grid(keras, monkeypatch):
    """Without the input's scale in the step."""
    model, x = _small_epsilon(keras)
    whole = folding.bias_grid
    monkeypatch.setattr(
        folding, "bias_grid", lambda bias, scale, input_scale, **_: whole(bias, scale, 1.0)
    )
    qat, twin = _folded(model, x)
    with pytest.raises(AssertionError, match="bias"):
        claims.check_fold(model, qat, twin)


def test_bias_truncated(keras, monkeypatch):
    """Towards zero instead of to the nearest: at most one step of the accumulator."""
    model, x = _small_epsilon(keras)
    monkeypatch.setattr(
        folding,
        "bias_grid",
        lambda bias, scale, s_x, **_: np.trunc(bias / (np.float64(s_x) * scale)).astype(np.int32),
    )
    qat, twin = _folded(model, x)
    with pytest.raises(AssertionError, match="bias"):
        claims.check_fold(model, qat, twin)


@pytest.mark.parametrize("off", [-1, 1])
def test_zero_point_off_by_one(keras, off, monkeypatch):
    """In the whole program: twin and file still agree, only the range tells."""
    model, x = _small_epsilon(keras)
    whole = folding.activation_quantization

    def wrong(low, high, *grid):
        grid = whole(low, high, *grid)
        return dataclasses.replace(grid, zero_point=max(-128, min(127, grid.zero_point + off)))

    monkeypatch.setattr(folding, "activation_quantization", wrong)
    qat = builders.calibrated(model, x)
    with pytest.raises(AssertionError, match="not among"):
        claims.check_grids(qat)


def test_zero_point_off_by_one_in_the_arithmetic(keras, monkeypatch, tmp_path):
    """In the twin's convolution only."""
    model, x = _small_epsilon(keras)
    whole = integer_conv._exact_sums
    monkeypatch.setattr(integer_conv, "_exact_sums", lambda q, *rest: whole(q + 1, *rest))
    qat, twin = _folded(model, x)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_integers(model, qat, twin, x)
    with pytest.raises(AssertionError, match="off by"):
        claims.check_file(qat, twin, x, tmp_path)


def test_overflowing_bias(keras, monkeypatch):
    """Dead channels without a bound on their scales."""
    model, x = prepared(keras, CONV, NormOptions(), seed=11)
    kill_channels(model, seed=11)
    monkeypatch.setattr(folding, "bound_scale", lambda integers, scale, *_, **__: (integers, scale))
    with np.errstate(all="ignore"):
        qat, twin = _folded(model, x)
        with pytest.raises(AssertionError):
            claims.check_fold(model, qat, twin)
    with pytest.raises(AssertionError):
        claims.check_integers(model, qat, twin, x)


# Placement


def test_quantized_between_convolution_and_relu(keras, monkeypatch):
    model, x = _small_epsilon(keras)
    expected = [("CONV_2D", "relu")]
    claims.check_steps(builders.calibrated(model, x), expected)
    whole = placement.place
    monkeypatch.setattr(
        placement,
        "place",
        lambda units, *rest: whole([dataclasses.replace(u, absorbs=False) for u in units], *rest),
    )
    qat = builders.calibrated(model, x)
    with pytest.raises(AssertionError):
        claims.check_steps(qat, expected)


# Training


def test_momentum_reversed(keras, monkeypatch):
    model, x = prepared(keras, CONV, NormOptions(), seed=13, low=0.1, high=10)
    bessel = keras.__name__ == "tf_keras"
    claims.check_statistics(model, rewriter.rewrite(model), x, bessel)
    whole = FusedBatchNormalizationMixin.__init__

    def reversed_momentum(self, *args, momentum=0.99, **kwargs):
        whole(self, *args, momentum=1.0 - momentum, **kwargs)

    monkeypatch.setattr(FusedBatchNormalizationMixin, "__init__", reversed_momentum)
    with pytest.raises(AssertionError, match="moving_mean"):
        claims.check_statistics(model, rewriter.rewrite(model), x, bessel)


def test_bessel_correction_of_the_other_keras(keras, monkeypatch):
    model, x = prepared(keras, CONV, NormOptions(), seed=13, low=0.1, high=10)
    model.get_layer("norm").momentum = 0.5
    bessel = keras.__name__ == "tf_keras"
    monkeypatch.setattr(type(flavour_of(model)), "bessel_correction", lambda self, norm: not bessel)
    with pytest.raises(AssertionError, match="moving_variance"):
        claims.check_statistics(model, rewriter.rewrite(model), x, bessel)


def test_frozen_flag_lost(keras, monkeypatch):
    model, x = prepared(keras, CONV, NormOptions(), seed=17)
    model.get_layer("norm").trainable = False
    qat = rewriter.rewrite(model)
    claims.check_frozen(model, qat, x)
    builders.hosts(qat)[0].batch_norm.trainable = True
    with pytest.raises(AssertionError):
        claims.check_frozen(model, qat, x)


def test_a_weight_not_carried_over(keras):
    """The float phase is compared closely enough to see one variable of one layer."""
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        model, x = prepared(keras, CONV, NormOptions(relu=False), seed=19, low=0.1, high=10)
        qat = rewriter.rewrite(model)
        claims.check_float_phase(model, qat, x)
        variable = getattr(builders.hosts(qat)[0].batch_norm, name)
        variable.assign(np.asarray(variable) * np.float32(1.001) + np.float32(1e-4))
        with pytest.raises(AssertionError, match="off by"):
            claims.check_float_phase(model, qat, x)


def test_a_batch_norm_left_over(keras):
    model, _ = prepared(keras, CONV, NormOptions(), seed=19)
    with pytest.raises(AssertionError, match="norm"):
        claims.check_no_batch_norm(keras.Sequential([model]))
