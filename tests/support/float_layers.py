"""Models with layers that have no integer form, between others that do."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from no_integers import ACTIVATION, sine
from topologies import SHAPE, Case, block, fused


def _attention(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Reshape((48, 4))(block(k, inputs, "a"))
    seen = k.layers.Lambda(lambda t: t[:, :, :1] > -0.5, output_shape=(48, 1), name="seen")(x)
    y = k.layers.MultiHeadAttention(2, 2, name="attention")(query=x, value=x, attention_mask=seen)
    y = k.layers.Add()([x, y])
    y = k.layers.Reshape(SHAPE)(y)
    return k.Model(inputs, block(k, y, "b"))


def _recurrent(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Reshape((12, 16))(block(k, inputs, "a"))
    x = k.layers.LSTM(5, activation="log_softmax", name="lstm")(x)
    x = k.layers.BatchNormalization(name="b_bn")(k.layers.Dense(4, name="b_conv")(x))
    return k.Model(inputs, x)


def _bidirectional(k: Any) -> Any:
    inputs = k.Input((6, 4))
    steps = k.layers.GRU(3, activation="log_softmax", return_sequences=True)
    x = k.layers.Bidirectional(steps, name="gru")(inputs)
    x = k.layers.BatchNormalization(name="bn")(x)
    return k.Model(inputs, k.layers.TimeDistributed(k.layers.Dense(2))(x))


def _lambda(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Lambda(lambda t: sine(t), name="lambda")(block(k, inputs, "a"))
    return k.Model(inputs, block(k, x, "b"))


def _unknown_activation(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    x = k.layers.Conv2D(3, 2, activation=ACTIVATION, name="soft")(inputs)
    return k.Model(inputs, block(k, x, "b"))


def _unknown_operation(k: Any) -> Any:
    inputs = k.Input(SHAPE)
    cumsum = tf.cumsum if k.__name__ == "tf_keras" else k.ops.cumsum
    return k.Model(inputs, block(k, cumsum(block(k, inputs, "a") * -0.5, -1), "b"))


def _custom(k: Any) -> Any:
    class Twice(k.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, factor: float = 2.0, **kwargs: Any):
            super().__init__(**kwargs)
            self.factor = factor

        def build(self, input_shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(4,), initializer="ones")

        def call(self, inputs: Any) -> Any:
            return sine(inputs) * self.factor * self.scale

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "factor": self.factor}

    inputs = k.Input(SHAPE)
    x = Twice(3.0, name="twice")(block(k, inputs, "a"))
    return k.Model(inputs, block(k, x, "b"))


_NO_FORM = "Layer '{}' has no integer form"

CASES: dict[str, Case] = {
    "masked": Case(
        _attention, fused("a", "b"), "has no integer form", True, floats=("seen", "attention")
    ),
    "recurrent": Case(_recurrent, fused("a", "b"), _NO_FORM.format("lstm"), True, floats=("lstm",)),
    "bidirectional": Case(
        _bidirectional, {"bn": "standalone"}, _NO_FORM.format("gru"), True, floats=("gru",)
    ),
    "lambda": Case(_lambda, fused("a", "b"), _NO_FORM.format("lambda"), True, floats=("lambda",)),
    "unknown_activation": Case(
        _unknown_activation, fused("b"), _NO_FORM.format("soft"), True, floats=("soft",)
    ),
    "unknown_operation": Case(_unknown_operation, fused("a", "b"), "has no integer form", True),
    "custom": Case(_custom, fused("a", "b"), _NO_FORM.format("twice"), True, floats=("twice",)),
}
