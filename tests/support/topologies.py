"""Models of every shape: sharing, nesting, several inputs and outputs, structures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
      build: makes it with a Keras.
      plan: what becomes of each normalization; see ``checks.assert_plan``.
      refusal: what the export says, if it refuses.
      allow_float: whether it then succeeds with layers in float.
      floats: the layers that the plan says stay in float.
    """

    build: Callable[[Any], Any]
    plan: dict[str, str]
    refusal: str | None = None
    allow_float: bool = False
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


def _norm_layer(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.LayerNormalization(name="norm")(block(k, inputs, "a"))
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
    "layer_norm": Case(_norm_layer, fused("a", "b")),
    "custom_with_norms": Case(
        _residual, {"first/norm": "first/conv", "second/norm": "second/conv"}
    ),
    "subclassed": Case(_subclassed, {"net/inner/a_bn": "net/inner/a_conv", "net/bn": "net/conv"}),
    "preprocessing": Case(_preprocessing, fused("a")),
    "without_norms": Case(_no_norm, {}),
}
