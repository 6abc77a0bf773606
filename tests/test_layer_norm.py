"""Layer normalization: the original in float, and integers that are near it on the device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import OpResolverType

import rewriter
from checks import KERASES, both, everything
from litert_single_op import Case, computed, convert, run
from rewriter import lower_norms
from rewriter.errors import ExportError, RewriterError
from rewriter.litert import integer
from rewriter.litert.integer_norm import OUTPUT
from rewriter.lower import lower
from rewriter.program import Operator, Quantization

# Shape of a sample, and arguments of the layer.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "vector": ((24,), {}),
    "sequence": ((7, 16), {"epsilon": 1e-6}),
    "image": ((5, 6, 12), {}),
    "long": ((4, 768), {"epsilon": 1e-6}),
    "rank_5": ((2, 3, 4, 6), {}),
    "two_axes": ((5, 6, 12), {"axis": [-2, -1]}),
    "all_axes": ((5, 6, 12), {"axis": (1, 2, 3)}),
    "no_scale": ((5, 6, 12), {"scale": False}),
    "no_center": ((6, 12), {"center": False}),
    "neither": ((5, 12), {"center": False, "scale": False}),
    "large_epsilon": ((5, 12), {"epsilon": 0.3}),
    "epsilon_above_all": ((6, 12), {"epsilon": 300.0}),
}
every = pytest.mark.parametrize("name", CASES)


def _model(keras: Any, name: str, seed: int = 0) -> tuple[Any, np.ndarray]:
    """One normalization with random weights; data whose deviations differ by a factor of 8."""
    keras.backend.clear_session()
    shape, options = CASES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    inputs = keras.Input(shape)
    layer = keras.layers.LayerNormalization(name="norm", **options)
    model = keras.Model(inputs, layer(inputs))
    for key, centre in (("gamma", 1.0), ("beta", 0.0)):
        variable = getattr(layer, key)
        if variable is not None:
            variable.assign(rng.normal(centre, 0.7, tuple(variable.shape)).astype(np.float32))
    sizes = np.exp(rng.uniform(-1, 1, (64,) + (1,) * len(shape)))
    x = sizes * rng.normal(size=(64, *shape)) + rng.normal(size=sizes.shape)
    return model, x.astype(np.float32)


def _norm(qat: Any) -> Any:
    (found,) = [
        layer
        for layer in qat._flatten_layers()
        if type(layer).__name__ == "QuantizedLayerNormalization"
    ]
    return found


# Phase float


@both
@every
def test_float_is_the_original_to_the_bit(name: str, flavour: str) -> None:
    model, x = _model(KERASES[flavour], name)
    qat = rewriter.rewrite(model)
    for training in (False, True):
        for phase in ("float", "observe"):
            rewriter.set_phase(qat, phase)
            expected = np.asarray(model(x, training=training))
            np.testing.assert_array_equal(np.asarray(qat(x, training=training)), expected)
    original, inner = model.get_layer("norm"), _norm(qat).norm
    assert [tuple(v.shape) for v in inner.variables] == [tuple(v.shape) for v in original.variables]


@both
def test_training_in_float_is_the_original_to_the_bit(flavour: str) -> None:
    """With regularizers and constraints; the stock optimizer in a compiled ``fit``."""
    k = KERASES[flavour]
    k.backend.clear_session()
    k.utils.set_random_seed(0)
    inputs = k.Input((6, 16))
    x = k.layers.LayerNormalization(
        name="norm",
        gamma_regularizer=k.regularizers.L2(0.1),
        beta_regularizer=k.regularizers.L1(0.1),
        gamma_constraint=k.constraints.NonNeg(),
    )(inputs)
    model = k.Model(inputs, k.layers.Dense(3)(x))
    qat = rewriter.rewrite(model)
    rng = np.random.default_rng(0)
    data, target = rng.normal(size=(64, 6, 16)), rng.normal(size=(64, 6, 3))
    for each in (model, qat):
        each.compile(k.optimizers.SGD(0.1), "mse", jit_compile=False)
        each.fit(data, target, batch_size=16, epochs=2, shuffle=False, verbose=0)
    inner, original = _norm(qat).norm, model.get_layer("norm")
    for key in ("gamma", "beta"):
        trained = np.asarray(getattr(original, key))
        assert np.ptp(trained) > 0.01
        np.testing.assert_array_equal(np.asarray(getattr(inner, key)), trained)
    assert float(sum(qat.losses)) == float(sum(model.losses)) > 0


@both
def test_frozen_stays_frozen(flavour: str, tmp_path: Path) -> None:
    model, x = _model(KERASES[flavour], "image")
    model.get_layer("norm").trainable = False
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    assert not qat.trainable_variables
    qat.save(tmp_path / "m.keras")
    assert not rewriter.load_model(tmp_path / "m.keras").trainable_variables


@both
def test_training_in_quantize_learns(flavour: str) -> None:
    k = KERASES[flavour]
    model, x = _model(k, "sequence")
    target = np.asarray(model(x)) * 0.5 + 0.25
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    qat.compile(k.optimizers.Adam(0.03), "mse")
    losses = qat.fit(x, target, epochs=30, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.05 * losses[0]


# Integers


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
    layer = _norm(qat).norm
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


@both
@every
@pytest.mark.parametrize("seed", range(2))
def test_integers_are_near_float64(name: str, flavour: str, seed: int) -> None:
    model, x = _model(KERASES[flavour], name, seed)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
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
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x.astype(np.float32), progress=False)
    assert _check_integers(qat, x.astype(np.float32)) < 0.15


@both
@every
def test_the_file_is_the_twin(name: str, flavour: str, tmp_path: Path) -> None:
    model, x = _model(KERASES[flavour], name)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    report = rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not report.float_tensors
    assert report.ops["L2_NORMALIZATION"] == 1
    for kernels in ("xnnpack", "reference"):
        found = rewriter.verify(
            qat, tmp_path / "m.tflite", x, kernels=kernels, progress=False
        ).comparison
        assert not found.differences and not found.skipped and not found.missing
        assert {tensor.within_one for tensor in found.operator_by_operator} == {1.0}
        if kernels == "xnnpack":
            assert {tensor.identical for tensor in found.operator_by_operator} == {1.0}
            assert {tensor.identical for tensor in found.end_to_end} == {1.0}


@both
def test_a_mean_that_is_always_zero(flavour: str, tmp_path: Path) -> None:
    """Two in a row: the second mean is rounding, finer than a grid of the converter's can be."""
    k = KERASES[flavour]
    k.backend.clear_session()
    inputs = k.Input((6, 16))
    first = k.layers.LayerNormalization(name="first")(inputs)
    model = k.Model(inputs, k.layers.LayerNormalization(epsilon=0.5, name="second")(first))
    x = np.random.default_rng(0).normal(size=(32, 6, 16)).astype(np.float32)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", x, progress=False).comparison
    assert not found.missing and not found.differences
    assert {tensor.identical for tensor in found.end_to_end} == {1.0}
    error = np.asarray(rewriter.fold(qat)(x)) - np.asarray(model(x))
    assert np.sqrt(np.mean(error**2)) < 0.05


