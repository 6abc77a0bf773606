"""Layer normalization: in float the original, in the file the twin, and what stays in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, both, everything
from layer_norms import CASES, model_of, norm_of
from rewriter.errors import ExportError

every = pytest.mark.parametrize("name", CASES)


# Phase float


@both
@every
def test_float_is_the_original_to_the_bit(name: str, flavour: str) -> None:
    model, x = model_of(KERASES[flavour], name)
    qat = rewriter.rewrite(model)
    for training in (False, True):
        for phase in ("float", "observe"):
            rewriter.set_phase(qat, phase)
            expected = np.asarray(model(x, training=training))
            np.testing.assert_array_equal(np.asarray(qat(x, training=training)), expected)
    original, inner = model.get_layer("norm"), norm_of(qat)
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
    inner, original = norm_of(qat), model.get_layer("norm")
    for key in ("gamma", "beta"):
        trained = np.asarray(getattr(original, key))
        assert np.ptp(trained) > 0.01
        np.testing.assert_array_equal(np.asarray(getattr(inner, key)), trained)
    assert float(sum(qat.losses)) == float(sum(model.losses)) > 0


@both
def test_frozen_stays_frozen(flavour: str, tmp_path: Path) -> None:
    model, x = model_of(KERASES[flavour], "image")
    model.get_layer("norm").trainable = False
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    assert not qat.trainable_variables
    qat.save(tmp_path / "m.keras")
    assert not rewriter.load_model(tmp_path / "m.keras").trainable_variables


@pytest.mark.slow
@both
def test_training_in_quantize_learns(flavour: str) -> None:
    k = KERASES[flavour]
    model, x = model_of(k, "sequence")
    target = np.asarray(model(x)) * 0.5 + 0.25
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    qat.compile(k.optimizers.Adam(0.03), "mse")
    losses = qat.fit(x, target, epochs=30, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.05 * losses[0]


# The file


@pytest.mark.slow
@both
@every
def test_the_file_is_the_twin(name: str, flavour: str, tmp_path: Path) -> None:
    model, x = model_of(KERASES[flavour], name)
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    report = rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not report.float_tensors
    assert report.ops["RSQRT"] >= 1 and "L2_NORMALIZATION" not in report.ops
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
def test_a_mean_that_is_nothing_but_rounding(flavour: str, tmp_path: Path) -> None:
    """Two in a row: the mean that the second takes off is rounding."""
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


@pytest.mark.slow
@both
def test_among_other_layers(flavour: str, tmp_path: Path) -> None:
    """Shared by two calls, with a fused ReLU, two of one tensor, over several axes."""
    everything(flavour, _between, {"bn": "third"}, tmp_path, steps=2)


@both
@pytest.mark.parametrize("kind", ["keras", "h5", "saved_model"])
def test_saved_and_loaded(flavour: str, kind: str, tmp_path: Path) -> None:
    if kind == "saved_model" and flavour == "keras":
        pytest.skip("Keras 3 writes no such folders")
    # Keras 3 itself does not load a layer over two axes from HDF5.
    model, x = model_of(KERASES[flavour], "image" if kind == "h5" else "two_axes")
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
        ((70000,), {}),
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
