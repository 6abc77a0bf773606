"""Activations on calibrated ranges whose steps are powers of two: ``ranges="tqt"``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from builders import KERASES, fresh, keras_of
from residuals import X
from rewriter import Recipe, grid
from rewriter.errors import CalibrationError, RecipeError
from rewriter.lowering import folding
from rewriter.lowering.lower import lower
from rewriter.quantization.learned import LearnedKernelQuantizer
from rewriter.quantization.powers_of_two import PowerOfTwoRangeQuantizer, candidates, widened
from rewriter.quantization.quantizer_names import deserialize, serialize
from rewriter.training import histograms, range_methods

both = pytest.mark.parametrize("kind", KERASES)
LOSS = "sparse_categorical_crossentropy"
Y = np.arange(len(X)) % 5


def _is_power(x: Any) -> bool:
    return set(np.frexp(np.asarray(x, np.float64))[0].ravel()) == {0.5}


@pytest.mark.parametrize("bits", [8, 4])
def test_the_smallest_range_that_holds_another(bits: int) -> None:
    rng, of = np.random.default_rng(0), grid.activation(bits)
    ends = rng.normal(size=(200, 2)) * np.exp2(rng.uniform(-10, 10, (200, 1)))
    some = [(-1.0, 0.0), (0.0, 1.0), (-0.5, 0.25), (0.0, 255 / 256), (-1e-9, 1e-9)]
    for low, high in [*some, *ends]:
        low, high = float(np.float32(min(low, 0))), float(np.float32(max(high, 0)))
        if low == high:
            continue
        found = widened(low, high, of)
        step = (found[1] - found[0]) / of.steps
        assert _is_power(step) and widened(*found, of) == found
        assert np.array_equal(np.float32(found), found)
        # A value between the largest integer and the next power of two is rounded to the former.
        assert found[0] - step / 2 <= low and high <= found[1] + step
        if step > 4e-6 / of.steps:
            half = widened(low / 2.001, high / 2.001, of)
            assert half[0] > low or half[1] + step / 2 < high
        assert (found[0] == 0) == (low == 0)
        assert folding.activation_quantization(*found, of).scale == step
        x = np.linspace(2 * low, 2 * high, 1001).astype(np.float32)
        snapped = tf.quantization.fake_quant_with_min_max_vars(x, *found, num_bits=bits)
        places = np.asarray(snapped, np.float64) / step
        assert np.array_equal(places, np.rint(places))
        off = places - np.clip(x.astype(np.float64), *found) / step
        assert np.abs(off).max() <= 0.5 + 1e-4
    assert widened(0.0, 0.0, of) == (0.0, 0.0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("relu", [False, True])
def test_the_power_of_two_with_the_smallest_error(relu: bool, bits: int) -> None:
    """Beside the errors of all of them; heavy tails, so that the widest is not the best."""
    of, rng = grid.activation(bits), np.random.default_rng(3)
    chosen = []
    for spread in (2.0, 3.0, 5.0, 30.0):
        x = rng.standard_t(spread, 20000).astype(np.float32)
        x = np.maximum(x, 0) if relu else x
        seen = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
        tried = candidates(*seen, of)
        found = range_methods.closest(tried, histograms.of_array(x), of.steps)
        fake_quant = tf.quantization.fake_quant_with_min_max_vars
        errors = [
            float(np.mean((np.asarray(fake_quant(x, *each, num_bits=bits)) - x) ** 2))
            for each in tried
        ]
        assert errors[tried.index(found)] <= 1.02 * min(errors)
        chosen.append(tried.index(found))
    assert max(chosen) > 0 or bits == 8


@both
def test_a_model(kind: str, tmp_path: Any) -> None:
    """Steps are powers of two wherever LiteRT prescribes none, before and after training."""
    keras = fresh(keras_of(kind))
    qat = builders.calibrated(builders.trained_residual(keras), X, Recipe(ranges="tqt"))
    layers = [q for q in claims.quantize_layers(qat) if q.range_is_set]
    assert layers
    assert all(isinstance(layer.quantizer, PowerOfTwoRangeQuantizer) for layer in layers)
    learned = [v for v in qat.trainable_weights if "learned" in v.name]
    kernels = [q for host in builders.hosts(qat) for q in host.kernel_quantizers]
    assert all(isinstance(q, LearnedKernelQuantizer) for q in kernels)
    assert len(learned) == len(kernels)

    def ends() -> Any:
        return [[np.array(q.range_variables[k]) for k in ("min_var", "max_var")] for q in layers]

    before, weights = ends(), np.array(qat.trainable_weights[0])
    qat.compile(keras.optimizers.SGD(1e-2), LOSS)
    qat.fit(X, Y, verbose=0)
    assert np.array_equal(before, ends())
    assert not np.array_equal(weights, np.array(qat.trainable_weights[0]))
    rewriter.set_phase(qat, "observe")
    qat.fit(X * 1.5, Y, verbose=0)  # which widens them: to powers of two again
    assert not np.array_equal(before, ends())
    rewriter.set_phase(qat, "quantize")
    assert all(_is_power((high - low) / 255) for low, high in ends())

    expected = np.asarray(qat(X, training=False))
    qat.save(tmp_path / "qat.keras")
    again = keras.models.load_model(tmp_path / "qat.keras")
    assert np.array_equal(np.asarray(again(X, training=False)), expected)
    claims.check_file(again, rewriter.fold(again), X, tmp_path)
    program = lower(again)
    for tensor in program.tensors.values():
        if tensor.quantization is not None:
            assert _is_power(tensor.quantization.scale)
    hosts = {host.name for host in builders.hosts(again)}  # not a normalization that stands alone
    found = [step.operator.kernel_scale for step in program.steps if step.name in hosts]
    assert len(found) == len(hosts) and all(map(_is_power, found))


@both
def test_observed_and_not_calibrated(kind: str) -> None:
    """Ranges that training in phase observe has seen are widened on export, and in quantize."""
    keras = fresh(keras_of(kind))
    qat = rewriter.rewrite(builders.trained_residual(keras), Recipe(ranges="tqt"))
    with pytest.raises(CalibrationError, match=r"range of '\w+' has a power of two.*calibrate"):
        rewriter.set_phase(qat, "quantize")
    rewriter.set_phase(qat, "observe")
    qat.compile(keras.optimizers.SGD(1e-3), LOSS)
    qat.fit(X, Y, verbose=0)
    scales = [t.quantization.scale for t in lower(qat).tensors.values() if t.quantization]
    assert _is_power(scales)
    rewriter.set_phase(qat, "quantize")
    again = [t.quantization.scale for t in lower(qat).tensors.values() if t.quantization]
    assert scales == again


def test_what_a_recipe_makes() -> None:
    recipe = Recipe(ranges="tqt")
    for given in (False, True):
        made = recipe.new_activation_quantizer("relu", given=given)
        assert isinstance(made, PowerOfTwoRangeQuantizer) and made.calibration == "mse"
        assert made.holds_range and not made.takes_levels
    other = Recipe(ranges="tqt", calibration="minmax").new_activation_quantizer("relu")
    assert other.calibration == "minmax"
    assert deserialize(serialize(other)).get_config() == other.get_config()
    own = Recipe(activation_quantizer=PowerOfTwoRangeQuantizer(calibration="percentile"))
    assert Recipe.from_json(own.to_json()).to_json() == own.to_json()
    mixed = Recipe(ranges="tqt", activation_quantizer=own.activation_quantizer)
    assert mixed.new_activation_quantizer("relu").calibration == "percentile"
    with pytest.raises(RecipeError, match=r"num_bits must be in 2..8"):
        PowerOfTwoRangeQuantizer(16)


@both
def test_each_calibration_ends_at_powers_of_two(kind: str) -> None:
    keras = fresh(keras_of(kind))
    model = builders.trained_residual(keras)
    for method in ("minmax", "percentile", "mse", "entropy"):
        recipe = Recipe(ranges="tqt", calibration=method)
        qat = builders.calibrated(model, X, recipe)
        scales = [t.quantization.scale for t in lower(qat).tensors.values() if t.quantization]
        assert _is_power(scales)
