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
both_ways(
    "split_empty",
    lambda x, y: tf.concat(tf.split(x, [2, 0, x.shape[-1] - 2], -1), -1),
    lambda o, x, y: o.concatenate(o.split(x, [2, 2], -1), -1),
)
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
for _mode in ("reflect", "symmetric"):
    both_ways(f"pad_{_mode}", lambda x, y, m=_mode: tf.pad(x, [[0, 0], [2, 1], [0, 2], [0, 0]], m),
              lambda o, x, y, m=_mode: o.pad(x, [[0, 0], [2, 1], [0, 2], [0, 0]], m))  # fmt: skip
    case(f"pad_{_mode}_Lambda", lambda k, x, y, m=_mode: k.layers.Lambda(
        lambda t: tf.pad(t, [[0, 0], [2, 1], [0, 2], [0, 0]], m))(x))  # fmt: skip
for _aligned in (False, True):
    for _method in ("bilinear", "nearest_neighbor"):
        case(f"resize_{_method}_{_aligned}", lambda k, x, y, m=_method, a=_aligned:
             k.layers.Lambda(lambda t: getattr(tf.compat.v1.image, f"resize_{m}")(
                 t, (9, 13), align_corners=a))(x))  # fmt: skip
case("tf_resize_aligned", lambda k, x, y: tf.compat.v1.image.resize(
    x, (9, 13), method="bilinear", align_corners=True), only="tf_keras")  # fmt: skip
both_ways("cast", lambda x, y: tf.cast(x, "float32") + 1, lambda o, x, y: o.cast(x, "float32") + 1)
both_ways("min", lambda x, y: tf.reduce_min(x, [1, 2]), lambda o, x, y: o.min(x, [1, 2]))
both_ways("argmax", lambda x, y: tf.argmax(x, -1), lambda o, x, y: o.argmax(x, -1))
both_ways("argmin", lambda x, y: tf.math.argmin(x, 1, tf.int32),
          lambda o, x, y: o.argmin(x, 1, keepdims=True))  # fmt: skip
case("argmax_backend", lambda k, x, y: k.backend.argmax(x), only="tf_keras")
case("argmax_old", lambda k, x, y: tf.compat.v1.argmax(x, 2), only="tf_keras")
case("argmax_Lambda", lambda k, x, y: k.layers.Lambda(lambda t: tf.argmax(t, 2))(x))
case("argmin_Lambda", lambda k, x, y: k.layers.Lambda(lambda t: k.ops.argmin(t, 2))(x),
     only="keras")  # fmt: skip
both_ways("argmax_moved", lambda x, y: tf.cast(tf.argmax(x, -1), tf.int32)[:, 1:, None],
          lambda o, x, y: o.cast(o.argmax(x, -1), "int64")[:, 1:, None])  # fmt: skip
both_ways("argmax_beside", lambda x, y: tf.stack([tf.argmax(x, -1), tf.argmin(y, -1)], 1),
          lambda o, x, y: o.stack([o.argmax(x, -1), o.argmin(y, -1)], 1))  # fmt: skip
both_ways("abs", lambda x, y: tf.abs(x), lambda o, x, y: o.abs(x))
both_ways("exp", lambda x, y: tf.exp(x), lambda o, x, y: o.exp(x))
both_ways(
    "log", lambda x, y: tf.math.log(tf.nn.relu(x) + 1.0), lambda o, x, y: o.log(o.relu(x) + 1.0)
)
both_ways(
    "sqrt", lambda x, y: tf.sqrt(tf.nn.relu(x) + 0.5), lambda o, x, y: o.sqrt(o.relu(x) + 0.5)
)
both_ways("sqrt_of_a_square", lambda x, y: tf.math.sqrt(x * x + y * y + 0.1),
          lambda o, x, y: o.sqrt(x * x + y * y + 0.1))  # fmt: skip
both_ways("rsqrt", lambda x, y: tf.math.rsqrt(tf.nn.relu(x) + 0.5),
          lambda o, x, y: o.rsqrt(o.relu(x) + 0.5))  # fmt: skip
both_ways("rsqrt_divided", lambda x, y: 1 / tf.sqrt(tf.nn.relu(x) + 0.5),
          lambda o, x, y: 1.0 / o.sqrt(o.relu(x) + 0.5))  # fmt: skip
