"""Saving and loading, each time in a fresh process that only imports ``rewriter``."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, keras_of
from rewriter import Recipe

X = builders.residual_data(12)

FORMATS = {
    "tf_keras": ("model.keras", "model.h5", "saved_model"),
    "keras": ("model.keras", "model.h5"),
}
CASES = [(kind, name) for kind in KERASES for name in FORMATS[kind]]

# One process for all files of one Keras: importing TensorFlow is most of the time.
SCRIPT = textwrap.dedent(
    """
    import sys
    import numpy as np
    import rewriter
    import {module} as keras

    folder = sys.argv[1]
    x = np.load(folder + "/x.npy")
    for name in sys.argv[2:]:
        model = keras.models.load_model(folder + "/" + name)
        np.save(folder + "/" + name + ".out.npy", np.asarray(model(x, training=False)))
        try:
            print(name, rewriter.get_phase(model))
        except rewriter.RewriterError:
            print(name, "no phase")
    """
)


def in_a_fresh_process(folder, kind, names):
    """Load each model and return its outputs and its phase."""
    np.save(folder / "x.npy", X)
    script = SCRIPT.replace("{module}", kind)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), *names],
        capture_output=True,
        text=True,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    phases = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    return {name: (np.load(folder / f"{name}.out.npy"), phases[name]) for name in names}


@pytest.fixture(scope="module", params=KERASES)
def saved(request, tmp_path_factory):
    """Models in all formats, and what a fresh process makes of them.

    A calibrated one, one still in float, one with TFMOT's quantizers, and the twin.
    """
    kind = request.param
    keras = builders.fresh(keras_of(kind))
    folder = tmp_path_factory.mktemp(kind)
    model = builders.trained_residual(keras)
    builders.freeze(model, "dw_bn")
    import tensorflow_model_optimization as tfmot

    theirs = tfmot.quantization.keras.quantizers.MovingAverageQuantizer(
        num_bits=8, per_axis=False, symmetric=False, narrow_range=False
    )
    qat = builders.calibrated(model, builders.residual_data())
    qat.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
    qat.fit(builders.residual_data(), np.arange(48) % 5, verbose=0)
    models = {
        "calibrated": qat,
        "float": rewriter.rewrite(model),
        "tfmot": builders.calibrated(
            model, builders.residual_data(), Recipe(activation_quantizer=theirs)
        ),
        "twin": rewriter.fold(qat),
    }
    names = []
    for what, candidate in models.items():
        for suffix in FORMATS[kind]:
            name = f"{what}_{suffix}"
            candidate.save(str(folder / name))
            names.append(name)
    return kind, folder, models, in_a_fresh_process(folder, kind, names)


WHAT = ("calibrated", "float", "tfmot", "twin")


@pytest.mark.slow
@pytest.mark.parametrize("what", WHAT)
def test_bit_identical_in_a_fresh_process(saved, what):
    kind, _, models, found = saved
    expected = np.asarray(models[what](X, training=False))
    assert np.isfinite(expected).all() and expected.std() > 0
    phase = {"float": "float", "twin": "no phase"}.get(what, "quantize")
    for suffix in FORMATS[kind]:
        outputs, loaded_phase = found[f"{what}_{suffix}"]
        assert np.array_equal(outputs, expected), suffix
        assert loaded_phase == phase, suffix


@pytest.mark.slow
@pytest.mark.parametrize("what", ["calibrated", "tfmot"])
def test_loaded_model_goes_on(saved, what, tmp_path):
    """Training, flags, ranges and export are those of the saved model."""
    kind, folder, models, _ = saved
    keras = keras_of(kind)
    model = models[what]
    for suffix in FORMATS[kind]:
        again = keras.models.load_model(str(folder / f"{what}_{suffix}"), compile=False)
        assert [v.shape for v in again.trainable_weights] == [
            v.shape for v in model.trainable_weights
        ], suffix
        paths = [tmp_path / f"{name}.tflite" for name in ("one", "two")]
        for m, path in zip((model, again), paths, strict=True):
            rewriter.export_tflite(m, path)
        assert paths[0].read_bytes() == paths[1].read_bytes(), suffix
        again.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
        before = builders.weights_by_name(again)
        again.fit(X, np.arange(len(X)) % 5, verbose=0)
        after = builders.weights_by_name(again)
        assert np.array_equal(before["dw_bn/gamma"], after["dw_bn/gamma"])
        assert not np.array_equal(before["stem_bn/gamma"], after["stem_bn/gamma"])


def test_weights_alone(saved, tmp_path):
    """Into a model that was rewritten again from the original architecture."""
    kind, _, models, _ = saved
    keras = keras_of(kind)
    qat = models["calibrated"]
    path = str(tmp_path / "qat.weights.h5")
    qat.save_weights(path)
    fresh = builders.residual(keras)
    builders.freeze(fresh, "dw_bn")
    again = rewriter.rewrite(fresh)
    again.load_weights(path)
    assert rewriter.get_phase(again) == "quantize"
    assert np.array_equal(np.asarray(again(X, training=False)), np.asarray(qat(X, training=False)))


def test_resuming_a_compiled_model(saved):
    """Optimizer state included: the next epoch is the one that would have followed.

    The file is the one written before any ``.h5``: Keras 3 forgets a model's optimizer in later
    ``.keras`` files once it has saved it as ``.h5``.
    """
    kind, folder, models, _ = saved
    keras = keras_of(kind)
    qat = models["calibrated"]
    again = keras.models.load_model(str(folder / "calibrated_model.keras"))
    y = np.arange(len(X)) % 5
    losses = [m.fit(X, y, epochs=2, shuffle=False, verbose=0).history["loss"] for m in (qat, again)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_json_of_the_architecture(saved):
    kind, _, models, _ = saved
    keras = keras_of(kind)
    qat = models["calibrated"]
    again = keras.models.model_from_json(qat.to_json())
    again.set_weights(qat.get_weights())
    assert np.array_equal(np.asarray(again(X, training=False)), np.asarray(qat(X, training=False)))


@pytest.mark.parametrize("kind", KERASES)
def test_clone_model(kind):
    """``clone_model`` goes through every layer's configuration."""
    keras = keras_of(kind)
    qat = builders.calibrated(builders.trained_residual(keras), builders.residual_data())
    again = keras.models.clone_model(qat)
    again.set_weights(qat.get_weights())
    assert np.array_equal(np.asarray(again(X, training=False)), np.asarray(qat(X, training=False)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KERASES)
def test_a_model_deeper_than_the_recursion_limit(kind, tmp_path, request):
    # Keras walks graphs by recursion: the original is just within Python's limit.
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(len(inspect.stack()) + 300)
    k = keras_of(kind)
    x = inputs = k.Input((4,))
    for _ in range(200):
        x = k.layers.Activation("tanh")(x)
    model = k.Model(inputs, k.layers.BatchNormalization()(x))
    limit = sys.getrecursionlimit()
    qat = rewriter.rewrite(model)
    data = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    np.testing.assert_array_equal(np.asarray(qat(data)), np.asarray(model(data)))
    qat.save(tmp_path / "m.keras")
    loaded = rewriter.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(np.asarray(loaded(data)), np.asarray(qat(data)))
    assert sys.getrecursionlimit() == limit
