"""Models whose weights are not float32: the original in float, the same file once quantized."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, keras_of, normal
from tfmot_recipes import last_value


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


@pytest.fixture
def policy(keras, dtype):
    """The dtype as the global policy, which layers without one of their own take."""
    setter = getattr(keras.mixed_precision, "set_global_policy", None)
    setter = setter or keras.config.set_dtype_policy
    setter(dtype)
    yield dtype
    setter("float32")


def _policy(keras, dtype):
    return keras.mixed_precision.Policy(dtype) if keras.__name__ == "tf_keras" else dtype


def _model(keras, dtype):
    """A fused and a standalone normalization, a clamp, two kernels in one layer, a Dense."""
    k, policy = keras.layers, {"dtype": _policy(keras, dtype)}
    x = inputs = k.Input((8, 8, 3), dtype="float32" if dtype.startswith("mixed") else dtype)
    x = k.Conv2D(8, 3, name="conv", **policy)(x)
    x = k.ReLU(**policy)(k.BatchNormalization(name="fused", **policy)(x))
    x = k.MaxPooling2D(**policy)(x)
    x = k.BatchNormalization(name="alone", **policy)(x)
    x = k.SeparableConv2D(6, 2, activation="swish", name="separable", **policy)(x)
    x = k.Dense(3, name="scores", **policy)(k.Flatten(**policy)(x))
    return keras.Model(inputs, x)


def _values(model, x):
    return np.asarray(model(x, training=False))


DTYPES = ["float64", "float16", "bfloat16", "mixed_float16"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_float_is_the_original(keras, dtype):
    _check_float(keras, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_float16", "float64"])
def test_global_policy(keras, dtype, policy):
    _check_float(keras, dtype)
    _check_training(keras, dtype, None)


def _check_float(keras, dtype):
    model = builders.randomise_all(_model(keras, dtype), 1)
    qat = rewriter.rewrite(model)
    x = normal(16, 8, 8, 3).astype(dtype if dtype in ("float64", "float16") else "float32")
    expected = _values(model, x)
    found = _values(qat, x)
    assert found.dtype == expected.dtype
    # In float64 a detour through float32 would be off by 1e-7.
    bound = {"float64": 1e-12, "bfloat16": 2e-2}.get(dtype, 2e-3)
    scale = float(np.abs(expected.astype(np.float64)).max())
    off = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    assert off <= bound * scale


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [None, rewriter.PerTensorQuantizer(), last_value()],
    ids=["own", "per_tensor", "tfmot"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_training(keras, dtype, quantizer):
    _check_training(keras, dtype, quantizer)


def _check_training(keras, dtype, quantizer):
    model = builders.randomise_all(_model(keras, dtype), 1)
    qat = rewriter.rewrite(model, rewriter.Recipe(kernel_quantizer=quantizer))
    x = normal(16, 8, 8, 3)
    rewriter.calibrate(qat, x, progress=False, method="minmax")
    rewriter.set_phase(qat, "quantize")
    qat.compile(keras.optimizers.SGD(1e-2), "mse")
    before = builders.weights_by_name(qat)
    qat.fit(x, np.zeros((16, 3)), verbose=0)
    after = builders.weights_by_name(qat)
    for name in ("conv/kernel", "scores/kernel"):
        assert np.isfinite(after[name].astype(np.float64)).all()
        assert not np.array_equal(before[name], after[name])


def test_float64_becomes_the_file_that_float32_becomes(keras, tmp_path):
    single = builders.randomise_all(_model(keras, "float32"), 1)
    double = _model(keras, "float64")
    double.set_weights(single.get_weights())
    x, files, outputs = normal(64, 8, 8, 3), [], []
    for model in (single, double):
        qat = rewriter.rewrite(model)
        rewriter.calibrate(qat, x, progress=False, method="minmax")
        rewriter.set_phase(qat, "quantize")
        path = tmp_path / "model.tflite"
        rewriter.export_tflite(qat, path)
        found = rewriter.verify(qat, path, x, progress=False)
        assert found.top1 == 1.0
        files.append(path.read_bytes())
        outputs.append(_values(qat, x))
    assert len(files[0]) == len(files[1])
    # On the same grids: a rounding to the other side is rare.
    assert np.mean(np.abs(outputs[0] - outputs[1]) < 1e-5) > 0.98