both_ways("rsqrt_power", lambda x, y: (tf.nn.relu(x) + 0.5) ** -0.5,
          lambda o, x, y: o.power(o.relu(x) + 0.5, -0.5))  # fmt: skip
case("rsqrt_Lambda", lambda k, x, y: k.layers.Lambda(tf.math.rsqrt)(k.layers.ReLU()(x) + 0.5))
both_ways("unit", lambda x, y: tf.math.l2_normalize(x, -1), lambda o, x, y: o.normalize(x, -1))
both_ways("unit_rows", lambda x, y: tf.nn.l2_normalize(x, -2), lambda o, x, y: o.normalize(x, 2))
case("UnitNormalization_rows", lambda k, x, y: k.layers.UnitNormalization(1)(x))
case("tf_squared_difference", lambda k, x, y: tf.math.squared_difference(x, y), only="tf_keras")
both_ways("unstack", lambda x, y: tf.unstack(x, axis=2)[1], lambda o, x, y: o.unstack(x, axis=2)[1])
both_ways("tile", lambda x, y: tf.tile(x, [1, 2, 1, 3]), lambda o, x, y: o.tile(x, [1, 2, 1, 3]))
both_ways("repeat", lambda x, y: tf.repeat(x, 2, axis=2), lambda o, x, y: o.repeat(x, 2, axis=2))
both_ways("repeat_some", lambda x, y: tf.repeat(x, [1, 0, 3, 1], axis=-1),
          lambda o, x, y: o.repeat(x, [1, 0, 3, 1], axis=-1))  # fmt: skip
both_ways("repeat_samples", lambda x, y: tf.reshape(tf.repeat(x, 3, axis=0), (-1, 18, 8, 4)),
          lambda o, x, y: o.reshape(o.repeat(x, 3, axis=0), (-1, 18, 8, 4)))  # fmt: skip
both_ways("repeat_samples_once", lambda x, y: tf.repeat(x, 1, axis=0),
          lambda o, x, y: o.repeat(x, 1, axis=0))  # fmt: skip
both_ways("gather", lambda x, y: tf.gather(x, [3, 0, 1, 1], axis=-1),
          lambda o, x, y: o.take(x, [3, 0, 1, -3], axis=-1))  # fmt: skip
both_ways("reverse", lambda x, y: tf.reverse(x, [1]), lambda o, x, y: o.flip(x, 1))
both_ways("roll", lambda x, y: tf.roll(x, 3, 2), lambda o, x, y: o.roll(x, 3, 2))
both_ways("depth", lambda x, y: tf.nn.depth_to_space(x, 2),
          lambda o, x, y: o.reshape(o.transpose(o.reshape(x, (-1, 6, 8, 2, 2)), (0, 1, 3, 2, 4)),
                                    (-1, 12, 16)))  # fmt: skip
both_ways("patches", lambda x, y: tf.image.extract_patches(
    x, [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1], "VALID"),
    lambda o, x, y: o.image.extract_patches(x, 2))  # fmt: skip
for _name, (_size, _strides, _rates, _padding) in {
    "overlapping": ([3, 3], [1, 1], [1, 1], "SAME"),
    "apart": ([2, 3], [3, 4], [1, 1], "VALID"),
    "uneven": ([4, 3], [3, 2], [1, 1], "SAME"),
    "dilated": ([2, 3], [1, 1], [2, 3], "SAME"),
    "cut": ([4, 4], [4, 4], [1, 1], "VALID"),
    "beyond": ([4, 4], [4, 4], [1, 1], "SAME"),
}.items():
    both_ways(
        f"patches_{_name}",
        lambda x, y, n=_size, s=_strides, r=_rates, p=_padding: tf.image.extract_patches(
            images=x, sizes=[1, *n, 1], strides=[1, *s, 1], rates=[1, *r, 1], padding=p),
        lambda o, x, y, n=_size, s=_strides, r=_rates, p=_padding: o.image.extract_patches(
            x, n, s, r, p.lower()))  # fmt: skip
    case(f"patches_{_name}_Lambda", lambda k, x, y, n=_size, s=_strides, r=_rates, p=_padding:
         k.layers.Lambda(lambda t: tf.image.extract_patches(
             t, [1, *n, 1], [1, *s, 1], [1, *r, 1], p))(x))  # fmt: skip
