"""Activations, operations and layers that are not hosts: each a branch of a larger model.

Every branch starts with a convolution and its normalization, so that the operation reads an int8
tensor with a scale of its own; branches of a rank are built, trained and exported together.
"""

from __future__ import annotations

import dataclasses
import dis
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from checks import both, everything

SHAPES = {"image": (6, 8, 4), "line": (10, 4), "vector": (12,), "volume": (3, 4, 5, 3)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
      apply: given the Keras and one or two tensors, makes the result.
      rank: key of ``SHAPES``.
      only: the one Keras that has it.
      branches: the tensors it reads: ``"a"`` or ``"ab"``.
    """

    apply: Callable[..., Any]
    rank: str = "image"
    only: str | None = None
    branches: str = "ab"


CASES: dict[str, Case] = {}


def case(
    name: str,
    apply: Callable[..., Any],
    rank: str = "image",
    only: str | None = None,
    inner: Callable[..., Any] | None = None,
) -> None:
    """Add a row."""
    assert name not in CASES
    CASES[name] = Case(apply, rank, only, "ab" if _reads_second(inner or apply) else "a")


def _reads_second(function: Callable[..., Any]) -> bool:
    """Whether a function of x and y makes use of y."""
    return any(step.argval == "y" for step in dis.get_instructions(function))


def layer(name: str, *args: Any, rank: str = "image", label: str = "", **kwargs: Any) -> None:
    """A row for a stock layer of one input."""
    make = lambda k, x, y: getattr(k.layers, name)(*args, **kwargs)(x)  # noqa: E731
    case(label or name, make, rank)


def merge(name: str, **kwargs: Any) -> None:
    """Two rows for a merging layer: of two tensors, and of three."""
    case(name, lambda k, x, y: getattr(k.layers, name)(**kwargs)([x, y]))
    case(f"{name}_3", lambda k, x, y: getattr(k.layers, name)(**kwargs)([x, y, x]))


# Activations, as layers, as functions, and inside a host.

layer("ReLU")
layer("ReLU", max_value=6, label="ReLU_6")
layer("ReLU", max_value=0.7, label="ReLU_max")
layer("ReLU", max_value=0.7, negative_slope=0.25, label="ReLU_slope_max")
layer("ReLU", negative_slope=0.25, label="ReLU_slope")
layer("LeakyReLU")
layer("PReLU", shared_axes=[1, 2])
layer("PReLU", label="PReLU_everywhere")
layer("PReLU", rank="line", shared_axes=[1], label="PReLU_line")
layer("ELU")
layer("Softmax")
layer("Softmax", axis=1, label="Softmax_axis")
layer("Softmax", rank="vector", label="Softmax_vector")
case("ReLU_shared_input", lambda k, x, y: k.layers.Add()([k.layers.ReLU()(x), x]))
case("ReLU_max_shared", lambda k, x, y: k.layers.Add()([k.layers.ReLU(max_value=0.5)(x), x]))
case("ReLU_max_concatenated", lambda k, x, y: k.layers.Concatenate()(
    [k.layers.ReLU(max_value=0.5)(x), y]))  # fmt: skip
case("ReLU_after_pool", lambda k, x, y: k.layers.ReLU()(k.layers.MaxPooling2D()(x)))
case("ReLU_after_mean", lambda k, x, y: k.layers.ReLU()(k.layers.GlobalAveragePooling2D()(x)))
case("ReLU_after_ReLU6", lambda k, x, y: k.layers.ReLU()(k.layers.ReLU(6.0)(x)))
case("ReLU_after_Dropout", lambda k, x, y: k.layers.ReLU()(k.layers.Dropout(0.0)(x)))

_FUNCTIONS = ["relu", "elu", "gelu", "swish", "hard_sigmoid", "sigmoid", "tanh", "softmax"]
_FUNCTIONS_3 = ["relu6", "leaky_relu", "silu", "hard_silu", "hard_swish", "hard_tanh"]
for _name in _FUNCTIONS + _FUNCTIONS_3:
    _only = "keras" if _name in _FUNCTIONS_3 else None
    case(f"Activation_{_name}",
         lambda k, x, y, name=_name: k.layers.Activation(name)(x), only=_only)  # fmt: skip
    case(f"Conv2D_{_name}",
         lambda k, x, y, name=_name: k.layers.Conv2D(3, 2, activation=name)(x),
         only=_only)  # fmt: skip
    case(f"Dense_{_name}", lambda k, x, y, name=_name: k.layers.Dense(3, activation=name)(x),
         "vector", only=_only)  # fmt: skip
case("Conv2D_tf_relu6", lambda k, x, y: k.layers.Conv2D(3, 2, activation=tf.nn.relu6)(x))
case("Conv2D_layer", lambda k, x, y: k.layers.Conv2D(3, 2, activation=k.layers.LeakyReLU())(x),
     only="tf_keras")  # fmt: skip

# Arithmetic

for _name in ("Add", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"):
    merge(_name)
case("Subtract", lambda k, x, y: k.layers.Subtract()([x, y]))
case("Add_ReLU", lambda k, x, y: k.layers.ReLU()(k.layers.Add()([x, y])))
case("Average_ReLU6", lambda k, x, y: k.layers.ReLU(6.0)(k.layers.Average()([x, y])))
case("Add_itself", lambda k, x, y: k.layers.Add()([x, x]))
case("Concatenate_axis", lambda k, x, y: k.layers.Concatenate(axis=1)([y, x]))
case("Concatenate_sigmoid", lambda k, x, y: k.layers.Concatenate()(
    [k.layers.Activation("sigmoid")(x), y]))  # fmt: skip
case("add", lambda k, x, y: x + y)
case("subtract", lambda k, x, y: x - y)
case("multiply", lambda k, x, y: x * y)
case("add_number", lambda k, x, y: x + 0.75)
case("add_to_number", lambda k, x, y: 2.0 + x)
case("subtract_number", lambda k, x, y: x - 1.0)
case("subtract_from_number", lambda k, x, y: 1 - x)
case("multiply_number", lambda k, x, y: x * 2.0)
case("multiply_negative", lambda k, x, y: x * -0.4)
case("divide", lambda k, x, y: x / 2)
case("negative", lambda k, x, y: -x)
case("square", lambda k, x, y: x**2)
case("add_channels", lambda k, x, y: x + np.float32([1, -2, 0, 0.25]))
case("multiply_channels", lambda k, x, y: x * np.float32([1, -2, 0, 0.01]))
case("multiply_channels_line", lambda k, x, y: x * np.float32([1, -2, 0, 0.01]), "line")
case("add_places", lambda k, x, y: x + np.linspace(-1, 1, 8, dtype=np.float32)[:, None])
case("multiply_number_relu", lambda k, x, y: k.layers.ReLU()(x * 0.3))
case("hard_sigmoid_by_hand", lambda k, x, y: k.layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0))
case("hard_swish_by_hand", lambda k, x, y: k.layers.Multiply()(
    [x, k.layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)]))  # fmt: skip
case("rescaled_pair", lambda k, x, y: x * 0.5 + y * 0.25)

# TensorFlow's functions in tf_keras, keras.ops in Keras 3: the same rows.


def both_ways(name: str, theirs: Callable[..., Any], ours: Callable[..., Any],
              rank: str = "image") -> None:  # fmt: skip
    case(f"tf_{name}", lambda k, x, y: theirs(x, y), rank, "tf_keras", theirs)
    case(f"ops_{name}", lambda k, x, y: ours(k.ops, x, y), rank, "keras", ours)


both_ways("relu", lambda x, y: tf.nn.relu(x), lambda o, x, y: o.relu(x))
both_ways("relu6", lambda x, y: tf.nn.relu6(x), lambda o, x, y: o.relu6(x))
both_ways("leaky", lambda x, y: tf.nn.leaky_relu(x, 0.1), lambda o, x, y: o.leaky_relu(x, 0.1))
both_ways("elu", lambda x, y: tf.nn.elu(x), lambda o, x, y: o.elu(x))
both_ways("gelu", lambda x, y: tf.nn.gelu(x, approximate=True), lambda o, x, y: o.gelu(x))
both_ways("silu", lambda x, y: tf.nn.silu(x), lambda o, x, y: o.silu(x))
both_ways("sigmoid", lambda x, y: tf.sigmoid(x), lambda o, x, y: o.sigmoid(x))
both_ways("tanh", lambda x, y: tf.tanh(x), lambda o, x, y: o.tanh(x))
both_ways("softmax", lambda x, y: tf.nn.softmax(x), lambda o, x, y: o.softmax(x))
both_ways(
    "clip", lambda x, y: tf.clip_by_value(x, -0.5, 0.25), lambda o, x, y: o.clip(x, -0.5, 0.25)
)
both_ways("clip_one", lambda x, y: tf.clip_by_value(x, -1, 1), lambda o, x, y: o.hard_tanh(x))
both_ways("maximum", lambda x, y: tf.maximum(x, y), lambda o, x, y: o.maximum(x, y))
both_ways("minimum_number", lambda x, y: tf.minimum(x, 0.5), lambda o, x, y: o.minimum(x, 0.5))
both_ways("mean", lambda x, y: tf.reduce_mean(x, [1, 2], keepdims=True),
          lambda o, x, y: o.mean(x, [1, 2], keepdims=True))  # fmt: skip
both_ways("mean_channels", lambda x, y: tf.reduce_mean(x, -1), lambda o, x, y: o.mean(x, -1))
both_ways("mean_line", lambda x, y: tf.reduce_mean(x, 1), lambda o, x, y: o.mean(x, 1), "line")
both_ways("sum", lambda x, y: tf.reduce_sum(x, 1), lambda o, x, y: o.sum(x, 1))
both_ways("max", lambda x, y: tf.reduce_max(x, [1, 2]), lambda o, x, y: o.max(x, [1, 2]))
both_ways("concat", lambda x, y: tf.concat([y, x], 2), lambda o, x, y: o.concatenate([y, x], 2))
both_ways("stack", lambda x, y: tf.stack([x, y], 1), lambda o, x, y: o.stack([x, y], 1), "line")
both_ways("split", lambda x, y: tf.split(x, 2, -1)[1], lambda o, x, y: o.split(x, 2, -1)[1])
both_ways("split_all", lambda x, y: tf.multiply(*tf.split(x, 2, 1)),
          lambda o, x, y: o.multiply(*o.split(x, 2, 1)))  # fmt: skip
both_ways("transpose", lambda x, y: tf.transpose(x, [0, 3, 1, 2]),
          lambda o, x, y: o.transpose(x, [0, 3, 1, 2]))  # fmt: skip
both_ways(
    "reshape", lambda x, y: tf.reshape(x, [-1, 8, 24]), lambda o, x, y: o.reshape(x, [-1, 8, 24])
)
both_ways("expand", lambda x, y: tf.squeeze(tf.expand_dims(x, 1), 1),
          lambda o, x, y: o.squeeze(o.expand_dims(x, 1), 1))  # fmt: skip
both_ways("pad", lambda x, y: tf.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]),
          lambda o, x, y: o.pad(x, [[0, 0], [1, 0], [0, 2], [0, 0]]))  # fmt: skip
both_ways(
    "resize", lambda x, y: tf.image.resize(x, (9, 5)), lambda o, x, y: o.image.resize(x, (9, 5))
)
both_ways("resize_nearest", lambda x, y: tf.image.resize(x, (9, 5), "nearest"),
          lambda o, x, y: o.image.resize(x, (9, 5), "nearest"))  # fmt: skip
both_ways("cast", lambda x, y: tf.cast(x, "float32") + 1, lambda o, x, y: o.cast(x, "float32") + 1)
case("ops_swap", lambda k, x, y: k.ops.swapaxes(k.ops.moveaxis(x, 3, 1), 2, 3), only="keras")
case("tf_add_n", lambda k, x, y: tf.add_n([x, y]), only="tf_keras")
case("tf_bias", lambda k, x, y: tf.nn.bias_add(x, np.float32([1, 2, 3, 4])), only="tf_keras")
case("item", lambda k, x, y: x[:, 1:])
case("item_steps", lambda k, x, y: x[:, ::2, 1:-1, :3])
case("item_one", lambda k, x, y: x[..., 0])
case("item_new", lambda k, x, y: x[:, None, 2:5, -1])

# Pooling, reductions and moves

for _n, _rank in ((1, "line"), (2, "image")):
    for _kind in ("Max", "Average"):
        layer(f"{_kind}Pooling{_n}D", 2, rank=_rank)
        layer(f"{_kind}Pooling{_n}D", 3, strides=2, padding="same", rank=_rank,
              label=f"{_kind}Pooling{_n}D_same")  # fmt: skip
for _n, _rank in ((1, "line"), (2, "image"), (3, "volume")):
    for _kind in ("Max", "Average"):
        layer(f"Global{_kind}Pooling{_n}D", rank=_rank)
        layer(f"Global{_kind}Pooling{_n}D", keepdims=True, rank=_rank,
              label=f"Global{_kind}Pooling{_n}D_keep")  # fmt: skip
    layer(f"ZeroPadding{_n}D", 2, rank=_rank)
    layer(f"Cropping{_n}D", 1, rank=_rank)
    layer(f"UpSampling{_n}D", 2, rank=_rank)
layer("ZeroPadding2D", ((1, 0), (2, 3)), label="ZeroPadding2D_uneven")
layer("Cropping2D", ((1, 0), (2, 3)), label="Cropping2D_uneven")
layer("UpSampling2D", (3, 2), label="UpSampling2D_uneven")
layer("UpSampling2D", (2, 3), interpolation="bilinear", label="UpSampling2D_bilinear")
layer("Resizing", 4, 10)
layer("Resizing", 12, 4, interpolation="nearest", label="Resizing_nearest")
layer("CenterCrop", 4, 5)
layer("Flatten")
layer("Reshape", (8, 24))
layer("Reshape", (-1, 2), rank="vector", label="Reshape_vector")
layer("Permute", (3, 1, 2))
layer("RepeatVector", 3, rank="vector")
layer("Rescaling", 1 / 3, offset=-0.5)
layer("Rescaling", [0.5, 1, 2, -1], label="Rescaling_channels")
layer("Normalization", mean=[0, 1, 2, -1], variance=[1, 2, 4, 0.01])
layer("Normalization", mean=0.5, variance=4, axis=None, rank="vector", label="Normalization_one")
case("squeeze_and_excite", lambda k, x, y: k.layers.Multiply()([x, _gate(k.layers, x)]))


def _gate(layers: Any, x: Any) -> Any:
    y = layers.Reshape((1, 1, 4))(layers.GlobalAveragePooling2D()(x))
    y = layers.Conv2D(2, 1, activation="swish")(y)
    return layers.Conv2D(4, 1, activation="sigmoid")(y)


def _groups(size: int = 16) -> dict[str, list[str]]:
    """Cases of one rank and one Keras together, a few at a time."""
    groups: dict[str, list[str]] = {}
    key = lambda name: (CASES[name].rank, CASES[name].only or "")  # noqa: E731
    for (rank, only), names in itertools.groupby(sorted(CASES, key=key), key):
        members = list(names)
        for start in range(0, len(members), size):
            groups[f"{rank}{only and '_' + only}_{start // size}"] = members[start : start + size]
    return groups


GROUPS = _groups()


def build(keras: Any, names: list[str]) -> Any:
    """A model with a branch, and an output, for every case."""
    layers = keras.layers
    inputs = keras.Input(SHAPES[CASES[names[0]].rank], name="x")
    outputs = []
    for name in names:
        tensors = {}
        for which in CASES[name].branches:
            x = layers.Dense(inputs.shape[-1], name=f"{name}_{which}_host")(inputs)
            tensors[which] = layers.BatchNormalization(name=f"{name}_{which}_bn")(x)
        result = CASES[name].apply(keras, tensors["a"], tensors.get("b"))
        outputs += tf.nest.flatten(result)
    return keras.Model(inputs, outputs)


@both
@pytest.mark.parametrize("group", GROUPS)
def test_operations(group: str, flavour: str, tmp_path: Path) -> None:
    names = [name for name in GROUPS[group] if CASES[name].only in (None, flavour)]
    if not names:
        pytest.skip("the other Keras only")
    plan = run(names, flavour, tmp_path)
    assert plan.float_layers == ()


def run(names: list[str], flavour: str, path: Path) -> Any:
    """All checks for some cases."""
    expected = {
        f"{name}_{which}_bn": f"{name}_{which}_host"
        for name in names
        for which in CASES[name].branches
    }
    return everything(
        flavour,
        lambda keras: build(keras, names),
        expected,
        path,
        dead=False,
        steps=2,
        folded=False,
    )
