"""Phases: what each does to the outputs and the ranges, and switching between them."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import claims
import residuals
import rewriter
from residuals import X, is_set, ranges
from rewriter.errors import UnsupportedModelError
from rewriter.quantization import phases

keras, qat = residuals.keras, residuals.qat


def test_starts_in_float_without_ranges(qat):
    assert rewriter.get_phase(qat) == "float"
    assert len(ranges(qat)) >= 6
    assert not any(np.isfinite(pair).any() for pair in ranges(qat).values())


def test_observe_computes_float_and_records(qat):
    expected = np.asarray(qat(X, training=False))
    rewriter.set_phase(qat, "observe")
    assert rewriter.get_phase(qat) == "observe"
    assert np.array_equal(np.asarray(qat(X, training=False)), expected)
    found = ranges(qat)
    assert is_set(found)
    first = next(iter(found.values()))
    np.testing.assert_allclose(first, (X.min(), X.max()), rtol=1e-6)
    qat(2 * X, training=False)  # only ever wider
    wider = ranges(qat)
    assert all(wider[k][0] <= found[k][0] and wider[k][1] >= found[k][1] for k in found)
    assert next(iter(wider.values())) == pytest.approx((2 * X.min(), 2 * X.max()), rel=1e-6)


def test_quantize_changes_the_outputs_a_little(qat):
    expected = np.asarray(qat(X, training=False))
    rewriter.calibrate(qat, X, progress=False, method="minmax")
    assert rewriter.get_phase(qat) == "quantize"
    found = np.asarray(qat(X, training=False))
    assert 1e-4 < np.abs(found - expected).max() < 0.25
    rewriter.set_phase(qat, "float")
    assert np.array_equal(np.asarray(qat(X, training=False)), expected)


def test_quantized_activations_lie_on_256_steps(keras):
    model = builders.host_model(keras, builders.HOST_CASES[0])
    x = np.random.default_rng(0).normal(size=(64, 7, 6, 6)).astype(np.float32)
    qat = builders.calibrated(model, x)
    values = np.asarray(qat(x, training=False))
    grid = claims.range_of(claims.quantize_layers(qat)[-1])
    assert 100 < len(np.unique(values)) <= 256
    steps = values / grid.scale
    assert np.abs(steps - np.rint(steps)).max() < 1e-3


def test_inference_in_quantize_leaves_the_ranges(qat):
    rewriter.calibrate(qat, X, progress=False, method="minmax")
    before = ranges(qat)
    qat(3 * X, training=False)
    assert ranges(qat) == before


def test_training_in_quantize_moves_the_ranges(qat):
    rewriter.calibrate(qat, X, progress=False, method="minmax")
    before = ranges(qat)
    qat(2 * X, training=True)
    low, high = next(iter(ranges(qat).values()))
    old_low, old_high = next(iter(before.values()))
    # A moving average with the recipe's momentum, 0.99.
    assert low == pytest.approx(0.99 * old_low + 0.01 * 2 * X.min(), rel=1e-5)
    assert high == pytest.approx(0.99 * old_high + 0.01 * 2 * X.max(), rel=1e-5)


def test_frozen_ranges(qat):
    rewriter.calibrate(qat, X, progress=False, method="minmax")
    before = ranges(qat)
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    assert rewriter.get_phase(qat) == "quantize"
    qat(2 * X, training=True)
    assert ranges(qat) == before


def codes(qat):
    """Those of the layers with a range of their own."""
    layers = [layer for layer in phases.phased_layers(qat) if hasattr(layer, "range_variables")]
    return {int(np.asarray(layer.phase)) for layer in layers if layer.range_variables}


def test_ranges_that_are_set_are_not_looked_at(qat):
    """The shorter branch, and the longer one that it stands for: the same to the bit."""
    rewriter.calibrate(qat, X, progress=False, method="minmax")
    rewriter.freeze_batch_norm(qat)
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    assert codes(qat) == {phases.QUANTIZE_FIXED}
    found = np.asarray(qat(2 * X, training=True))
    for layer in phases.phased_layers(qat):
        layer.phase.assign(phases.QUANTIZE_FROZEN)
    assert np.array_equal(np.asarray(qat(2 * X, training=True)), found)
    rewriter.set_phase(qat, "quantize")
    assert not np.array_equal(np.asarray(qat(2 * X, training=True)), found)


def test_frozen_ranges_that_are_not_set_become_the_first_batch_and_stay(qat):
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    assert codes(qat) == {phases.QUANTIZE_FROZEN}
    qat(X, training=True)
    before = ranges(qat)
    np.testing.assert_allclose(next(iter(before.values())), (X.min(), X.max()), rtol=1e-5)
    assert np.isfinite(np.asarray(qat(3 * X, training=True))).all()
    assert ranges(qat) == before and is_set(before)


def test_a_frozen_range_that_is_reset_is_looked_at_again(qat):
    rewriter.calibrate(qat, X, progress=False, method="minmax")
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    next(each for each in phases.phased_layers(qat) if hasattr(each, "reset_range")).reset_range()
    assert codes(qat) == {phases.QUANTIZE_FROZEN, phases.QUANTIZE_FIXED}
    assert np.isfinite(np.asarray(qat(X, training=True))).all()
    assert is_set(ranges(qat))


def test_quantize_without_calibration_takes_the_first_batch(qat):
    """DESIGN 5: ranges start from the first batch, never from +-6."""
    rewriter.set_phase(qat, "quantize")
    qat(X, training=True)
    assert is_set(ranges(qat))
    np.testing.assert_allclose(next(iter(ranges(qat).values())), (X.min(), X.max()), rtol=1e-5)


def test_switch_while_fit_runs_without_retracing(keras, qat):
    """One compiled step serves all three phases."""
    y = np.arange(len(X)) % 5
    qat.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    seen = []

    class Switch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(rewriter.get_phase(qat))
            rewriter.set_phase(qat, {0: "observe", 1: "quantize"}.get(batch, "quantize"))

    def traces():
        return qat.train_function.experimental_get_tracing_count()

    qat.fit(X, y, batch_size=16, epochs=1, callbacks=[Switch()], verbose=0)
    assert seen == ["float", "observe", "quantize"]
    assert is_set(ranges(qat))
    if hasattr(qat.train_function, "experimental_get_tracing_count"):
        before = traces()
        rewriter.set_phase(qat, "float")
        qat.fit(X, y, batch_size=16, epochs=1, callbacks=[Switch()], verbose=0)
        assert traces() == before


def test_bad_phase(qat):
    with pytest.raises(ValueError, match="'float', 'observe', 'quantize'.*'train'"):
        rewriter.set_phase(qat, "train")


def test_not_a_rewritten_model(keras):
    model = builders.residual(keras)
    for call in (
        lambda: rewriter.set_phase(model, "quantize"),
        lambda: rewriter.get_phase(model),
        lambda: rewriter.calibrate(model, X),
    ):
        with pytest.raises(UnsupportedModelError, match="'residual'.*rewriter.rewrite"):
            call()
