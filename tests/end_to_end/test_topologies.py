"""Models of every shape: sharing, nesting, several inputs and outputs, structures, layers in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import float_layers
import rewriter
import topologies
from checks import (
    KERASES,
    assert_close,
    assert_float_equal,
    assert_plan,
    both,
    call,
    everything,
    randomise,
    samples,
    structured,
)
from rewriter.reading import from_keras
from topologies import SHAPE, block, fused

CASES = {**topologies.CASES, **float_layers.CASES}


@both
@pytest.mark.parametrize("name", CASES)
def test_topology(name: str, flavour: str, tmp_path: Path) -> None:
    case = CASES[name]
    plan = everything(
        flavour, case.build, case.plan, tmp_path, refusal=case.refusal,
        allow_float=case.allow_float,
    )  # fmt: skip
    if case.floats or case.refusal is None:
        assert plan.float_layers == case.floats


@both
def test_structures_stay(flavour: str) -> None:
    keras = KERASES[flavour]
    model = CASES["dicts"].build(keras)
    rewritten = rewriter.rewrite(model)
    data = structured(model, samples(model, np.random.default_rng(0)))
    assert set(rewritten(data)) == {"sum", "features"}
    assert set(rewriter.plan(model).to_dict()) >= {"entries", "float_layers"}


@both
def test_input_order_is_the_callers(flavour: str) -> None:
    """Concatenating a later tensor before an earlier one keeps that order."""
    keras = KERASES[flavour]
    model = CASES["later_before_earlier"].build(keras)
    rng = np.random.default_rng(0)
    randomise(model, rng, samples(model, rng))
    rewritten = rewriter.rewrite(model)
    data = samples(model, rng)
    (expected,), (actual,) = call(model, data), call(rewritten, data)
    halves = [expected[..., :4], expected[..., 4:]]
    assert np.abs(halves[0] - halves[1]).max() > 0.1
    assert_close([actual[..., :4], actual[..., 4:]], halves, 1e-5)


@both
def test_the_original_is_left_alone(flavour: str) -> None:
    keras = KERASES[flavour]
    model = CASES["three_deep"].build(keras)
    rng = np.random.default_rng(0)
    randomise(model, rng, samples(model, rng))
    before = [np.array(v) for v in model.weights]
    rewritten = rewriter.rewrite(model)
    assert_plan(model, CASES["three_deep"].plan)
    for variable in rewritten.trainable_variables:
        variable.assign(variable * 0 + 1)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


@both
def test_layers_that_only_act_in_training_do_nothing_here(flavour: str) -> None:
    """Every augmentation layer that the tables call an identity is one in inference."""
    from rewriter.reading.stock_layers import LAYERS

    keras = KERASES[flavour]
    arguments = {
        "RandomTranslation": (0.1, 0.1), "RandomRotation": (0.1,), "RandomContrast": (0.1,),
        "RandomBrightness": (0.1,), "RandomZoom": (0.1,), "RandomHeight": (0.1,),
        "RandomWidth": (0.1,), "RandomHue": (0.1,), "RandomSaturation": (0.1,),
        "RandomSharpness": (0.1,), "RandomColorDegeneration": (0.1,),
        "RandomPosterization": (4,),
    }  # fmt: skip
    image = np.random.default_rng(0).uniform(0, 1, (2, 8, 8, 3)).astype(np.float32)
    names = [name for name in LAYERS if name.startswith("Random") and hasattr(keras.layers, name)]
    assert len(names) >= 6
    for name in names:
        layer = getattr(keras.layers, name)(*arguments.get(name, ()))
        result = np.asarray(layer(image, training=False))
        np.testing.assert_array_equal(result, image, err_msg=name)


@both
def test_weights_of_frozen_layers_stay_frozen(flavour: str) -> None:
    keras = KERASES[flavour]
    model = CASES["nested_twice"].build(keras)
    model.get_layer("inner").trainable = False
    rng = np.random.default_rng(0)
    randomise(model, rng, samples(model, rng))
    rewritten = rewriter.rewrite(model)
    assert not rewritten.trainable_variables
    assert_float_equal(model, rewritten, rng)


@both
def test_calls_are_nodes_not_layers(flavour: str) -> None:
    read = from_keras.read(CASES["nested_twice"].build(KERASES[flavour]))
    assert [c.path for c in read.calls].count("inner/a_conv") == 2
    assert len({id(c.layer) for c in read.calls if c.path == "inner/a_conv"}) == 1


def _raw(k: Any) -> Any:
    """As models of TensorFlow 2.2 come out of their files: an operation with its constants."""
    from tf_keras.src.engine.base_layer import TensorFlowOpLayer

    def raw(kind: str, x: Any, *given: Any) -> Any:
        with tf.Graph().as_default() as scratch:
            inputs = [tf.compat.v1.placeholder(tf.float32, SHAPE)]
            inputs += [tf.constant(value) for value in given]
            getattr(tf.raw_ops, kind)(**dict(zip(_RAW[kind], inputs, strict=True)))
            node = scratch.get_operations()[-1].node_def
        constants = {i + 1: np.asarray(value) for i, value in enumerate(given)}
        return TensorFlowOpLayer(node.SerializeToString(), f"{kind}_op", constants)(x)

    inputs = k.Input(SHAPE)
    x = raw("AddV2", block(k, inputs, "a"), np.float32(3))
    x = raw("Mul", raw("Relu6", x), np.float32(1 / 6))
    x = raw("Mean", x, np.int32([1, 2]))
    return k.Model(inputs, k.layers.Dense(2)(x))


_RAW = {
    "AddV2": ("x", "y"),
    "Mul": ("x", "y"),
    "Relu6": ("features",),
    "Mean": ("input", "axis"),
}


def test_raw_operations_of_old_files(tmp_path: Path) -> None:
    plan = everything("tf_keras", _raw, fused("a"), tmp_path)
    assert plan.float_layers == ()
