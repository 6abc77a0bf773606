"""Networks with layers that have no integer form, between convolutions: for tests of islands.

Each function takes a Keras and a float tensor of shape (batch, 6, 4, 8), and returns one of rank 4.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

import builders
from no_integers import ACTIVATION, cosine, sine

SIZE, CHANNELS = (6, 4), 8


def _steps(k: Any, x: Any) -> Any:
    return k.layers.Reshape((24, CHANNELS))(x)


def _image(k: Any, x: Any) -> Any:
    return k.layers.Reshape((*SIZE, CHANNELS))(x)


def layer_of(k: Any, function: Any, shapes: Any = None, **config: Any) -> Any:
    """A layer of a user's: ``function(*inputs)``; ``shapes``: of its outputs, without the batch."""

    class Odd(k.layers.Layer):  # type: ignore[name-defined]
        def call(self, inputs: Any, training: Any = None) -> Any:
            # What asks whether it trains is not opened.
            given = inputs if isinstance(inputs, (list, tuple)) else [inputs]
            return function(*given)

        def compute_output_shape(self, shape: Any) -> Any:
            if shapes is None:
                return shape[0] if isinstance(shape[0], (list, tuple)) else shape
            several = isinstance(shapes, list)
            batch = (shape[0][0] if isinstance(shape[0], (list, tuple)) else shape[0],)
            return [(*batch, *s) for s in shapes] if several else (*batch, *shapes)

    return Odd(**config)


def gru(k: Any, x: Any) -> Any:
    x = k.layers.GRU(CHANNELS, "log_softmax", return_sequences=True, name="gru")(_steps(k, x))
    return _image(k, x)


def lstm(k: Any, x: Any) -> Any:
    x = k.layers.LSTM(CHANNELS, "log_softmax", return_sequences=True, name="lstm")(_steps(k, x))
    return _image(k, x)


def bidirectional(k: Any, x: Any) -> Any:
    lstm = k.layers.LSTM(4, "log_softmax", return_sequences=True)
    x = k.layers.Bidirectional(lstm, name="both_ways")(_steps(k, x))
    return _image(k, k.layers.Permute((1, 2))(x))


def odd(k: Any, x: Any) -> Any:
    return layer_of(k, lambda t: sine(t) + tf.cumsum(t, axis=1) * 0.1, name="odd")(x)


def two_outputs(k: Any, x: Any) -> Any:
    half = [(*SIZE, 4), (*SIZE, 4)]
    split = layer_of(k, lambda t: [sine(t[..., 4:]), tf.exp(-(t[..., :4] ** 2))], half, name="two")
    a, b = split(x)
    a = k.layers.ReLU()(a)
    return k.layers.Concatenate()([a, b])


def two_islands(k: Any, x: Any) -> Any:
    """The second reads what the first made, beside an integer tensor that comes of it."""
    first = layer_of(k, sine, name="first")(x)
    y = layer_of(k, cosine, name="also_first")(first)
    y = builders.conv_bn_relu(k.layers, y, "between", CHANNELS)
    y = layer_of(k, lambda a, b: cosine(a) * b, name="second")([y, first])
    return k.layers.Add()([x, y])


def attention(k: Any, x: Any) -> Any:
    """Of relative positions: products of matrices, a softmax, transposes."""
    heads, width = 2, 4

    def attend(q: Any, key: Any, v: Any) -> Any:
        scores = tf.matmul(q, key, transpose_b=True) * width**-0.5
        places = tf.range(24)
        bias = tf.cast(places[:, None] - places[None, :], tf.float32) * 0.02
        shares = tf.exp(tf.nn.log_softmax(scores + bias, axis=-1))  # which has no integer form
        y = tf.matmul(shares, v)
        return tf.transpose(y, [0, 2, 1, 3])

    def split(t: Any) -> Any:
        return k.layers.Permute((2, 1, 3))(k.layers.Reshape((24, heads, width))(t))

    x = _steps(k, x)
    parts = [split(k.layers.Dense(CHANNELS, name=name)(x)) for name in ("q", "k", "v")]
    y = layer_of(k, attend, (24, heads, width), name="attend")(parts)
    y = k.layers.Dense(CHANNELS, name="project")(k.layers.Reshape((24, CHANNELS))(y))
    return _image(k, k.layers.Add()([x, y]))


