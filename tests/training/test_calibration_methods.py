"""Calibration methods: against plain NumPy, on models, and what becomes of their ranges."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import builders
import residuals
import rewriter
from residuals import X, ranges
from rewriter.errors import CalibrationError, RecipeError
from rewriter.quantization.quantizers import CALIBRATIONS
from rewriter.training import histograms, range_methods
from rewriter.training.histograms import BINS, Histogram, Recorder

keras, qat = residuals.keras, residuals.qat
STEPS = 255


def recorded(*batches):
    recorder = Recorder()
    record = tf.function(recorder.record, reduce_retracing=True)
    for batch in batches:
        record(tf.constant(batch, tf.float32))
    return recorder.histogram()


def sample(seed=0, size=20000):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(3, size) * rng.choice([0.01, 1, 300])).astype(np.float32)


# Histograms


@pytest.mark.parametrize("seed", range(6))
def test_counts(seed):
    values = sample(seed)
    values[::7] = 0
    histogram = recorded(values)
    width = 2.0**histogram.exponent
    assert BINS / 2 <= np.abs(values).max() / width < BINS
    expected = np.bincount(np.floor(values / width).astype(int) + BINS, minlength=2 * BINS)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.zeros == np.count_nonzero(values == 0)


def test_neither_order_nor_batches_nor_workers_matter():
    values = np.concatenate([sample(1), 40 * sample(2), 1e-3 * sample(3)])
    whole = recorded(values)
    for found in (
        recorded(*np.array_split(values, 7)),
        recorded(*np.array_split(values[::-1], 3)),
        recorded(values[:9000]).merged(recorded(values[9000:])),
        recorded(values[50000:]).merged(recorded(values[:50000])),
    ):
        assert (found.exponent, found.zeros) == (whole.exponent, whole.zeros)
        np.testing.assert_array_equal(found.counts, whole.counts)


@pytest.mark.parametrize(
    "values", [np.zeros(5), [np.inf, -np.inf, np.nan, 1.0], [2.0**100, -1.0], [1e-30]], ids=str
)
def test_odd_values(values):
    histogram = recorded(np.asarray(values, np.float32))
    assert histogram.total == len(values)


@pytest.mark.parametrize(
    "values",
    [sample(4, 200_000).reshape(2, -1), np.zeros(5), [2.0**100, -1.0], [1e-30], [-1.0]],
    ids=np.shape,
)
def test_outside_of_a_graph_the_same_is_counted(values):
    values = np.asarray(values, np.float32)
    histogram, expected = histograms.of_array(values), recorded(values)
    assert (histogram.exponent, histogram.zeros) == (expected.exponent, expected.zeros)
    np.testing.assert_array_equal(histogram.counts, expected.counts)


# Methods, each against its definition on the values themselves


def seen(values):
    return float(min(values.min(), 0)), float(max(values.max(), 0))


@pytest.mark.parametrize("seed", range(4))
def test_percentile(seed):
    values = sample(seed)
    low, high = range_methods.percentile(seen(values), recorded(values), STEPS)
    width = 2.0 ** recorded(values).exponent
    expected = np.quantile(values, [1 - 0.9999, 0.9999])
    at_most = 1 / len(values)  # what one value moves
    assert np.mean(values < low - width) <= 1e-4 + at_most >= np.mean(values > high + width)
    assert np.mean(values < low + width) >= 1e-4 - at_most
    assert np.mean(values > high - width) >= 1e-4 - at_most
    assert expected[0] < 0 < expected[1]


def error(values, low, high, steps=STEPS):
    step = (high - low) / steps
    zero = np.round(-low / step)
    quantized = step * (np.clip(np.round(values / step) + zero, 0, steps) - zero)
    return np.mean((values - quantized) ** 2)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_mean_squared_error(seed, relu):
    values = sample(seed).astype(np.float64)
    values = np.maximum(values, 0) if relu else values
    low, high = range_methods.mean_squared_error(seen(values), recorded(values), STEPS)
    found = error(values, low, high)
    factors = np.linspace(0.02, 1, 60)
    lows = seen(values)[0] * factors if not relu else [0.0]
    best = min(error(values, a, b) for a in lows for b in seen(values)[1] * factors)
    assert found <= 1.03 * best


def test_mean_squared_error_pays_where_steps_are_few():
    values = np.random.default_rng(0).normal(size=50000)
    bounds = range_methods.mean_squared_error(seen(values), recorded(values), 15)
    assert error(values, *bounds, 15) < 0.6 * error(values, *seen(values), 15)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_leaves_outliers_out(seed):
    values = np.random.default_rng(seed).normal(size=50000)
    values[0] = 60.0
    low, high = range_methods.entropy(seen(values), recorded(values), STEPS)
    assert 2 < high < 20 and low >= seen(values)[0]


@pytest.mark.parametrize("place", [0.2, 0.7])
def test_entropy_does_not_cut_off_at_a_peak(place):
    """The constant background of images is one; two thirds of the other values were cut off."""
    values = np.abs(np.random.default_rng(0).normal(size=20000))
    values = np.concatenate([values, np.full(5000, place), np.zeros(20000)])
    low, high = range_methods.entropy((0.0, values.max()), recorded(values), STEPS)
    assert np.mean(values[values > 0] > high) <= 0.011 and low == 0


def test_entropy_does_not_count_zeros():
    """As after a ReLU: beside a peak of zeros nothing else would weigh anything."""
    values = np.abs(np.random.default_rng(0).normal(size=20000))
    some = range_methods.entropy((0.0, values.max()), recorded(values), STEPS)
    many = np.concatenate([values, np.zeros(10**6)])
    assert range_methods.entropy((0.0, values.max()), recorded(many), STEPS) == some
    assert some[1] > 0.5 * values.max()


@pytest.mark.parametrize("method", CALIBRATIONS)
@pytest.mark.parametrize(
    "values", [np.zeros(100), np.ones(100), -np.ones(100), [0.0] * 99 + [1e6]], ids=str
)
def test_ranges_of_odd_tensors_are_sound(method, values):
    values = np.asarray(values, np.float64)
    low, high = range_methods.METHODS[method](seen(values), recorded(values), STEPS)
    assert seen(values)[0] <= low <= 0 <= high <= seen(values)[1]
    assert low < high or not values.any()


def test_each_method_has_its_row():
    assert tuple(range_methods.METHODS) == CALIBRATIONS


# On models


def with_outlier():
    x = np.array(X)
    x[0, 0, 0, 0] = 200.0
    return x


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_a_model(qat, method):
    rewriter.calibrate(qat, with_outlier(), progress=False, method="minmax")
    widest = ranges(qat)
    rewriter.calibrate(qat, with_outlier(), progress=False, method=method)
    found = ranges(qat)
    assert residuals.is_set(found)
    for name, (low, high) in found.items():
        assert widest[name][0] <= low and high <= widest[name][1]
    narrower = sum(high < widest[name][1] for name, (_, high) in found.items())
    assert (narrower > 2) == (method != "minmax")
    # Training follows the batches for the smallest and the largest only.
    outputs = qat.predict(X[:16], verbose=0)
    qat.compile("sgd", "mse")
    qat.fit(X[:16], outputs, verbose=0)
    assert (ranges(qat) == found) == (method != "minmax")


def test_methods_by_layer(qat):
    rewriter.calibrate(qat, with_outlier(), progress=False, method="minmax")
    widest = ranges(qat)
    rewriter.calibrate(
        qat, with_outlier(), progress=False, method={"image*": "percentile", "*": "minmax"}
    )
    changed = [name for name, pair in ranges(qat).items() if pair != widest[name]]
    assert len(changed) == 1 and "image" in changed[0]


def test_the_recipe_says_which(keras, tmp_path):
    recipe = rewriter.Recipe(
        calibration="mse", layers=[{"match": "image", "calibration": "minmax"}]
    )
    again = rewriter.Recipe.from_json(recipe.to_json())
    assert again.to_dict() == recipe.to_dict()
    built = rewriter.rewrite(builders.trained_residual(keras), again)
    rewriter.calibrate(built, with_outlier(), progress=False)
    found = ranges(built)
    assert max(high for name, (_, high) in found.items() if "image" in name) == 200.0
    built.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    rewriter.calibrate(loaded, with_outlier(), progress=False)
    assert list(ranges(loaded).values()) == list(found.values())


def test_bad_methods(qat):
    before = ranges(qat)
    with pytest.raises(CalibrationError, match="entropie"):
        rewriter.calibrate(qat, X, progress=False, method="entropie")
    with pytest.raises(CalibrationError, match="no layer with a range is called 'dens'"):
        rewriter.calibrate(qat, X, progress=False, method={"dens": "mse"})
    with pytest.raises(RecipeError, match="calibration"):
        rewriter.Recipe(calibration="best")
    assert ranges(qat) == before and rewriter.get_phase(qat) == "float"


def test_ranges_that_still_move(qat):
    x = np.concatenate([X] * 4)
    x[-1] *= 50
    with pytest.warns(
        UserWarning, match="ranges still move: that of '.*97 % smaller after 128 of the 192"
    ):
        rewriter.calibrate(qat, x, progress=False, batch_size=16)


def test_a_failure_brings_the_method_back(qat):
    rewriter.calibrate(qat, X, progress=False, method="mse")
    before = ranges(qat)
    bad = np.array(X)
    bad[-1] = np.nan
    with pytest.raises(CalibrationError):
        rewriter.calibrate(qat, bad, progress=False, method="minmax")
    assert ranges(qat) == before
    rewriter.calibrate(qat, X, progress=False)
    assert ranges(qat) == before


def test_histograms_do_not_grow_with_the_data():
    few, many = recorded(sample(0, 100)), recorded(*[sample(seed) for seed in range(4)])
    assert few.counts.nbytes == many.counts.nbytes == Histogram(0, many.counts, 0).counts.nbytes


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", builders.KERASES)
def test_what_training_has_observed_follows_the_batches(name, calibrated, tmp_path):
    """Only what calibration has made is held: a schedule's ranges adapt to the weights."""
    keras = builders.fresh(builders.keras_of(name))
    inputs = keras.Input((8,))
    x = keras.layers.BatchNormalization(name="bn")(keras.layers.Dense(4, name="dense")(inputs))
    qat = rewriter.rewrite(keras.Model(inputs, x))
    data = builders.normal(64, 8)
    if calibrated:
        rewriter.calibrate(qat, data, progress=False)
    else:
        rewriter.set_phase(qat, "observe")
        qat.predict(data, verbose=0)
        rewriter.set_phase(qat, "quantize")
    qat.save(tmp_path / "qat.keras")
    qat = rewriter.load_model(tmp_path / "qat.keras")
    rewriter.set_phase(qat, "quantize")
    before = ranges(qat)
    qat.compile(keras.optimizers.SGD(0.0), "mse")
    qat.fit(5 * data, np.zeros((64, 4), np.float32), epochs=2, verbose=0)
    after = ranges(qat)
    assert all((after[each] == before[each]) == calibrated for each in before)