case("patches_old", lambda k, x, y: tf.compat.v1.extract_image_patches(
    x, [1, 3, 3, 1], [1, 2, 1, 1], [1, 1, 1, 1], "SAME"), only="tf_keras")  # fmt: skip
both_ways("patches_volume", lambda x, y: tf.extract_volume_patches(
    x, [1, 2, 3, 2, 1], [1, 1, 2, 1, 1], "SAME"),
    lambda o, x, y: o.image.extract_patches(x, (2, 3, 2), (1, 2, 1), padding="same"),
    "volume")  # fmt: skip
case("patches_volume_Lambda", lambda k, x, y: k.layers.Lambda(lambda t: tf.extract_volume_patches(
    t, [1, 2, 3, 2, 1], [1, 1, 2, 1, 1], "SAME"))(x), "volume")  # fmt: skip
both_ways("max_pool", lambda x, y: tf.nn.max_pool2d(x, 2, 1, "SAME"),
          lambda o, x, y: o.max_pool(x, 2, 1, "same"))  # fmt: skip
both_ways("average_pool", lambda x, y: tf.nn.avg_pool2d(x, (3, 2), 2, "SAME"),
          lambda o, x, y: o.average_pool(x, (3, 2), 2, "same"))  # fmt: skip
for _name in ("depth_to_space", "space_to_depth"):
    case(f"{_name}_Lambda", lambda k, x, y, f=_name: k.layers.Lambda(
        lambda t: getattr(tf.nn, f)(t, 2))(x))  # fmt: skip
both_ways("matmul", lambda x, y: tf.matmul(x, y, transpose_b=True),
          lambda o, x, y: o.matmul(x, o.transpose(y, [0, 2, 1])), "line")  # fmt: skip
both_ways("matmul_image", lambda x, y: tf.matmul(x, y, transpose_a=True),
          lambda o, x, y: o.matmul(o.swapaxes(x, 2, 3), y))  # fmt: skip
for _name, _equation in {"scores": "bqc,bkc->bqk", "channels": "bqc,bqd->bcd",
                         "crossed": "bqc,bkc->bkq"}.items():  # fmt: skip
    both_ways(f"einsum_{_name}", lambda x, y, e=_equation: tf.einsum(e, x, y),
              lambda o, x, y, e=_equation: o.einsum(e, x, y), "line")  # fmt: skip
both_ways("einsum_heads", lambda x, y: tf.einsum("bqhc,bkhc->bhqk", x, y),
          lambda o, x, y: o.einsum("bqhc,bkhc->bhqk", x, y))  # fmt: skip
both_ways("einsum_values", lambda x, y: tf.einsum(
    "bhqk,bkhc->bqhc", tf.einsum("bqhc,bkhc->bhqk", x, y), y),
    lambda o, x, y: o.einsum("bhqk,bkhc->bqhc", o.einsum("bqhc,bkhc->bhqk", x, y), y))  # fmt: skip
case("Dot", lambda k, x, y: k.layers.Dot(2)([x, y]), "line")
case("Dot_axes", lambda k, x, y: k.layers.Dot((1, -2))([x, y]), "line")
case("Dot_vectors", lambda k, x, y: k.layers.Dot(1)([x, y]), "vector")


def _attention(k: Any, x: Any, y: Any) -> Any:
    """Scaled dot-product attention, written out."""
    scores = k.layers.Dot((2, 2))([k.layers.Dense(4)(x), k.layers.Dense(4)(y)]) * 0.5
    return k.layers.Dot((2, 1))([k.layers.Softmax()(scores), k.layers.Dense(4)(y)])


case("attention_written", _attention, "line", inner=lambda x, y: y)
case("MultiHeadAttention", lambda k, x, y: k.layers.MultiHeadAttention(2, 3)(x, y),
     "line")  # fmt: skip
case("MultiHeadAttention_scores", lambda k, x, y: k.layers.MultiHeadAttention(1, 3)(
    x, value=x, return_attention_scores=True), "line")  # fmt: skip
case("MultiHeadAttention_image", lambda k, x, y: k.layers.MultiHeadAttention(2, 3)(x, y))
case("MultiHeadAttention_image_scores", lambda k, x, y: k.layers.MultiHeadAttention(
    2, 3, output_shape=5)(x, value=x[:, :2, :2], return_attention_scores=True), only="tf_keras")  # fmt: skip
