"""Every format of both Kerases loads; what cannot be is one clear error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import rewriter
from rewriter.errors import LoadError, UnsupportedModelError
from rewriter.reading.load import load_model
from saved_models import FORMATS, KERASES, X, build, custom_layer, save

FORMAT_IDS = [f"{k}{suffix or '-saved_model'}" for k, suffix in FORMATS]
LAMBDA_MARKER = "REWRITER_TEST_LAMBDA_RAN"


def lambda_layer(k: ModuleType) -> Any:
    """A layer with Python code that leaves a mark when it runs."""
    code = f"lambda x: (__import__('os').environ.__setitem__({LAMBDA_MARKER!r}, '1'), x)[1]"
    return k.layers.Lambda(eval(code), name="code")


@pytest.mark.parametrize(("k", "suffix"), FORMATS, ids=FORMAT_IDS)
def test_loads_with_the_keras_that_wrote_it(k: str, suffix: str, tmp_path: Path) -> None:
    model = build(KERASES[k])
    model.compile("sgd", "mse")
    loaded = load_model(save(model, tmp_path / f"model{suffix}"))
    assert isinstance(loaded, KERASES[k].Model)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    with pytest.raises((RuntimeError, ValueError), match="compile"):
        loaded.evaluate(X, np.zeros((8, 5)), verbose=0)


@pytest.mark.parametrize(("k", "suffix"), FORMATS, ids=FORMAT_IDS)
def test_rewritten_models_load(k: str, suffix: str, tmp_path: Path) -> None:
    qat = rewriter.rewrite(build(KERASES[k]), calibration_data=X)
    loaded = load_model(save(qat, tmp_path / f"qat{suffix}"))
    assert isinstance(loaded, KERASES[k].Model)
    assert rewriter.get_phase(loaded) == "quantize"
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), qat.predict(X, verbose=0))


def test_a_path_may_be_text(tmp_path: Path) -> None:
    assert load_model(str(save(build(keras), tmp_path / "m.keras"))).name == "small"


def test_keras_2_h5_in_keras_3_on_request(tmp_path: Path) -> None:
    model = build(tf_keras)
    loaded = load_model(save(model, tmp_path / "m.h5"), flavour="keras")
    assert isinstance(loaded, keras.Model)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5)


def test_unknown_flavour_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'torch'"):
        load_model(save(build(keras), tmp_path / "m.keras"), flavour="torch")


@pytest.mark.parametrize(
    ("written_by", "suffix", "flavour"),
    [("tf_keras", ".keras", "keras"), ("keras", ".keras", "tf_keras")],
)
def test_the_other_keras_cannot_load_it(
    written_by: str, suffix: str, flavour: str, tmp_path: Path
) -> None:
    path = save(build(KERASES[written_by]), tmp_path / f"m{suffix}")
    with pytest.raises(LoadError, match=rf"{flavour} "):
        load_model(path, flavour=flavour)


MODELS = {
    "mlperf_ic01/pretrainedResnet.h5": 7,
    "mlperf_kws01/kws_ref_model": 9,
    "mlperf_ad01/ad01.h5": 9,
    "mini_xception_gender/gender_mini_XCEPTION.21-0.95.hdf5": 14,
    "stackedgan_gen1/stackedgan_mnist-gen1.h5": None,
    "st_miniresnet_esc10/miniresnet_1stacks_64x50_tl.h5": 6,
}


@pytest.mark.parametrize("name", MODELS)
def test_real_models_load(name: str, shared: Path) -> None:
    model = load_model(shared / "models" / name)
    assert isinstance(model, tf_keras.Model)
    layers = model._flatten_layers()
    count = sum(isinstance(la, tf_keras.layers.BatchNormalization) for la in layers)
    assert count == MODELS[name] or (MODELS[name] is None and count > 0)


# Code of the user's


@pytest.mark.parametrize(("k", "suffix"), FORMATS, ids=FORMAT_IDS)
def test_unknown_class_is_named(k: str, suffix: str, tmp_path: Path) -> None:
    model = build(KERASES[k], custom_layer(KERASES[k]))
    path = save(model, tmp_path / f"m{suffix}")
    if suffix:
        with pytest.raises(LoadError) as caught:
            load_model(path)
        message = str(caught.value)
    else:  # a SavedModel is lifted from its graph
        with pytest.warns(UserWarning, match="lifted from the graph") as said:
            lifted = load_model(path)
        message = str(said[0].message)
        np.testing.assert_allclose(
            lifted.predict(X, verbose=0), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6
        )
    assert "'Doubling'" in message and "'mine'" in message and "custom_objects" in message
    assert f"@{k}.saving.register_keras_serializable()" in message


@pytest.mark.parametrize(("k", "suffix"), FORMATS, ids=FORMAT_IDS)
def test_custom_objects_are_used(k: str, suffix: str, tmp_path: Path) -> None:
    layer = custom_layer(KERASES[k])
    model = build(KERASES[k], layer)
    path = save(model, tmp_path / f"m{suffix}")
    loaded = load_model(path, custom_objects={"Doubling": type(layer)})
    assert type(loaded.get_layer("mine")) is type(layer)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_a_subclassed_saved_model_of_an_unknown_class(tmp_path: Path) -> None:
    class Subclassed(tf_keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.conv = tf_keras.layers.Conv2D(2, 3)

        def call(self, x: tf.Tensor) -> tf.Tensor:
            return self.conv(x)

    model = Subclassed()
    expected = model.predict(X, verbose=0)
    path = save(model, tmp_path / "m")
    with pytest.warns(UserWarning, match="unknown class 'Subclassed'"):
        lifted = load_model(path)
    np.testing.assert_allclose(lifted.predict(X, verbose=0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("k", "suffix"), FORMATS, ids=FORMAT_IDS)
def test_lambda_needs_permission(
    k: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAMBDA_MARKER, "")  # so that it is restored at the end
    path = save(build(KERASES[k], lambda_layer(KERASES[k])), tmp_path / f"m{suffix}")
    os.environ.pop(LAMBDA_MARKER)
    refused = pytest.raises(LoadError, match=r"'code'.*allow_lambda=True")
    lifted = pytest.warns(UserWarning, match=r"lifted.*'code'.*allow_lambda=True")
    with refused if suffix else lifted:
        load_model(path)
    assert LAMBDA_MARKER not in os.environ, "the code in the file was run"
    layer = load_model(path, allow_lambda=True).get_layer("code")
    assert type(layer).__name__ == "Lambda"
    os.environ.setdefault(LAMBDA_MARKER, "")


# Other processes: both switches are read when the Kerases are imported


def _python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


LOAD_ALL = """
import json, sys
import rewriter
from rewriter.reading.load import load_model
found = {}
for path in sys.argv[1:]:
    try:
        found[path] = type(load_model(path)).__module__.split(".")[0]
    except rewriter.RewriterError as error:
        found[path] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Path by Keras."""
    folder = tmp_path_factory.mktemp("each")
    return {k: str(save(build(KERASES[k]), folder / f"{k}.keras")) for k in KERASES}


@pytest.mark.slow
def test_loads_with_legacy_keras_switched_on(one_of_each: dict[str, str]) -> None:
    result = _python(LOAD_ALL, *one_of_each.values(), TF_USE_LEGACY_KERAS="1")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {path: k for k, path in one_of_each.items()}


@pytest.mark.slow
def test_keras_3_that_cannot_be_imported(one_of_each: dict[str, str]) -> None:
    # Keras's numpy backend needs jax, which is not a dependency.
    result = _python(LOAD_ALL, *one_of_each.values(), KERAS_BACKEND="numpy")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found[one_of_each["tf_keras"]] == "tf_keras"
    assert "KERAS_BACKEND=tensorflow" in found[one_of_each["keras"]]


def test_keras_3_on_another_backend(
    one_of_each: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    assert isinstance(load_model(one_of_each["tf_keras"]), tf_keras.Model)
    with pytest.raises(UnsupportedModelError, match=r"KERAS_BACKEND=tensorflow"):
        load_model(one_of_each["keras"])