def test_epsilon_alone_gives_beta(tmp_path: Path) -> None:
    """A row without deviations: nothing is divided by nothing."""
    model, x = _model(KERASES["keras"], "image")
    x[:8] = 0.0
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    beta = np.asarray(_norm(qat).norm.beta)
    (output,) = lower(qat).outputs
    step = lower(qat).tensors[output].quantization.scale
    off = np.abs(np.asarray(rewriter.fold(qat)(x[:8])) - beta)
    reach = np.abs(np.asarray(_norm(qat).norm.gamma)) * lower(qat).steps[0].operator.output.scale
    assert (off <= step / 2 + reach / np.sqrt(1e-3)).all()


# In larger models


def _between(k: Any) -> Any:
    inputs = k.Input((8, 8, 3))
    x = k.layers.Conv2D(6, 3, name="conv")(inputs)
    shared = k.layers.LayerNormalization(name="norm")
    x = k.layers.ReLU()(shared(x))
    y = shared(k.layers.Conv2D(6, 1, name="second")(x))
    x = k.layers.Add()([x, y])
    x = k.layers.Conv2D(4, 3, use_bias=False, name="third")(x)
    x = k.layers.BatchNormalization(name="bn")(x)
    other = k.layers.LayerNormalization(epsilon=0.1, name="other")(x)
    x = k.layers.LayerNormalization(axis=(1, 2, 3), name="last")(x)
    x = k.layers.Add()([x, other])
    return k.Model(inputs, k.layers.Dense(5)(k.layers.Flatten()(x)))