case("Attention", lambda k, x, y: k.layers.Attention()([x, y]), "line")
case("Attention_scaled", lambda k, x, y: k.layers.Attention(use_scale=True)([x, y]), "line")
case("Attention_concat", lambda k, x, y: k.layers.Attention(score_mode="concat")([x, y]), "line")
case("AdditiveAttention_scaled", lambda k, x, y: k.layers.AdditiveAttention()([x, y]), "line")
case("AdditiveAttention", lambda k, x, y: k.layers.AdditiveAttention(use_scale=False)([x, y]),
     "line")  # fmt: skip
case("dot_product_attention", lambda k, x, y: k.ops.dot_product_attention(x, y, y, scale=0.3),
     only="keras")  # fmt: skip
case("EinsumDense_heads", lambda k, x, y: k.layers.EinsumDense(
    "abc,cde->abde", (10, 2, 3), bias_axes="e", activation="relu")(x), "line")  # fmt: skip
for _inner in ("MaxPooling1D", "GlobalAveragePooling1D", "Flatten", "ReLU"):
    case(f"TimeDistributed_{_inner}", lambda k, x, y, i=_inner: k.layers.TimeDistributed(
        getattr(k.layers, i)())(x))  # fmt: skip
case("ops_swap", lambda k, x, y: k.ops.swapaxes(k.ops.moveaxis(x, 3, 1), 2, 3), only="keras")
case("tf_add_n", lambda k, x, y: tf.add_n([x, y]), only="tf_keras")
case("tf_bias", lambda k, x, y: tf.nn.bias_add(x, np.float32([1, 2, 3, 4])), only="tf_keras")
case("item", lambda k, x, y: x[:, 1:])
case("item_steps", lambda k, x, y: x[:, ::2, 1:-1, :3])
case("item_one", lambda k, x, y: x[..., 0])
case("item_new", lambda k, x, y: x[:, None, 2:5, -1])

# Functions written out: in the model, given to a layer, inside a layer of the user's.

_ERF, _TANH = np.float32(np.sqrt(2)), float(np.sqrt(2 / np.pi))
WRITTEN: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "hard_swish": (lambda x: x * tf.nn.relu6(x + 3) / 6, lambda o, x: x * o.relu6(x + 3) / 6),
    "hard_swish_clip": (
        lambda x: tf.clip_by_value(3.0 + x, 0, 6) * 0.16667 * x,
        lambda o, x: o.clip(3.0 + x, 0, 6) * 0.16667 * x,
    ),
    "hard_sigmoid": (lambda x: tf.nn.relu6(x + 3) / 6, lambda o, x: o.relu6(x + 3) / 6),
    "hard_sigmoid_fifth": (
        lambda x: tf.clip_by_value(0.2 * x + 0.5, 0, 1),
        lambda o, x: o.clip(0.2 * x + 0.5, 0, 1),
    ),
    "swish": (lambda x: x * tf.sigmoid(x), lambda o, x: x * o.sigmoid(x)),
    "swish_exp": (lambda x: x / (1 + tf.exp(-x)), lambda o, x: x / (1 + o.exp(-x))),
    "quick_gelu": (lambda x: x * tf.sigmoid(1.702 * x), lambda o, x: x * o.sigmoid(1.702 * x)),
    "gelu_erf": (
        lambda x: 0.5 * x * (1 + tf.math.erf(x / _ERF)),
        lambda o, x: 0.5 * x * (1 + o.erf(x / float(_ERF))),
    ),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + tf.tanh(_TANH * (x + 0.044715 * tf.pow(x, 3)))),
        lambda o, x: 0.5 * x * (1 + o.tanh(_TANH * (x + 0.044715 * o.power(x, 3)))),
    ),
    "leaky": (lambda x: tf.where(x > 0, x, 0.1 * x), lambda o, x: o.where(x > 0, x, 0.1 * x)),
    "elu": (
        lambda x: tf.where(x > 0, x, tf.exp(x) - 1),
        lambda o, x: o.where(x > 0, x, o.exp(x) - 1),
    ),
}


