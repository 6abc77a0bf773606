"""Models whose kernels are large enough to be compiled: training, saving, the file."""

from __future__ import annotations

import numpy as np
import pytest

import claims
import rewriter
from builders import KERASES, fresh, keras_of
from rewriter import fake_quant


@pytest.fixture(params=KERASES)
def keras(request):
    return fresh(keras_of(request.param))


def _model(keras):
    """A 1x1 convolution of 2^21 elements with a normalization, and a Dense."""
    k = keras.layers
    inputs = k.Input((3, 3, 1024))
    x = k.Conv2D(2048, 1, name="wide")(inputs)
    x = k.ReLU()(k.BatchNormalization()(x))
    model = keras.Model(inputs, k.Dense(3, name="scores")(k.GlobalAveragePooling2D()(x)))
    (kernel, *_) = model.get_layer("wide").get_weights()
    assert kernel.size >= fake_quant._COMPILED_FROM
    return model


def _data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 3, 3, 1024)).astype("float32"), rng.integers(0, 3, 16)


def _trained(keras, **options):
    model, (x, y) = _model(keras), _data()
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    rewriter.set_phase(qat, "quantize")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(keras.optimizers.SGD(1e-2), loss, **options)
    history = qat.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
    return qat, history.history["loss"]


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_the_same_losses_however_the_step_is_run(keras, options):
    _, plain = _trained(keras)
    _, other = _trained(fresh(keras), **options)
    np.testing.assert_allclose(other, plain, rtol=1e-3)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""], ids=["keras", "h5", "savedmodel"])
def test_saved_and_exported(keras, suffix, tmp_path):
    if keras.__name__ == "keras" and not suffix:
        pytest.skip("Keras 3 saves no SavedModel that it loads.")
    qat, _ = _trained(keras)
    x, _ = _data()
    qat.save(tmp_path / f"model{suffix}")
    again = rewriter.load_model(tmp_path / f"model{suffix}")
    np.testing.assert_array_equal(claims.flat(again(x)), claims.flat(qat(x)))
    path = tmp_path / "model.tflite"
    rewriter.export_tflite(again, path)
    found = rewriter.verify(again, path, x[:4], progress=False).comparison
    assert found.worst.identical == 1.0