@both
def test_among_other_layers(flavour: str, tmp_path: Path) -> None:
    """Shared by two calls, with a fused ReLU, two of one tensor, over several axes."""
    everything(flavour, _between, {"bn": "third"}, tmp_path, steps=2)


@both
@pytest.mark.parametrize("kind", ["keras", "h5", "saved_model"])
def test_saved_and_loaded(flavour: str, kind: str, tmp_path: Path) -> None:
    if kind == "saved_model" and flavour == "keras":
        pytest.skip("Keras 3 writes no such folders")
    model, x = _model(KERASES[flavour], "two_axes")
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    path = tmp_path / ("m" if kind == "saved_model" else f"m.{kind}")
    qat.save(path)
    loaded = rewriter.load_model(path)
    assert rewriter.get_phase(loaded) == "quantize"
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(qat(x)))
    rewriter.export_tflite(qat, tmp_path / "a.tflite")
    rewriter.export_tflite(loaded, tmp_path / "b.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


# What stays in float


def _left(k: Any, shape: tuple[int, ...], **options: Any) -> Any:
    inputs = k.Input(shape)
    x = k.layers.LayerNormalization(name="norm", **options)(inputs)
    return k.Model(inputs, k.layers.Activation("linear", dtype="float32")(x))


@both
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 5, 6), {"axis": 1}),
        ((4, 5, 6), {"axis": [1, 3]}),
        ((20000,), {}),
        ((4, 6), {"dtype": "float16"}),
        ((4, 6), {"dtype": "mixed_bfloat16"}),
        ((4, 6), {"rms_scaling": True}),
    ],
    ids=["first", "first_and_last", "too_long", "float16", "mixed", "rms"],
)
@pytest.mark.filterwarnings("ignore:You passed")
def test_left_in_float_and_refused_by_name(
    shape: tuple[int, ...], options: dict[str, Any], flavour: str, tmp_path: Path
) -> None:
    if "rms_scaling" in options and flavour == "tf_keras":
        pytest.skip("Keras 3 only")
    k = KERASES[flavour]
    k.backend.clear_session()
    model = _left(k, shape, **options)
    qat = rewriter.rewrite(model)
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(qat(x)), np.asarray(model(x)))
    rewriter.calibrate(qat, x, progress=False)
    with pytest.raises(ExportError, match="Layer 'norm' has no integer form"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")


# Seeded faults


def _epsilon(change: Any) -> tuple[str, Any]:
    """Another sum for the constants that stand for epsilon."""
    whole = lower_norms.constants
    return "constants", lambda total, grid, limit: whole(change(total), grid, limit)


def _affine(change: Any) -> tuple[str, Any]:
    """Another factor and offset for gamma and beta."""
    whole = lower_norms.channel_affine
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
    model, x = _model(KERASES["keras"], case)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    monkeypatch.setattr(lower_norms, *fault)
    with pytest.raises(AssertionError, match="off by"):
        _check_integers(qat, x)


# The operator


def test_constants_have_the_sum_of_squares() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        grid = Quantization(0.1, int(rng.integers(-128, 128)))
        total = float(np.exp(rng.uniform(-3, 14)))
        found = lower_norms.constants(total, grid, limit=100)
        assert sum(number**2 for number in found) == round(total)
        assert all(-128 <= number + grid.zero_point <= 127 for number in found)
        assert len(found) <= total / 127**2 + 8
    assert lower_norms.constants(1e9, Quantization(0.1, 0), limit=100) is None
    assert lower_norms.constants(math.inf, Quantization(0.1, 0), limit=100) is None


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
    content, actual = convert(case), computed(case, [q])
    for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_REF):
        np.testing.assert_array_equal(actual, run(content, [q], resolver))
    exact = (q - float(zero)) / np.maximum(np.linalg.norm(q - float(zero), axis=1), 1)[:, None]
    assert np.abs(np.clip(exact * 128, -128, 127) - actual).max() <= 0.76  # it rounds twice


def test_l2_normalization_has_one_output_grid() -> None:
    grid = Quantization(0.1, 0)
    with pytest.raises(RewriterError, match="L2_NORMALIZATION takes int8 tensors to the grid"):
        integer.compute(Operator("L2_NORMALIZATION", (grid,), grid), tf.zeros([1, 4], tf.int32))