def multi_head(k: Any, x: Any) -> Any:
    x = _steps(k, x)
    seen = k.layers.Lambda(lambda t: t[:, :, :1] > -0.5, output_shape=(24, 1), name="seen")(x)
    y = k.layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")(
        query=x, value=x, attention_mask=seen
    )
    y = k.layers.Permute((2, 1))(y)
    return _image(k, k.layers.Permute((2, 1))(y))


def group_norm(k: Any, x: Any) -> Any:
    y = k.layers.GroupNormalization(2, axis=1, name="groups")(x)
    gate = k.layers.GlobalAveragePooling2D(keepdims=True)(y)
    return k.layers.Multiply()([x, gate])


def shares(k: Any, x: Any) -> Any:
    y = k.layers.Activation(ACTIVATION, name="shares")(x)
    return k.layers.Permute((1, 2, 3))(k.layers.Conv2D(CHANNELS, 1, name="pointwise")(y))


def windows(size: int) -> Any:
    """Attention in windows of 6 x ``size``: the windows join the batch, 4 / ``size`` to a sample.

    With sines and logarithms of a softmax, which have no integer form.
    """

    def build(k: Any, x: Any) -> Any:
        count = SIZE[1] // size

        def apart(t: Any) -> Any:
            t = tf.reshape(t, [-1, SIZE[0], count, size, CHANNELS])
            t = tf.transpose(t, [0, 2, 1, 3, 4])
            return sine(tf.reshape(t, [-1, SIZE[0] * size, CHANNELS]))

        def together(t: Any) -> Any:
            t = tf.reshape(t, [-1, count, SIZE[0], size, CHANNELS])
            return sine(tf.reshape(tf.transpose(t, [0, 2, 1, 3, 4]), [-1, *SIZE, CHANNELS]))

        def attend(a: Any) -> Any:
            shares = tf.exp(tf.nn.log_softmax(tf.matmul(a, a, transpose_b=True)))
            return tf.matmul(shares, a)

        places = SIZE[0] * size
        y = layer_of(k, apart, (places, CHANNELS), name="apart")(x)
        y = k.layers.Dense(CHANNELS, activation="relu", name="wide")(y)
        y = layer_of(k, attend, (places, CHANNELS), name="attend")(y)
        y = k.layers.Dense(CHANNELS, name="narrow")(y)
        y = layer_of(k, together, (*SIZE, CHANNELS), name="together")(y)
        return k.layers.Add()([x, y])

    return build


def shared(k: Any, x: Any) -> Any:
    dense = k.layers.Dense(CHANNELS, activation=ACTIVATION, name="shared")
    a = dense(x)
    b = dense(k.layers.ReLU()(k.layers.Conv2D(CHANNELS, 1, name="other")(x)))
    return k.layers.Add()([a, b])


def shared_layer(k: Any, x: Any) -> Any:
    rows = k.layers.SimpleRNN(CHANNELS, "log_softmax", return_sequences=True, unroll=True)
    layer = k.layers.TimeDistributed(rows, name="shared")
    return k.layers.Add()([layer(x), layer(k.layers.MaxPooling2D(3, 1, padding="same")(x))])


def adjacent(k: Any, x: Any) -> Any:
    y = layer_of(k, sine, name="one")(x)
    z = layer_of(k, lambda a, b: (a + 1) * cosine(b), name="three")(
        [y, layer_of(k, sine, name="two")(y)]
    )
    return k.layers.Add()([x, z])


