"""Layer normalization by L2_NORMALIZATION, as models have it that were saved before it had 16 bits.

Near float64, and the checks see faults.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import OpResolverType

import rewriter
from checks import KERASES, both
from layer_norms import CASES, model_of
from litert_single_op import Case, computed, run, write
from rewriter import layers
from rewriter.errors import RewriterError
from rewriter.keras_compat import flavour_of
from rewriter.litert import integer
from rewriter.litert.integer_norm import OUTPUT
from rewriter.lowering import norms
from rewriter.lowering.lower import lower
from rewriter.program import Operator, Quantization


def norm_of(qat: Any) -> Any:
    return next(layer for layer in qat.layers if hasattr(layer, "centred"))


def _saved_before(flavour: str, model: Any) -> Any:
    """The quantization-aware model that used to be made of one with a layer normalization."""
    keras, classes, recipe = KERASES[flavour], layers.of(flavour_of(model)), rewriter.Recipe()

    def quantize(name: str) -> Any:
        quantizer = recipe.new_activation_quantizer(name, None)
        return classes.Quantize(quantizer, name=name, dtype="float32")

    stock = model.get_layer("norm")
    clone = type(stock).from_config(stock.get_config())
    layer = classes.QuantizedLayerNormalization(
        clone, quantize("mean"), quantize("centred"), name="layer", dtype="float32"
    )
    inputs = keras.Input(model.input.shape[1:])
    outputs = quantize("norm")(layer(quantize("input_quantize")(inputs)))
    for ours, theirs in zip(clone.weights, stock.weights, strict=True):
        ours.assign(np.asarray(theirs))
    return keras.Model(inputs, outputs)


every = pytest.mark.parametrize("name", CASES)


def _check_integers(qat: Any, x: np.ndarray) -> float:
    """The twin against float64, element by element, within what roundings can do.

    The bound: the mean is off by half a step of its grid, the deviations by that and half of
    theirs, what L2_NORMALIZATION returns by 3/4 of 1/128 (it rounds twice; by a whole one at 1,
    which int8 has not), the output by half a step; the sum of squares by half a step squared, or
    by an epsilon that is left out, of 1/48 of one for each element.

    Returns:
      The root of the mean square error, where gamma is 1.
    """
    program = lower(qat)
    grids = {step.layer.rpartition("/")[2]: step.operator.output for step in program.steps}
    source = program.tensors[program.inputs[0]].quantization
    output = program.tensors[program.outputs[0]].quantization
    layer = norm_of(qat).norm
    axes = tuple(axis % x.ndim for axis in np.atleast_1d(layer.axis))
    count = math.prod(x.shape[axis] for axis in axes)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    gamma, beta = (
        np.full(shape, default) if v is None else np.asarray(v, np.float64).reshape(shape)
        for v, default in ((layer.gamma, 1.0), (layer.beta, 0.0))
    )
    steps = np.rint(x / np.float32(source.scale)) + source.zero_point
    on_grid = (np.clip(steps, -128, 127) - source.zero_point) * source.scale
    centred = on_grid - on_grid.mean(axes, keepdims=True)
    length = np.sqrt(np.sum(centred**2, axes, keepdims=True) + count * layer.epsilon)
    unit = centred / length
    exact = np.clip(gamma * math.sqrt(count) * unit + beta, *output.range)

    fine = 0.51  # half a step, and the float32 and fixed-point arithmetic
    off = fine * (grids["mean"].scale + grids["centred"].scale)
    squares = max(0.5, count / 48) * grids["centred"].scale ** 2
    longer = math.sqrt(count) * off + squares / length
    known = length > 2 * longer
    moved = (off + np.abs(unit) * longer) / np.where(known, length - longer, 1)
    rounded = np.where(np.abs(unit) + moved > 127 / 128, 1 / 64, 0.76 / 128)
    bound = np.abs(gamma) * math.sqrt(count) * (moved + rounded) + fine * output.scale
    found = np.asarray(rewriter.fold(qat)(x), np.float64)
    worst = np.where(known, np.abs(found - exact) / bound, 0)
    assert np.mean(known) > 0.8
    assert worst.max() <= 1, f"off by {worst.max():.2f} times what rounding can do"
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(gamma**2)))


@pytest.mark.slow
@both
@every
@pytest.mark.parametrize("seed", range(2))
def test_integers_are_near_float64(name: str, flavour: str, seed: int) -> None:
    model, x = model_of(KERASES[flavour], name, seed)
    qat = _saved_before(flavour, model)
    rewriter.calibrate(qat, x, progress=False, method="minmax")
    assert _check_integers(qat, x) < 0.1
    emulated = np.asarray(qat(x))
    (output,) = lower(qat).outputs
    step = lower(qat).tensors[output].quantization.scale
    off = np.abs(np.asarray(rewriter.fold(qat)(x)) - emulated) / step
    assert np.mean(off < 0.5) > 0.9  # a flipped step of the mean moves a whole row


@both
def test_outliers_and_small_positions_keep_their_precision(flavour: str) -> None:
    """One channel ten times the others, deviations over a factor of 8.

    Squares and a variance in int8 lose these: the error was 0.6 of the deviation.
    """
    k = KERASES[flavour]
    k.backend.clear_session()
    rng = np.random.default_rng(0)
    inputs = k.Input((96,))
    model = k.Model(inputs, k.layers.LayerNormalization(epsilon=1e-6, name="norm")(inputs))
    x = rng.normal(size=(512, 96)) * np.exp(rng.uniform(-1, 1, (512, 1)))
    x[:, 0] *= 10
    qat = _saved_before(flavour, model)
    rewriter.calibrate(qat, x.astype(np.float32), progress=False, method="minmax")
    assert _check_integers(qat, x.astype(np.float32)) < 0.15


def test_epsilon_alone_gives_beta(tmp_path: Path) -> None:
    """A row without deviations: nothing is divided by nothing."""
    model, x = model_of(KERASES["keras"], "image")
    x[:8] = 0.0
    qat = _saved_before("keras", model)
    rewriter.calibrate(qat, x, progress=False, method="minmax")
    beta = np.asarray(norm_of(qat).norm.beta)
    (output,) = lower(qat).outputs
    step = lower(qat).tensors[output].quantization.scale
    off = np.abs(np.asarray(rewriter.fold(qat)(x[:8])) - beta)
    reach = np.abs(np.asarray(norm_of(qat).norm.gamma)) * lower(qat).steps[0].operator.output.scale
    assert (off <= step / 2 + reach / np.sqrt(1e-3)).all()


# Seeded faults


def _epsilon(change: Any) -> tuple[str, Any]:
    """Another sum for the constants that stand for epsilon."""
    whole = norms.constants
    return "constants", lambda total, grid, limit: whole(change(total), grid, limit)


def _affine(change: Any) -> tuple[str, Any]:
    """Another factor and offset for gamma and beta."""
    whole = norms.channel_affine
    return "channel_affine", lambda low, call, x, *pair: whole(low, call, x, *change(*pair))


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ("large_epsilon", _epsilon(lambda total: 0.0)),
        ("large_epsilon", _epsilon(lambda total: total / 12)),
        ("image", _affine(lambda factor, offset: (-factor, offset))),
        ("image", _affine(lambda factor, offset: (factor, 0 * offset))),
        ("two_axes", _affine(lambda factor, offset: (factor / 6**0.5, offset))),
    ],
    ids=["no_epsilon", "epsilon_not_times_n", "sign", "no_beta", "root_of_one_axis"],
)
def test_a_fault_is_seen(case: str, fault: tuple[str, Any], monkeypatch: Any) -> None:
    model, x = model_of(KERASES["keras"], case)
    qat = _saved_before("keras", model)
    rewriter.calibrate(qat, x, progress=False, method="minmax")
    monkeypatch.setattr(norms, *fault)
    with pytest.raises(AssertionError, match="off by"):
        _check_integers(qat, x)


# The operator


def test_constants_have_the_sum_of_squares() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        grid = Quantization(0.1, int(rng.integers(-128, 128)))
        total = float(np.exp(rng.uniform(-3, 14)))
        found = norms.constants(total, grid, limit=100)
        assert sum(number**2 for number in found) == round(total)
        assert all(-128 <= number + grid.zero_point <= 127 for number in found)
        assert len(found) <= total / 127**2 + 8
    assert norms.constants(1e9, Quantization(0.1, 0), limit=100) is None
    assert norms.constants(math.inf, Quantization(0.1, 0), limit=100) is None


@pytest.mark.parametrize("depth", [1, 2, 7, 96, 1000, 33000])
@pytest.mark.parametrize("zero", [-128, 5, 127])
def test_l2_normalization_of_any_length_is_exact(depth: int, zero: int) -> None:
    """Sums of squares from 0 to the largest that int32 holds; both of LiteRT's kernels."""
    rng = np.random.default_rng([depth, zero + 128])
    case = Case(Operator("L2_NORMALIZATION", (Quantization(0.03, zero),), OUTPUT), [(depth,)])
    rows = 40 if depth > 1000 else 400
    size = 2.0 ** rng.uniform(-1, 8, (rows, 1))
    q = np.rint(rng.normal(size=(rows, depth)) * size) + zero
    q = np.where(rng.random((rows, depth)) < rng.random((rows, 1)), q, zero)
    q[0], q[1], q[2] = zero, -128, 127
    q[3] = q[4] = zero
    towards = 1 if zero < 127 else -1
    q[3, 0] += towards
    q[4, [0, -1]] += towards
    q = np.clip(q, -128, 127).astype(np.int8)
    content, actual = write(case), computed(case, [q])
    for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_REF):
        np.testing.assert_array_equal(actual, run(content, [q], resolver))
    exact = (q - float(zero)) / np.maximum(np.linalg.norm(q - float(zero), axis=1), 1)[:, None]
    assert np.abs(np.clip(exact * 128, -128, 127) - actual).max() <= 0.76  # it rounds twice


def test_l2_normalization_has_one_output_grid() -> None:
    grid = Quantization(0.1, 0)
    with pytest.raises(RewriterError, match="L2_NORMALIZATION takes int8 tensors to the grid"):
        integer.compute(Operator("L2_NORMALIZATION", (grid,), grid), tf.zeros([1, 4], tf.int32))