def _user_layer(k: Any, function: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    """A layer of the user's: ``function(x)``, or of as many variables, too."""

    class Own(k.layers.Layer):  # type: ignore[name-defined]
        def build(self, _: Any) -> None:
            self.values = [
                self.add_weight(name=f"values_{i}", shape=shape,
                                initializer=k.initializers.RandomUniform(-0.5, 1.0, seed=3 + i))
                for i, shape in enumerate(shapes)
            ]  # fmt: skip

        def call(self, x: Any) -> Any:
            return function(x, *self.values)

    return Own()


def _relative(logits: Any, places: int) -> Any:
    """(rows, places, 2 * places - 1), by distances, as (rows, places, places), by places."""
    flat = tf.reshape(logits, (-1, places * (2 * places - 1)))[:, places - 1 : -1]
    return tf.reshape(flat, (-1, places, 2 * places - 2))[:, :, :places]


for _name, (_tf, _ops) in WRITTEN.items():
    both_ways(f"{_name}_written", lambda x, y, f=_tf: f(x), lambda o, x, y, f=_ops: f(o, x))
    for _where in ("Activation", "Lambda"):
        case(f"tf_{_name}_{_where}", lambda k, x, y, f=_tf, w=_where: getattr(k.layers, w)(f)(x),
             only="tf_keras")  # fmt: skip
        case(f"ops_{_name}_{_where}", lambda k, x, y, f=_ops, w=_where: getattr(k.layers, w)(
            lambda t: f(k.ops, t))(x), only="keras")  # fmt: skip
    case(f"tf_{_name}_own", lambda k, x, y, f=_tf: _user_layer(k, f)(x), only="tf_keras")
    case(f"ops_{_name}_own", lambda k, x, y, f=_ops: _user_layer(
        k, lambda t: f(k.ops, t))(x), only="keras")  # fmt: skip
for _name in ("hard_swish", "gelu_erf", "leaky"):
    # TensorFlow's functions in Keras 3, too, where they can only stand inside a layer.
    case(
        f"{_name}_inside", lambda k, x, y, f=WRITTEN[_name][0]: k.layers.Lambda(f)(x), only="keras"
    )
    case(f"Conv2D_{_name}_written", lambda k, x, y, f=WRITTEN[_name][0]: k.layers.Conv2D(
        3, 2, activation=f)(x))  # fmt: skip
case("layer_scale", lambda k, x, y: _user_layer(k, lambda t, v: t * v, (4,))(x))
case("layer_scale_first", lambda k, x, y: _user_layer(k, lambda t, v: v * t, (1, 1, 1, 4))(x))
case("layer_shift", lambda k, x, y: _user_layer(k, lambda t, v: t - v, (4,))(x))
case("layer_affine", lambda k, x, y: _user_layer(k, lambda t, v: t * v[0] + v[1], (2, 4))(x))
case("layer_twice", lambda k, x, y: _user_layer(k, lambda t, v: (t * v + 1) * 0.5, (4,))(x))
case("position", lambda k, x, y: _user_layer(k, lambda t, v: t + v, (1, 10, 4))(x), "line")
_PLACES = np.random.default_rng(0).integers(0, 12, (6, 8))
_WAVES = np.random.default_rng(1).normal(size=(6, 8, 5)).astype(np.float32)
case("position_gathered", lambda k, x, y: _user_layer(
    k, lambda t, v: t + k.ops.take(v, _PLACES, axis=0), (12, 4))(x), only="keras")  # fmt: skip
case("tf_position_gathered", lambda k, x, y: _user_layer(
    k, lambda t, v: t + tf.gather(v, _PLACES), (12, 4))(x), only="tf_keras")  # fmt: skip
case("position_projected", lambda k, x, y: _user_layer(
    k, lambda t, v: t + k.ops.matmul(_WAVES, v), (5, 4))(x), only="keras")  # fmt: skip
case("tf_position_projected", lambda k, x, y: _user_layer(
    k, lambda t, v: t + tf.einsum("hwa,ac->hwc", _WAVES, v), (5, 4))(x), only="tf_keras")  # fmt: skip
case("relative_positions", lambda k, x, y: _user_layer(
    k, lambda t, v: tf.reshape(_relative(tf.matmul(tf.reshape(t, (-1, 6, 4)), v), 6), (-1, 8, 6, 6)),
    (4, 11))(k.layers.Permute((2, 1, 3))(x)))  # fmt: skip
case("class_token_and_places", lambda k, x, y: _user_layer(k, lambda t, v, w: tf.concat(
    [tf.repeat(v, tf.shape(t)[0], 0), t], 1) + w, (1, 1, 4), (1, 11, 4))(x), "line")  # fmt: skip
case("ops_class_token_and_places", lambda k, x, y: _user_layer(
    k, lambda t, v, w: k.ops.add(k.ops.concatenate(
        [k.ops.tile(v, [k.ops.shape(t)[0], 1, 1]), t], axis=1), w),
    (1, 1, 4), (1, 11, 4))(x), "line", only="keras")  # fmt: skip
case("products_inside", lambda k, x, y: _user_layer(k, lambda t, v: tf.matmul(
    t * v, tf.nn.softmax(tf.einsum("bqc,bkc->bqk", t, t)), transpose_a=True),
    (4,))(x), "line")  # fmt: skip
case("position_image", lambda k, x, y: _user_layer(k, lambda t, v: t + v, (6, 8, 4))(x))

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
layer("UnitNormalization")
layer("Rescaling", 1 / 3, offset=-0.5)
layer("Rescaling", [0.5, 1, 2, -1], label="Rescaling_channels")
layer("Normalization", mean=[0, 1, 2, -1], variance=[1, 2, 4, 0.01])
layer("Normalization", mean=0.5, variance=4, axis=None, rank="vector", label="Normalization_one")
case("squeeze_and_excite", lambda k, x, y: k.layers.Multiply()([x, _gate(k.layers, x)]))


def _gate(layers: Any, x: Any) -> Any:
    y = layers.Reshape((1, 1, 4))(layers.GlobalAveragePooling2D()(x))
    y = layers.Conv2D(2, 1, activation="swish")(y)
    return layers.Conv2D(4, 1, activation="sigmoid")(y)


# Functions of a number that LiteRT has no operator for, and products with steep ones.
for _name in ("cos", "sin", "erf"):
    both_ways(f"function_{_name}", lambda x, y, f=_name: getattr(tf.math, f)(x),
              lambda o, x, y, f=_name: getattr(o, f)(x))  # fmt: skip
both_ways("function_softplus", lambda x, y: tf.nn.softplus(x), lambda o, x, y: o.softplus(x))
both_ways("function_power", lambda x, y: (tf.nn.relu(x) + 0.1) ** 1.5,
          lambda o, x, y: o.power(o.relu(x) + 0.1, 1.5))  # fmt: skip
both_ways("function_guarded_root", lambda x, y: tf.sqrt(tf.nn.relu(x) + 0.01),
          lambda o, x, y: o.sqrt(o.relu(x) + 0.01))  # fmt: skip
both_ways("function_of_both", lambda x, y: tf.cos(x) * 2.0 + y,
          lambda o, x, y: o.cos(x) * 2.0 + y)  # fmt: skip
for _name in ("softsign", "softplus", "selu", "mish"):
    case(f"function_{_name}_Activation", lambda k, x, y, n=_name: k.layers.Activation(n)(x))
    case(f"function_{_name}_host", lambda k, x, y, n=_name: k.layers.Conv2D(
        3, 2, activation=n)(x))  # fmt: skip
layer("ELU", 0.5, label="function_ELU")
case("function_Lambda", lambda k, x, y: k.layers.Lambda(lambda t: tf.sin(t) * t + 1)(x))
case("divide_tensors", lambda k, x, y: x / (k.layers.ReLU()(y) + 0.3))
case("divide_number_by", lambda k, x, y: 3.0 / (k.layers.ReLU()(x) + 0.3))
case("divide_guarded", lambda k, x, y: x / (
    k.layers.GlobalAveragePooling2D(keepdims=True)(y * y) + 1e-6))  # fmt: skip
case("divide_Lambda", lambda k, x, y: k.layers.Lambda(lambda t: t[0] / (t[1] * t[1] + 0.2))([x, y]))
both_ways("divide_root", lambda x, y: x / tf.sqrt(tf.reduce_mean(y * y, -1, keepdims=True) + 0.1),
          lambda o, x, y: x / o.sqrt(o.mean(y * y, -1, keepdims=True) + 0.1))  # fmt: skip
both_ways("divide_rsqrt", lambda x, y: x * tf.math.rsqrt(tf.reduce_mean(y * y, 1, True) + 0.1),
          lambda o, x, y: x * o.rsqrt(o.mean(y * y, 1, True) + 0.1), "line")  # fmt: skip


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