def unchanged(k: Any, x: Any) -> Any:
    y = layer_of(k, tf.identity, name="same")(x)
    a, b = layer_of(k, lambda t: [t, t], [(*SIZE, CHANNELS)] * 2, name="twice")(x)
    c, d = layer_of(k, lambda t: [sine(t)] * 2, [(*SIZE, CHANNELS)] * 2, name="sines")(x)
    return k.layers.Concatenate()([k.layers.ReLU()(y), a, k.layers.ReLU()(b), c, d])


def unread(k: Any, x: Any) -> Any:
    y = k.layers.Conv2D(CHANNELS, 1, name="for_nothing")(x)
    return layer_of(k, lambda a, b, c: sine(c) - tf.exp(b), name="second_and_third")([y, x, x])


def constant(k: Any, x: Any) -> Any:
    """Outputs that do not depend on the input: of its shape, and of one sample."""
    places = tf.reshape(tf.sin(tf.range(192.0)), [1, *SIZE, CHANNELS])
    a = layer_of(k, lambda t: tf.zeros_like(tf.cumsum(t, -1)), name="zeros")(x)
    b = layer_of(k, lambda t: places, name="places")(x)
    return k.layers.Add()([k.layers.Add()([x, a]), b])


def turned(k: Any, x: Any) -> Any:
    """Halves of images in a batch of their own, all first halves before all second ones."""

    def apart(t: Any) -> Any:
        return tf.concat(tf.split(t, 2, axis=2), axis=0)

    y = layer_of(k, apart, (6, 2, CHANNELS), name="apart")(x)
    y = k.layers.Conv2D(CHANNELS, 3, padding="same", name="halves")(y)
    return layer_of(
        k, lambda t: tf.concat(tf.split(t, 2, axis=0), axis=2), (*SIZE, CHANNELS), name="together"
    )(y)


def dropout(k: Any, x: Any) -> Any:
    class Drops(k.layers.Layer):  # type: ignore[name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.drop = k.layers.Dropout(0.5)

        def call(self, inputs: Any, training: Any = None) -> Any:
            return sine(self.drop(inputs, training=training))

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    y = k.layers.Dropout(0.5)(layer_of(k, sine, name="one")(x))
    return Drops(name="drops")(y)


CASES = {
    "gru": (gru, ["gru"]),
    "lstm": (lstm, ["lstm"]),
    "bidirectional": (bidirectional, ["both_ways"]),
    "odd": (odd, ["odd"]),
    "two_outputs": (two_outputs, ["two"]),
    "two_islands": (two_islands, ["first", "also_first", "second"]),
    "attention": (attention, ["attend"]),
    "multi_head": (multi_head, ["seen", "attention"]),
    "group_norm": (group_norm, ["groups"]),
    "shares": (shares, ["shares"]),
    "one_window": (windows(4), ["apart", "attend", "together"]),
    "two_windows": (windows(2), ["apart", "attend", "together"]),
    "four_windows": (windows(1), ["apart", "attend", "together"]),
    "shared_activation": (shared, ["shared"]),
    "shared_layer": (shared_layer, ["shared"]),
    "adjacent": (adjacent, ["one", "two", "three"]),
    "unchanged": (unchanged, ["sines"]),
    "unread": (unread, ["second_and_third"]),
    "constant": (constant, ["zeros", "places"]),
    "turned": (turned, ["apart", "together"]),
    "dropout": (dropout, ["one", "drops"]),
}


def network(k: Any, build: Any) -> Any:
    """A convolution with normalization on either side."""
    image = k.Input((*SIZE, 3), name="image")
    x = builders.conv_bn_relu(k.layers, image, "before", CHANNELS)
    x = builders.conv_bn_relu(k.layers, build(k, x), "after", 5)
    x = k.layers.GlobalAveragePooling2D(name="mean")(x)
    return k.Model(image, k.layers.Dense(4, name="scores")(x))
