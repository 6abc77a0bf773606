"""Models of every shape: sharing, nesting, several inputs and outputs, structures, other layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
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
from rewriter import graph


@dataclasses.dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
      build: makes it with a Keras.
      plan: what becomes of each normalization; see ``checks.assert_plan``.
      refusal: what the export says, if it refuses.
      allow_float: whether it then succeeds with layers in float.
      only: the one Keras that can build it.
      floats: the layers that the plan says stay in float.
    """

    build: Callable[[Any], Any]
    plan: dict[str, str]
    refusal: str | None = None
    allow_float: bool = False
    only: str | None = None
    floats: tuple[str, ...] = ()


SHAPE = (6, 8, 4)


def block(k: Any, x: Any, name: str, **kwargs: Any) -> Any:
    """A convolution, its normalization and a ReLU."""
    x = k.layers.Conv2D(4, 3, padding="same", name=f"{name}_conv", **kwargs)(x)
    return k.layers.ReLU()(k.layers.BatchNormalization(name=f"{name}_bn")(x))


def fused(*names: str) -> dict[str, str]:
    """The plan of blocks."""
    return {f"{name}_bn": f"{name}_conv" for name in names}


def nested(k: Any, name: str = "inner", block_name: str = "a") -> Any:
    """A model of one block."""
    inputs = k.Input(SHAPE)
    return k.Model(inputs, block(k, inputs, block_name), name=name)


def _siamese(k: Any) -> Any:
    conv = k.layers.Conv2D(4, 3, name="conv")
    norm = k.layers.BatchNormalization(name="bn")
    pool = k.layers.GlobalAveragePooling2D()
    left, right = k.Input(SHAPE, name="left"), k.Input(SHAPE, name="right")
    ends = [pool(k.layers.ReLU()(norm(conv(x)))) for x in (left, right)]
    return k.Model([left, right], k.layers.Subtract()(ends))


def _siamese_partly(k: Any) -> Any:
    conv = k.layers.Conv2D(4, 3, name="conv")
    norm = k.layers.BatchNormalization(name="bn")
    left, right = k.Input(SHAPE, name="left"), k.Input(SHAPE, name="right")
    return k.Model([left, right], k.layers.Add()([norm(conv(left)), conv(right)]))


def _twice(k: Any) -> Any:
    inner, inputs = nested(k), k.Input(SHAPE)
    return k.Model(inputs, inner(inner(inputs)))


def _three_deep(k: Any) -> Any:
    model = nested(k, "deep_0", "a")
    for depth in (1, 2):
        inputs = k.Input(SHAPE)
        x = block(k, model(inputs), "abc"[depth])
        model = k.Model(inputs, x, name=f"deep_{depth}")
    inputs = k.Input(SHAPE)
    return k.Model(inputs, k.layers.Flatten()(model(inputs)))


def _sequential(k: Any) -> Any:
    layers = k.layers
    inner = k.Sequential(
        [layers.Conv2D(4, 3, name="a_conv"), layers.BatchNormalization(name="a_bn")], name="seq"
    )
    inputs = k.Input(SHAPE)
    functional = k.Model(inputs, layers.ReLU()(inner(inputs)), name="fun")
    return k.Sequential([k.Input(SHAPE), functional, layers.Flatten(), layers.Dense(3)])


