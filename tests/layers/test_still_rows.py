"""Normalizations of samples have no gradient where nothing varies, in phase quantize."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both

X = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
STILL = np.zeros((4, 6, 8), bool)
STILL[1, 2], STILL[3, 0] = True, True
X[1, 2], X[3, 0] = 0.7, 0.0


def build(flavour: str, kind: str) -> Any:
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(0)
    norm = {
        "layer": lambda: layers.LayerNormalization(epsilon=1e-6, name="norm"),
        "group": lambda: layers.GroupNormalization(4, epsilon=1e-6, name="norm"),
        "root mean square": lambda: layers.RMSNormalization(epsilon=1e-6, name="norm"),
    }[kind]()
    inputs = keras.Input((6, 8))
    return keras.Model(inputs, layers.Dense(3, name="head")(norm(inputs)))


def of_input(model: Any, x: np.ndarray) -> np.ndarray:
    """The gradient of the input, with the outputs weighed differently."""
    inputs = tf.constant(x)
    weigh = tf.constant(np.random.default_rng(1).normal(size=(*x.shape[:-1], 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(model(inputs, training=True) * weigh)
    return np.array(tape.gradient(loss, inputs))


def case(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """An input and what in it does not vary."""
    if kind == "layer":
        return X, STILL
    x = np.random.default_rng(2).normal(size=X.shape).astype(np.float32)
    still = np.zeros(X.shape, bool)
    if kind == "group":  # all steps of two channels
        still[2, :, 4:6] = True
        x[still] = -0.3
    else:
        still[2, 3] = True
        x[still] = 0.0
    return x, still


@both
@pytest.mark.parametrize("kind", ["layer", "group", "root mean square"])
def test_rows_that_do_not_vary(flavour: str, kind: str) -> None:
    if not hasattr(KERASES[flavour].layers, "RMSNormalization") and kind == "root mean square":
        kind = "layer"
    original = build(flavour, kind)
    x, still = case(kind)
    before = of_input(original, x)
    assert abs(before[still]).max() > 50 * abs(before[~still]).max()
    qat = rewriter.rewrite(original)
    np.testing.assert_array_equal(np.array(qat(x)), np.array(original(x)))
    np.testing.assert_allclose(of_input(qat, x), before, rtol=1e-5, atol=1e-6)
    rewriter.calibrate(qat, x, progress=False)
    found = of_input(qat, x)
    np.testing.assert_array_equal(found[still], 0.0)
    inside = ~still & (abs(x) < 0.8 * abs(x).max())  # what a range clips has no gradient either
    assert abs(found[inside] - before[inside]).max() < 0.2 * abs(before[inside]).max()
    assert (found[inside] != 0).all()


@both
def test_it_leaves_no_trace_in_files(flavour: str, tmp_path: Any) -> None:
    """Saved and loaded it is there; the exported file and a rewritten rest do not know it."""
    qat = rewriter.rewrite(build(flavour, "layer"))
    rewriter.calibrate(qat, X, progress=False)
    qat.save(tmp_path / "qat.keras")
    loaded = rewriter.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(of_input(loaded, X)[STILL], 0.0)
    report = rewriter.export_tflite(qat, tmp_path / "model.tflite")
    assert not report.float_tensors
    again = rewriter.export_tflite(loaded, tmp_path / "again.tflite")
    assert again.ops == report.ops
    names = [layer.name for layer in rewriter.fold(qat).layers]
    assert not [name for name in names if name.startswith("norm_input")]
