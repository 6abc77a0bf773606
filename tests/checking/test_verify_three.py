"""The trained model against the twin and the file: what agrees, and which fault is named where."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

import builders
import layer_norms
import real_models
import residuals
import rewriter
from builders import HOST_CASES, KERASES, NormOptions, keras_of, prepared
from no_integers import sine
from rewriter.checking import emulation
from rewriter.checking.training_agreement import (
    LOW_SNR_DB,
    Counter,
    TrainingAgreement,
    TrainingComparison,
)
from rewriter.lowering import folding
from rewriter.lowering.lower import lower_with_sources
from rewriter.lowering.values import Value
from rewriter.program import Quantization, Tensor

CONV = HOST_CASES[0]
SQUARE = builders.HostCase("Dense", {"units": 24}, (24,))  # either axis would do for a shape


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


def verified(qat, x, folder: Path, **options) -> rewriter.Verification:
    rewriter.export_tflite(qat, folder / "m.tflite", **options)
    return rewriter.verify(qat, folder / "m.tflite", x, progress=False)


# What agrees


def test_a_right_model(keras, tmp_path):
    qat = builders.calibrated(builders.trained_residual(keras), residuals.X)
    found = verified(qat, residuals.X[:20], tmp_path)
    assert found.parts_at is None
    assert found.training.fault is None and found.training.weakness is None
    assert found.snr >= 25
    assert found.training.tensors[0].name == "image"
    assert {a.name for a in found.comparison.operator_by_operator} <= {
        t.name for t in found.training.tensors
    }
    for tensor in found.training.tensors:
        assert tensor.step_max_steps <= 1 and tensor.step_snr_db >= 30, tensor
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))["training"]
    assert values["snr"] is None or values["snr"] == pytest.approx(found.snr)
    assert values["parts_at"] is None
    text = str(found)
    assert "SNR" in text and "trained model against the twin" in text and "WARNING" not in text


@pytest.mark.parametrize("case", [HOST_CASES[i] for i in (3, 5, 6, 7, 10)], ids=str)
def test_hosts(keras, case, tmp_path):
    model, x = prepared(keras, case, NormOptions(), seed=3, low=0.1, high=10)
    found = verified(builders.calibrated(model, x), x, tmp_path)
    assert found.parts_at is None, found
    assert found.training.weakest.layer  # the output was compared


def test_the_model_is_left_as_it_is(keras, tmp_path):
    layers = keras.layers
    image = keras.Input((5, 12), name="image")
    x = layers.LayerNormalization(name="norm")(layers.Dense(12, name="dense")(image))
    model = keras.Model(image, x)
    data = builders.normal(8, 5, 12)
    qat = builders.calibrated(model, data)
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path)
    before = [np.asarray(w) for w in qat.weights]
    results = []
    for phase in ("quantize", "observe", "float"):
        rewriter.set_phase(qat, phase)
        results.append(rewriter.verify(qat, path, data * 3, progress=False).training)
        assert rewriter.get_phase(qat) == phase
    assert results[0] == results[1] == results[2]
    rewriter.set_phase(qat, "quantize")
    for a, b in zip(before, qat.weights, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))


@pytest.mark.parametrize("name", ["sequence", "two_axes"])
def test_layer_normalization(keras, name, tmp_path):
    model, data = layer_norms.model_of(keras, name)
    found = verified(builders.calibrated(model, data), data, tmp_path)
    assert found.parts_at is None, found


def test_the_emulation_is_the_model(keras):
    """Its outputs are those that the model itself returns in phase ``quantize``."""
    qat = builders.calibrated(builders.trained_residual(keras, softmax=False), residuals.X)
    lowered = lower_with_sources(qat)
    values = emulation.emulated(lowered, [residuals.X[:6]])
    expected = np.asarray(qat(residuals.X[:6], training=False))
    (name,) = lowered.program.outputs
    np.testing.assert_allclose(np.asarray(values[name]), expected, rtol=1e-5, atol=1e-6)
    assert set(values) == set(lowered.sources)


def test_shared_layers_have_their_own_values(keras, tmp_path):
    layers = keras.layers
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    dense, relu = layers.Dense(5, name="dense"), layers.ReLU(name="relu")
    model = keras.Model([a, b], layers.Subtract(name="sub")([relu(dense(a)), relu(dense(3 * b))]))
    data = [builders.normal(16, 6), builders.normal(16, 6, seed=1)]
    found = verified(builders.calibrated(model, data), data, tmp_path)
    assert found.parts_at is None
    assert sum(t.layer == "dense" for t in found.training.tensors) == 2


def test_nested_outputs_in_a_dict(keras, tmp_path):
    layers = keras.layers
    image = keras.Input((6, 6, 3), name="image")
    inner = keras.Model(image, builders.conv_bn_relu(layers, image, "a"), name="inner")
    again = keras.Input((6, 6, 3), name="again")
    x = inner(again)
    flat = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(again, {"one": layers.Dense(3, name="one")(flat), "two": flat})
    data = builders.normal(8, 6, 6, 3)
    found = verified(builders.calibrated(model, data), data, tmp_path)
    assert found.parts_at is None
    assert len(found.training.outputs) == 2 and found.snr is not None
    assert any(t.layer == "a" for t in found.training.tensors)


@pytest.mark.slow
def test_float_layers_are_compared_relatively(keras, tmp_path):
    layers = keras.layers
    image = keras.Input((6, 6, 3), name="image")
    x = builders.conv_bn_relu(layers, image, "a")
    x = layers.Lambda(lambda t: sine(t) + 1, name="lambda", output_shape=(6, 6, 6))(x)
    model = keras.Model(image, builders.conv_bn_relu(layers, x, "b"))
    data = builders.normal(8, 6, 6, 3)
    found = verified(builders.calibrated(model, data), data, tmp_path, allow_float=True)
    assert found.parts_at is None, found
    assert {t.name: t.unit for t in found.training.tensors}["lambda"] == "relative"


def test_a_product_of_three_may_round_twice(keras, tmp_path):
    layers = keras.layers
    inputs = [keras.Input((40,), name=name) for name in "abc"]
    model = keras.Model(inputs, layers.Multiply(name="product")(inputs))
    data = [builders.normal(32, 40, seed=i) for i in range(3)]
    found = verified(builders.calibrated(model, data), data, tmp_path)
    (product,) = [t for t in found.training.tensors if t.name == "product"]
    assert product.roundings == 2 and not product.parts


def test_a_softmax_is_judged_by_its_logits():
    def agreement(name, snr):
        return TrainingAgreement(name, name, 9, snr, 9.0, 50.0, 1.0, 0.1)

    tensors = tuple(agreement(n, s) for n, s in (("logits", 31.0), ("soft", 9.0), ("b", 33.0)))
    found = TrainingComparison(4, tensors, (("soft", "logits"), ("b",)), {})
    assert found.weakest.name == "logits" and found.snr == 31 and found.weakness is None
    alone = TrainingComparison(4, tensors, (("soft",), ("b",)), {})
    assert alone.snr == 9 < LOW_SNR_DB
    assert "'soft'" in alone.weakness and "9.0 dB" in alone.weakness
    assert TrainingComparison(4, (), (("soft",),), {}).snr is None


def test_the_figures():
    counter = Counter(Tensor("t", (None, 3), Quantization(0.5, 10)))
    for row, integers in (([1.0, -1.0, 2.0], [12, 8, 15]), ([70.0, 0.0, 0.001], [127, 10, 10])):
        counter.add(counter.steps(np.array([row])), np.array([integers]))
    # In steps: 2, -2, 4, 140 (beyond the grid), 0, 0 against 2, -2, 5, 117, 0, 0.
    assert (counter.elements, counter.other, counter.largest) == (6, 2, 23)
    expected = 10 * math.log10((4 + 4 + 16 + 140**2) / (1 + 23**2))
    assert counter.snr_db == pytest.approx(expected)
    equal = Counter(Tensor("t", (None, 1), None))
    equal.add(np.array([[2.0]], np.float32), np.array([[2.0]], np.float32))
    assert equal.snr_db == math.inf and equal.largest == 0
    equal.add(np.array([[2.0]], np.float32), np.array([[1.0]], np.float32))
    assert equal.largest == 0.5


# Faults in lowering: file and twin are made from it, so they agree, and the file is wrong all the
# same.


def _bits(bits):
    def patch(monkeypatch):
        whole, coarse = folding.kernel_integers, 2 ** (8 - bits)

        def wrong(kernel, grid, scale=None):
            integers, scale = whole(kernel, grid, scale)
            return (np.rint(integers / coarse) * coarse).clip(-127, 127).astype(np.int8), scale

        monkeypatch.setattr(folding, "kernel_integers", wrong)

    return patch


def _axis(kernel_axes):
    def patch(monkeypatch):
        whole = folding.kernel_integers

        def wrong(kernel, grid, scale=None):
            integers, other = whole(kernel, dataclasses.replace(grid, axes=kernel_axes), scale)
            own = whole(kernel, grid, scale)[1]
            return integers, np.broadcast_to(other, own.shape).copy()

        monkeypatch.setattr(folding, "kernel_integers", wrong)

    return patch


def _function(name, change):
    def patch(monkeypatch):
        whole = getattr(folding, name)
        monkeypatch.setattr(folding, name, lambda *args, **options: change(whole, *args, **options))

    return patch


def _zero_point(whole, *arguments):
    grid = whole(*arguments)
    return dataclasses.replace(grid, zero_point=max(-128, min(127, grid.zero_point - 3)))


def _always_relu(monkeypatch):
    monkeypatch.setattr(Value, "activation", lambda self: "relu")


FAULTS = {
    "kernel on 7 bits": (CONV, _bits(7)),
    "kernel on 4 bits": (CONV, _bits(4)),
    "one scale for the kernel": (CONV, _axis(())),
    "scales for the inputs": (SQUARE, _axis((0,))),
    "bias of half": (CONV, _function("bias_grid", lambda f, b, *rest, **_: f(b / 2, *rest))),
    "beta dropped": (
        CONV,
        _function("batch_norm_bias", lambda f, s, m, beta, b: f(s, m, 0 * np.asarray(beta), b)),
    ),
    "epsilon ignored": (CONV, _function("batch_norm_scale", lambda f, g, v, e: f(g, v, 0.0))),
    "sign dropped": (
        CONV,
        _function("fold_scale", lambda f, q, s, factor, axes: f(q, s, np.abs(factor), axes)),
    ),
    "zero points moved": (CONV, _function("activation_quantization", _zero_point)),
    "an activation more": (CONV, _always_relu),
}


@pytest.mark.parametrize("name", FAULTS)
def test_seeded_faults(keras, name, monkeypatch, tmp_path):
    case, patch = FAULTS[name]
    # Epsilon is as large as the variance.
    options = NormOptions(epsilon=0.1, relu=name != "an activation more")
    model, x = prepared(keras, case, options, seed=3, low=0.05, high=0.2)
    qat = builders.calibrated(model, x)
    assert verified(qat, x, tmp_path).parts_at is None
    patch(monkeypatch)
    found = verified(qat, x, tmp_path)
    assert not found.comparison.differences
    assert found.comparison.worst.identical >= 0.99  # this is what used to be all that it said
    assert found.parts_at is not None, found
    layer = "image" if name == "zero points moved" else "host"
    assert found.parts_at.layer == layer
    assert f"from layer '{layer}' on" in found.training.fault
    assert f"WARNING: {found.training.fault}" in str(found)
    assert "parts from the trained model" in str(found)


def test_the_first_layer_with_a_fault_is_named(keras, monkeypatch, tmp_path):
    qat = builders.calibrated(builders.trained_residual(keras), residuals.X)
    whole = folding.fold_scale

    def wrong(integers, scale, factor, axes):
        depthwise = len(axes) == 2
        return whole(integers, scale * np.float32(1.5 if depthwise else 1), factor, axes)

    monkeypatch.setattr(folding, "fold_scale", wrong)
    found = verified(qat, residuals.X[:20], tmp_path)
    assert found.parts_at.layer == "dw"
    parting = {t.layer for t in found.training.tensors if t.parts}
    assert parting == {"dw"}  # what comes after it is right, given its inputs
    assert found.snr < 25


# Real models


@pytest.mark.parametrize("case", [c for c in real_models.CASES if c[1] == "tf_keras"], ids="-".join)
def test_real_models(case, shared, tmp_path):
    name, kind = case
    real = real_models.MODELS[name]
    qat = builders.calibrated(real_models.load(shared, name, kind), real.data(shared, 64))
    found = verified(qat, real.test(shared, 32), tmp_path)
    assert found.parts_at is None and not found.training.skipped
    assert found.snr >= LOW_SNR_DB + 8
    for tensor in found.training.tensors:
        assert tensor.step_max_steps <= 1 and tensor.step_snr_db >= 35, tensor