def _same_names(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    return k.Model(inputs, nested(k, "two")(nested(k, "one")(inputs)))


def _several(k: Any) -> Any:
    a, b = k.Input(SHAPE, name="a"), k.Input(SHAPE, name="b")
    x, y = block(k, a, "x"), block(k, b, "y")
    z = k.layers.Add(name="sum")([x, y])
    return k.Model([a, b], [z, k.layers.GlobalAveragePooling2D(name="mean")(x), y])


def _dicts(k: Any) -> Any:
    inputs = {"small": k.Input((4,), name="small"), "image": k.Input(SHAPE, name="image")}
    x = k.layers.GlobalAveragePooling2D()(block(k, inputs["image"], "x"))
    y = k.layers.Add()([x, k.layers.Dense(4)(inputs["small"])])
    return k.Model(inputs, {"sum": y, "features": x})


def _nested_structures(k: Any) -> Any:
    inputs = {"pair": [k.Input(SHAPE, name="p"), k.Input(SHAPE, name="q")]}
    x = block(k, inputs["pair"][1], "x")
    return k.Model(inputs, [x, [k.layers.Add()([x, inputs["pair"][0]])]])


def _nested_two_outputs(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = block(k, inputs, "a")
    inner = k.Model(inputs, [x, k.layers.MaxPooling2D()(x)], name="inner")
    outer = k.Input(SHAPE)
    full, half = inner(outer)
    return k.Model(outer, [block(k, half, "b"), k.layers.Flatten()(full)])


def _order(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    earlier = block(k, inputs, "a")
    later = block(k, earlier, "b")
    return k.Model(inputs, k.layers.Concatenate()([later, earlier]))


def _keywords(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.BatchNormalization(name="a_bn")(
        k.layers.Conv2D(4, 3, name="a_conv")(inputs=inputs), training=False
    )
    return k.Model(inputs, k.layers.ReLU()(inputs=x))


def _keywords_nested(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    return k.Model(inputs, nested(k)(inputs, training=False))


def _attention(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Reshape((48, 4))(block(k, inputs, "a"))
    y = k.layers.MultiHeadAttention(2, 2, name="attention")(query=x, value=x)
    y = k.layers.Add()([x, y])
    y = k.layers.Reshape(SHAPE)(y)
    return k.Model(inputs, block(k, y, "b"))


def _recurrent(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Reshape((12, 16))(block(k, inputs, "a"))
    x = k.layers.LSTM(5, name="lstm")(x)
    x = k.layers.BatchNormalization(name="b_bn")(k.layers.Dense(4, name="b_conv")(x))
    return k.Model(inputs, x)


def _bidirectional(k: Any) -> Any:
    inputs = k.Input((6, 4))
    x = k.layers.Bidirectional(k.layers.GRU(3, return_sequences=True), name="gru")(inputs)
    x = k.layers.BatchNormalization(name="bn")(x)
    return k.Model(inputs, k.layers.TimeDistributed(k.layers.Dense(2))(x))


def _norm_layer(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.LayerNormalization(name="norm")(block(k, inputs, "a"))
    return k.Model(inputs, block(k, x, "b"))


def _lambda(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Lambda(lambda t: t * 2 + 1, name="lambda")(block(k, inputs, "a"))
    return k.Model(inputs, block(k, x, "b"))


def _unknown_activation(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Conv2D(3, 2, activation="softplus", name="soft")(inputs)
    return k.Model(inputs, block(k, x, "b"))


def _unknown_operation(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    exp = tf.exp if k.__name__ == "tf_keras" else k.ops.exp
    return k.Model(inputs, block(k, exp(block(k, inputs, "a") * -0.5), "b"))


def _custom(k: Any) -> Any:
    class Twice(k.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, factor: float = 2.0, **kwargs: Any):
            super().__init__(**kwargs)
            self.factor = factor

        def build(self, input_shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(4,), initializer="ones")

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor * self.scale

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "factor": self.factor}

    inputs = k.Input(SHAPE)
    x = Twice(3.0, name="twice")(block(k, inputs, "a"))
    return k.Model(inputs, block(k, x, "b"))


def _residual(k: Any) -> Any:
    class Residual(k.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.conv = k.layers.Conv2D(4, 3, padding="same", name="conv")
            self.norm = k.layers.BatchNormalization(name="norm")
            self.add = k.layers.Add(name="add")

        def call(self, inputs: Any) -> Any:
            return self.add([inputs, self.norm(self.conv(inputs))])

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    inputs = k.Input(SHAPE)
    return k.Model(inputs, Residual(name="second")(Residual(name="first")(inputs)))


def _subclassed(k: Any) -> Any:
    class Net(k.Model):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__(name="net")
            self.conv = k.layers.Conv2D(4, 3, name="conv")
            self.norm = k.layers.BatchNormalization(name="bn")
            self.inner = nested(k)

        def call(self, inputs: Any, training: Any = None) -> Any:
            x = self.inner(inputs, training=training)
            return self.norm(self.conv(x), training=training) * 2.0

    inputs = k.Input(SHAPE)
    return k.Model(inputs, Net()(inputs))


def _preprocessing(k: Any) -> Any:
    inputs = k.Input((9, 9, 3))
    layers = k.layers
    x = layers.Rescaling(1 / 127.5, offset=-1)(inputs)
    adapted = layers.Normalization(name="adapted")
    adapted.adapt(np.random.default_rng(0).normal(1, 3, (64, 9, 9, 3)).astype(np.float32))
    x = layers.RandomFlip(seed=1)(adapted(x), training=False)
    return k.Model(inputs, block(k, layers.Resizing(6, 6)(x), "a"))


def _no_norm(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    return k.Model(inputs, k.layers.Flatten()(k.layers.Conv2D(3, 2, activation="relu")(inputs)))


NO_FORM = "Layer '{}' has no integer form"

CASES: dict[str, Case] = {
    "siamese": Case(_siamese, {"bn": "conv"}),
    "siamese_partly": Case(_siamese_partly, {"bn": "standalone"}),
    "nested_twice": Case(_twice, {"inner/a_bn": "inner/a_conv"}),
    "three_deep": Case(
        _three_deep,
        {
            "deep_2/deep_1/deep_0/a_bn": "deep_2/deep_1/deep_0/a_conv",
            "deep_2/deep_1/b_bn": "deep_2/deep_1/b_conv",
            "deep_2/c_bn": "deep_2/c_conv",
        },
    ),
    "sequential": Case(_sequential, {"fun/seq/a_bn": "fun/seq/a_conv"}),
    "same_names": Case(_same_names, {"one/a_bn": "one/a_conv", "two/a_bn": "two/a_conv"}),
    "several": Case(_several, fused("x", "y")),
    "dicts": Case(_dicts, fused("x")),
    "nested_structures": Case(_nested_structures, fused("x")),
    "nested_two_outputs": Case(
        _nested_two_outputs, {"inner/a_bn": "inner/a_conv", "b_bn": "b_conv"}
    ),
    "later_before_earlier": Case(_order, fused("a", "b")),
    "keywords": Case(_keywords, fused("a")),
    "keywords_nested": Case(_keywords_nested, {"inner/a_bn": "inner/a_conv"}),
    "attention": Case(
        _attention, fused("a", "b"), NO_FORM.format("attention"), True, floats=("attention",)
    ),
    "recurrent": Case(_recurrent, fused("a", "b"), NO_FORM.format("lstm"), True, floats=("lstm",)),
    "bidirectional": Case(
        _bidirectional, {"bn": "standalone"}, NO_FORM.format("gru"), True, floats=("gru",)
    ),
    "layer_norm": Case(_norm_layer, fused("a", "b")),
    "lambda": Case(_lambda, fused("a", "b"), NO_FORM.format("lambda"), True, floats=("lambda",)),
    "unknown_activation": Case(
        _unknown_activation, fused("b"), NO_FORM.format("soft"), True, floats=("soft",)
    ),
    "unknown_operation": Case(_unknown_operation, fused("a", "b"), "has no integer form", True),
    "custom": Case(_custom, fused("a", "b"), NO_FORM.format("twice"), True, floats=("twice",)),
    "custom_with_norms": Case(
        _residual, {"first/norm": "first/conv", "second/norm": "second/conv"}
    ),
    "subclassed": Case(_subclassed, {"net/inner/a_bn": "net/inner/a_conv", "net/bn": "net/conv"}),
    "preprocessing": Case(_preprocessing, fused("a")),
    "without_norms": Case(_no_norm, {}),
}


@both
@pytest.mark.parametrize("name", CASES)
def test_topology(name: str, flavour: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.only not in (None, flavour):
        pytest.skip(f"{case.only} only")
    plan = everything(
        flavour, case.build, case.plan, tmp_path, refusal=case.refusal,
        allow_float=case.allow_float,
    )  # fmt: skip
    if case.floats or case.refusal is None:
        assert plan.float_layers == case.floats


@both
def test_structures_stay(flavour: str) -> None:
    keras = KERASES[flavour]
    model = _dicts(keras)
    rewritten = rewriter.rewrite(model)
    data = structured(model, samples(model, np.random.default_rng(0)))
    assert set(rewritten(data)) == {"sum", "features"}
    assert set(rewriter.plan(model).to_dict()) >= {"entries", "float_layers"}


@both
def test_input_order_is_the_callers(flavour: str) -> None:
    """Concatenating a later tensor before an earlier one keeps that order."""
    keras = KERASES[flavour]
    model = _order(keras)
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
    model = _three_deep(keras)
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
    from rewriter.stock_layers import LAYERS

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
    model = _twice(keras)
    model.get_layer("inner").trainable = False
    rng = np.random.default_rng(0)
    randomise(model, rng, samples(model, rng))
    rewritten = rewriter.rewrite(model)
    assert not rewritten.trainable_variables
    assert_float_equal(model, rewritten, rng)


@both
def test_calls_are_nodes_not_layers(flavour: str) -> None:
    read = graph.read(_twice(KERASES[flavour]))
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
