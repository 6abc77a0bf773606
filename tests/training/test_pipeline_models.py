"""Pipelines in rewritten models: which layers have them, training, export."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow_model_optimization.python.core.quantization.keras import quantizers as tfmot

import builders
import claims
import oracles
import rewriter
from pipelines import (
    QUANTIZE,
    compiled,
    eight_bits,
    fixed_point,
    norms,
    recipe,
    train,
    trained_small,
    values_of,
)
from rewriter import BatchNormPipeline, FixedPoint, kernels
from rewriter.lowering.lower import lower
from small_models import VARIABLES, batches

both = pytest.mark.parametrize("kind", builders.KERASES)


@both
def test_names_and_patterns(kind):
    """A normalization goes by its own name or its host's; of several pipelines the first counts."""
    model = builders.residual(builders.keras_of(kind))
    ops = [FixedPoint(bits) for bits in range(4, 9)]
    qat = rewriter.rewrite(
        model,
        recipe(
            {"gamma": ops[0], "layers": "stem"},  # the host
            {"gamma": ops[1], "layers": ["dw_b?", "nothing"]},
            {"gamma": ops[2], "layers": "*_bn"},
        ),
    )
    bits = {
        n: None if m.pipeline is None else m.pipeline.gamma.num_bits for n, m in norms(qat).items()
    }
    assert bits == {"stem_bn": 4, "dw_bn": 5, "pw_bn": 6, "alone": None}
    assert BatchNormPipeline(layers="A*").applies_to(None, "b", "Ab")
    assert not BatchNormPipeline(layers="A*").applies_to("a")


@both
def test_float_phase_is_untouched(kind):
    model = builders.trained_residual(builders.keras_of(kind))
    qat = rewriter.rewrite(model, recipe(eight_bits()))
    x = builders.residual_data(8)
    found = [np.array(each(x, training=False)) for each in (rewriter.rewrite(model), qat)]
    if (
        kernels.current() == "fast"
    ):  # the plain ones take TensorFlow's formula where there are pipes
        np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(*found, rtol=2e-6)
    claims.check_float_phase(model, qat, x)


@both
def test_exported_exactly_as_trained(kind, tmp_path):
    """The file's constants come from the piped variables, and it agrees with the twin as ever."""
    model = builders.trained_residual(builders.keras_of(kind))
    x = builders.residual_data(64)
    worst = []
    for name, pipelines in (("plain", []), ("piped", [eight_bits()])):
        qat = builders.calibrated(model, x, recipe(*pipelines))
        train(compiled(kind, qat, 0.002), batches(4, 16))
        path = tmp_path / f"{name}.tflite"
        assert not rewriter.export_tflite(qat, path).float_tensors
        found = rewriter.verify(qat, path, x, progress=False).comparison
        assert not found.differences and not found.skipped
        worst.append(
            [min(t.identical for t in v) for v in (found.operator_by_operator, found.end_to_end)]
        )
    assert worst[1] >= worst[0] and min(worst[1]) >= 0.999
    steps = {step.layer.rpartition("/")[2]: step.operator for step in lower(qat).steps}
    for host in builders.hosts(qat):
        if host.batch_norm is None:
            continue
        v = {n: fixed_point(np.float32(a), 8) for n, a in values_of(host.batch_norm).items()}
        raw = values_of(host.batch_norm)
        assert any((v[n] != raw[n]).any() for n in VARIABLES)
        norm = oracles.Norm(
            v["gamma"], v["beta"], v["moving_mean"], v["moving_variance"], host.batch_norm.epsilon
        )
        bias = np.zeros(len(norm.gamma)) if host.bias is None else np.asarray(host.bias)
        operator = steps[host.name]
        step = operator.inputs[0].scale * operator.kernel_scale.astype(np.float64)
        expected = (bias - norm.mean) * norm.factor + norm.beta
        np.testing.assert_array_less(np.abs(operator.bias * step - expected), 0.51 * step + 1e-6)
        kernel = np.asarray(host.kernel)
        axes = (2, 3) if host.name == "dw" else (-1,)
        scale = oracles.kernel_scale(kernel, axes).ravel() * np.abs(norm.factor)
        # Those of dead channels are raised so that the bias fits int32.
        live = scale > 1e-6
        assert live.sum() >= 4
        np.testing.assert_allclose(operator.kernel_scale[live], scale[live], rtol=1e-5)


@both
def test_emulation_is_the_file(kind):
    """Phase ``quantize`` in inference computes with the constants that ``fold`` rounds."""
    model = builders.trained_residual(builders.keras_of(kind))
    x = builders.residual_data(64)
    qat = builders.calibrated(model, x, recipe(eight_bits()))
    emulated = np.asarray(qat(x, training=False))
    exact = np.asarray(rewriter.fold(qat)(x))
    # The softmax has steps of 1/256; a rounding of a bias flips few of them.
    assert np.abs(emulated - exact).max() <= 3 / 256
    assert (np.abs(emulated - exact) < 0.5 / 256).mean() > 0.9


@both
@pytest.mark.parametrize(
    "make",
    [
        lambda: tfmot.LastValueQuantizer(
            num_bits=6, per_axis=False, symmetric=True, narrow_range=True
        ),
        lambda: tfmot.MovingAverageQuantizer(
            num_bits=6, per_axis=False, symmetric=False, narrow_range=False
        ),
        lambda: tfmot.AllValuesQuantizer(
            num_bits=6, per_axis=False, symmetric=False, narrow_range=False
        ),
    ],
    ids=["last", "average", "all"],
)
def test_tfmot_quantizers(kind, make, tmp_path):
    """They learn their ranges in training, are saved with them, and are exported as they are."""
    keras = builders.keras_of(kind)
    model = trained_small(keras)
    x = builders.residual_data(32)
    pipeline = {"gamma": make(), "moving_mean": make(), "layers": ["stem_bn", "alone"]}
    qat = compiled(kind, builders.calibrated(model, x, recipe(pipeline)), 0.003)
    before = [v.numpy() for v in norms(qat)["alone"].pipeline_variables]
    assert before
    train(qat, batches(3, 16))
    after = norms(qat)["alone"].pipeline_variables
    assert any((np.asarray(v) != old).any() for v, old in zip(after, before, strict=True))
    piped = norms(qat)["alone"].variables_in(QUANTIZE)
    assert not np.array_equal(piped["gamma"], np.asarray(norms(qat)["alone"].gamma))
    qat.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(again.predict(x, verbose=0), qat.predict(x, verbose=0))
    rewriter.export_tflite(again, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", x, progress=False).comparison
    assert found.worst.identical >= 0.999 and found.worst.maximum <= 1
