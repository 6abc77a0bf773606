"""Functions of TensorFlow's operators, lifted: their values, their layers, and what stays."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from graph_cases import CASES, INTEGERS, KEPT, Case, write
from rewriter import keras_compat
from rewriter.errors import RewriterWarning
from rewriter.lifting import lift, operators

FLAVOURS = {f.name: f for f in (keras_compat.TF_KERAS, keras_compat.KERAS3) if f}
# What models are made of; the others are for a day each.
_CORE = ("convolution", "depthwise", "transposed", "dense", "norm", "shared", "prelu", "gelu",
         "swish", "hard swish", "sliced", "split")  # fmt: skip


def _parameters() -> list[Any]:
    return [
        pytest.param(
            name,
            keras,
            marks=() if keras == "keras" and name.startswith(_CORE) else pytest.mark.wide,
        )
        for name in CASES
        for keras in FLAVOURS
    ]


def _samples(case: Case) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, *case.shape)).astype(np.float32)


@pytest.mark.parametrize(("name", "keras"), _parameters())
def test_functions(name: str, keras: str, tmp_path: Path) -> None:
    case = CASES[name]
    run = write(case, tmp_path / "model")
    model = lift.lift(tmp_path / "model", FLAVOURS[keras])
    x = _samples(case)
    wanted, found = run(x), np.asarray(model(x))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    classes = {type(layer).__name__ for layer in model.layers}
    assert classes >= set(case.layers)
    if name == "norm twice":
        assert sum(type(layer).__name__ == "BatchNormalization" for layer in model.layers) == 2
    assert bool(lift.of(model).kept) == (name in KEPT)
    planned = rewriter.plan(model)
    assert not (name in INTEGERS and planned.float_layers)


@pytest.mark.parametrize("keras", FLAVOURS)
def test_a_variable_of_several_layers_is_said(keras: str, tmp_path: Path) -> None:
    """They are equal until they are trained."""
    module = tf.Module()
    module.gain = tf.Variable(np.float32([1, 2, 3]), name="gain")
    spec = tf.TensorSpec((None, 3), name="x")
    module.call = tf.function(lambda x: tf.nn.relu(x * module.gain) + module.gain, [spec])
    tf.saved_model.save(module, str(tmp_path / "model"), module.call)
    with pytest.warns(RewriterWarning, match="in several places, which are weights of their own"):
        lift.lift(tmp_path / "model", FLAVOURS[keras])
    write(CASES["norm tf.nn"], tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewriterWarning)
        lift.lift(tmp_path / "other", FLAVOURS[keras])


@pytest.mark.parametrize("keras", FLAVOURS)
@pytest.mark.parametrize("divisor", [255.0, 4.0, [0.229, 0.224, 0.225, 0.5], -3.0, 1e-20])
def test_a_division_stays_one(divisor: Any, keras: str, tmp_path: Path) -> None:
    """Multiplied by the inverse it would be rounded otherwise, which deep models make much of."""
    module = tf.Module()
    spec = tf.TensorSpec((None, 6, 6, 4), name="image")
    number = np.float32(divisor)
    module.call = tf.function(lambda x: (x - 0.3) / number, [spec])
    tf.saved_model.save(module, str(tmp_path / "model"), module.call)
    model = lift.lift(tmp_path / "model", FLAVOURS[keras])
    x = np.random.default_rng(0).uniform(0, 255, (4, 6, 6, 4)).astype(np.float32)
    # TensorFlow multiplies by the inverse when it optimizes a function, and not in Keras's layers.
    wanted, found = (x - np.float32(0.3)) / number, np.asarray(model(x, training=False))
    if divisor in (-3.0, 1e-20):  # no layer has these
        np.testing.assert_allclose(found, wanted, rtol=3e-7)
    else:
        np.testing.assert_array_equal(found, wanted)
    assert not lift.of(model).kept
    assert not rewriter.plan(model).float_layers


@pytest.mark.parametrize("keras", FLAVOURS)
def test_variables_are_weights(keras: str, tmp_path: Path) -> None:
    """Each once, with its value, and those of a normalization where they belong."""
    write(CASES["norm tf.nn"], tmp_path / "model")
    model = lift.lift(tmp_path / "model", FLAVOURS[keras])
    restored = tf.saved_model.load(str(tmp_path / "model"))
    by_name = {
        v.name.split(":")[0]: v.numpy() for v in restored.signatures["serving_default"].variables
    }
    (norm,) = [layer for layer in model.layers if "BatchNorm" in type(layer).__name__]
    (conv,) = [layer for layer in model.layers if "Conv" in type(layer).__name__]
    assert norm.name == "bn"
    assert conv.name == "conv"
    pairs = {"bn/gamma": norm.gamma, "bn/beta": norm.beta, "bn/mean": norm.moving_mean,
             "bn/variance": norm.moving_variance, "conv/kernel": conv.kernel}  # fmt: skip
    for name, weight in pairs.items():
        np.testing.assert_array_equal(np.asarray(weight), by_name[name])
    assert len(model.trainable_weights) == 3


@pytest.mark.parametrize("keras", FLAVOURS)
@pytest.mark.parametrize("name", ["mirror", "attention", "top k", "prelu", "sliced"])
def test_lifted_models_are_saved(name: str, keras: str, tmp_path: Path) -> None:
    """Those with operators that stay, too."""
    write(CASES[name], tmp_path / "model")
    model = lift.lift(tmp_path / "model", FLAVOURS[keras])
    x = _samples(CASES[name])
    # Keras 3 does not read its own operations, such as a slice, from .h5.
    functions = keras == "keras" and name == "sliced"
    for suffix in (".keras",) if functions else (".keras", ".h5"):
        path = tmp_path / f"saved{suffix}"
        model.save(path)
        np.testing.assert_array_equal(rewriter.load_model(path)(x), model(x))


@pytest.mark.parametrize("keras", FLAVOURS)
def test_operators_that_stay_train(keras: str, tmp_path: Path) -> None:
    """The gradients of a variable that is read by one are those of the function."""

    class Scaled(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tf.Variable(np.linspace(0.5, 2, 8 * 8 * 4).reshape(8, 8, 4).astype("f"))
            self.run = tf.function(
                lambda x: tf.sin(x * self.scale),
                input_signature=[tf.TensorSpec((None, 8, 8, 4), tf.float32)],
            )

    module = Scaled()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.run)
    model = lift.lift(tmp_path / "model", FLAVOURS[keras])
    x = tf.constant(np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32))
    (weight,) = [w.value if keras == "keras" else w for w in model.trainable_weights]
    with tf.GradientTape(persistent=True) as tape:
        own, lifted = tf.reduce_sum(module.run(x)), tf.reduce_sum(model(x))
    np.testing.assert_allclose(
        np.ravel(tape.gradient(lifted, weight)),
        np.ravel(tape.gradient(own, module.scale)),
        atol=1e-6,
    )


def test_every_allowed_operator_can_be_run() -> None:
    """Its function takes all that the operator has, under whatever names."""
    for op in operators.ALLOWED - operators.STRUCTURE:
        assert operators.parameters(op)
    node = tf.compat.v1.NodeDef(op="Squeeze")
    node.attr["squeeze_dims"].list.i.append(1)
    (found,) = operators.run(node, [tf.zeros((1, 1, 3))])
    assert found.shape == (1, 3)
