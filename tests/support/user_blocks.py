"""Blocks of layers as users write them: layers of their own with normalizations inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Build = Callable[[Any], Callable[[Any], Any]]  # of a Keras: what makes an output of an image


def _parts(keras: Any, layer: Any, filters: int = 4) -> None:
    layer.conv = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False, name="conv")
    layer.bn = keras.layers.BatchNormalization(name="bn", momentum=0.5)


def residual(keras: Any, **options: Any) -> Any:
    class Residual(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)
            self.relu = keras.layers.ReLU(name="relu")

        def call(self, x: Any, training: Any = None) -> Any:
            return self.relu(x + self.bn(self.conv(x), training=training))

    return Residual(name="block", **options)


def default_false(keras: Any) -> Any:
    """The flag has a default, as many write it: it follows the model's nevertheless."""

    class Defaulted(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.bn(self.conv(x), training=training)

    return Defaulted(name="block")


def drops(keras: Any) -> Any:
    """A dropout that is called in training only."""

    class Drops(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)
            self.drop = keras.layers.Dropout(0.0, name="drop")

        def call(self, x: Any, training: Any = None) -> Any:
            y = self.bn(self.conv(x), training=training)
            if training:
                y = self.drop(y, training=training)
            return x + y

    return Drops(name="block")


def raw(keras: Any) -> Any:
    """Operators of TensorFlow between the layers: an attention over channels."""

    class Raw(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)
            self.gate = keras.layers.Conv2D(4, 1, name="gate")

        def call(self, x: Any, training: Any = None) -> Any:
            y = tf.nn.relu(self.bn(self.conv(x), training=training))
            gate = tf.sigmoid(self.gate(tf.reduce_mean(y, (1, 2), keepdims=True)))
            return tf.concat([x, y * gate], -1)

    return Raw(name="block")


def decorated(keras: Any) -> Any:
    """A ``call`` that is a ``tf.function``."""

    class Decorated(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        @tf.function
        def call(self, x: Any, training: Any = None) -> Any:
            return tf.nn.relu6(x + self.bn(self.conv(x), training=training))

    return Decorated(name="block")


def scaled(keras: Any) -> Any:
    """A variable of its own: a factor for each channel."""

    class Scaled(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(
                name="gamma", shape=(4,), initializer=keras.initializers.RandomNormal(0.5, seed=3)
            )
            self.conv.build(shape)
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any, training: Any = None) -> Any:
            return x + self.gamma * self.bn(self.conv(x), training=training)

    return Scaled(name="block")


def stopped(keras: Any) -> Any:
    """Written as another function than the one whose gradient it has."""

    class Stopped(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def build(self, shape: Any) -> None:
            self.shift = self.add_weight(name="shift", shape=(4,), initializer="ones")
            self.conv.build(shape)
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any, training: Any = None) -> Any:
            y = self.bn(self.conv(x), training=training) + self.shift
            return y + tf.stop_gradient(tf.nn.relu(y) - y)

    return Stopped(name="block")


def own_kernel(keras: Any) -> Any:
    """A convolution with a kernel of its own, before a normalization."""

    class OwnKernel(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.bn = keras.layers.BatchNormalization(name="bn", momentum=0.5)

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(
                name="kernel", shape=(3, 3, 4, 4), initializer="glorot_uniform"
            )
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any, training: Any = None) -> Any:
            kernel = tf.convert_to_tensor(self.kernel)
            return self.bn(tf.nn.conv2d(x, kernel, 1, "SAME"), training=training)

    return OwnKernel(name="block")


def in_build(keras: Any) -> Any:
    """Layers made when it is built, in a list."""

    class InBuild(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            layers = keras.layers
            self.steps = [
                layers.Conv2D(4, 3, padding="same", name="first"),
                layers.BatchNormalization(name="first_bn"),
                layers.ReLU(),
                layers.DepthwiseConv2D(3, padding="same", name="second"),
                layers.BatchNormalization(name="second_bn"),
            ]
            for step in self.steps:
                step.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            for step in self.steps:
                x = step(x)
            return x

    return InBuild(name="block")


def nested(keras: Any, depth: int = 3) -> Any:
    """Blocks in blocks: the innermost is called without the flag."""

    class Nested(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.inner = residual(keras) if depth == 1 else nested(keras, depth - 1)
            self.bn = keras.layers.BatchNormalization(name="bn", momentum=0.5)

        def call(self, x: Any, training: Any = None) -> Any:
            return self.bn(self.inner(x), training=training)

    return Nested(name=f"level_{depth}")


def held(keras: Any) -> Any:
    """A normalization that keeps its statistics, whatever the model is asked."""

    class Held(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def call(self, x: Any, training: Any = None) -> Any:
            return x + self.bn(self.conv(x), training=False)

    return Held(name="block")


def shared(keras: Any) -> Any:
    layer = scaled(keras)
    return lambda x: layer(layer(x))


def two_inputs(keras: Any) -> Any:
    class Merge(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def call(self, x: Any, skip: Any = None, training: Any = None) -> Any:
            return tf.nn.relu(self.bn(self.conv(x), training=training)) - skip

    layer = Merge(name="block")
    return lambda x: layer(x, skip=keras.layers.MaxPooling2D(3, 1, "same")(x))


def other_size(keras: Any) -> Any:
    """A model inside that was built for another size than it is called with: it computes any."""
    layers = keras.layers

    class Padded(layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            parts = [layers.Conv2D(4, 3, use_bias=False), layers.BatchNormalization(name="bn")]
            self.inner = keras.Sequential(parts, name="inner")
            self.branch = keras.Sequential([self.inner, layers.ReLU()], name="branch")

        def build(self, shape: Any) -> None:
            for model in (self.inner, self.branch):
                model.build((None, shape[1] + 2, shape[2] + 2, shape[3]))
            self.built = True

        def call(self, x: Any) -> Any:
            return self.branch(x)

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], shape[1] - 2, shape[2] - 2, 4)

    return Padded(name="block")


def _of_a_kernel(keras: Any, compute: Any) -> Any:
    """A layer of a kernel of its own and a normalization; ``compute`` makes the call of both."""

    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.bn = keras.layers.BatchNormalization(name="bn")

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(1, 1, 4, 4))
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            return compute(x, tf.convert_to_tensor(self.kernel), self.bn)

    return Own(name="block")


def standardized(keras: Any) -> Any:
    def compute(x: Any, kernel: Any, bn: Any) -> Any:
        return bn(tf.nn.conv2d(x, kernel - tf.reduce_mean(kernel, (0, 1, 2)), 1, "SAME"))

    return _of_a_kernel(keras, compute)


def _of_a_layer(keras: Any, compute: Any) -> Any:
    """A block of a convolution and a normalization; ``compute`` makes the call of both."""

    class Block(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            self.conv = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")
            self.bn = keras.layers.BatchNormalization(name="bn")

        def build(self, shape: Any) -> None:
            self.conv.build(shape)
            self.bn.build((*shape[:-1], 4))
            self.built = True

        def call(self, x: Any) -> Any:
            return compute(self, x, tf.convert_to_tensor(self.conv.kernel))

    return Block(name="block")


def standardized_layer(keras: Any) -> Any:
    """The kernel is a layer's, which is not called; all of it takes tensors of Keras."""

    def compute(own: Any, x: Any, kernel: Any) -> Any:
        kernel -= tf.reduce_mean(kernel, (0, 1, 2))
        if hasattr(keras, "ops"):
            return own.bn(keras.ops.conv(x, kernel, padding="same"))
        return own.bn(tf.nn.conv2d(x, kernel, 1, "SAME"))

    return _of_a_layer(keras, compute)


OPENED: dict[str, Build] = {
    "residual": residual,
    "default_false": default_false,
    "drops": drops,
    "raw": raw,
    "decorated": decorated,
    "scaled": scaled,
    "own_kernel": own_kernel,
    "stopped": stopped,
    "in_build": in_build,
    "nested": nested,
    "held": held,
    "shared": shared,
    "two_inputs": two_inputs,
    "other_size": other_size,
    "standardized": standardized,
    "standardized_layer": standardized_layer,
}


# What cannot be opened, with what the refusal must say.


def doubles_in_training(keras: Any) -> Any:
    class Doubles(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def call(self, x: Any, training: Any = None) -> Any:
            y = self.bn(self.conv(x), training=training)
            return y * 2 if training else y

    return Doubles(name="block")


@tf.custom_gradient
def _straight_through(x: Any) -> Any:
    return tf.round(x), lambda upstream: upstream


def own_gradient(keras: Any) -> Any:
    class Rounds(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(name="gamma", shape=(4,), initializer="ones")
            self.conv.build(shape)
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            return _straight_through(self.bn(self.conv(x)) * self.gamma)

    return Rounds(name="block")


def computed_scale(keras: Any) -> Any:
    def compute(x: Any, kernel: Any, bn: Any) -> Any:
        return bn(tf.nn.conv2d(x, kernel, 1, "SAME")) * tf.reduce_mean(kernel, (0, 1, 2))

    return _of_a_kernel(keras, compute)


def noisy(keras: Any) -> Any:
    class Noisy(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(name="gamma", shape=(4,), initializer="ones")
            self.conv.build(shape)
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            y = self.bn(self.conv(x)) * self.gamma
            return y + tf.random.normal(tf.shape(y))

    return Noisy(name="block")


def regularized(keras: Any) -> Any:
    class Regularized(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, **kwargs: Any):
            super().__init__(**kwargs)
            _parts(keras, self)

        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(
                name="gamma", shape=(4,), initializer="ones", regularizer=keras.regularizers.L2(0.1)
            )
            self.conv.build(shape)
            self.bn.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            return self.bn(self.conv(x)) * self.gamma

    return Regularized(name="block")


def scaled_by_a_layers_weight(keras: Any) -> Any:
    """A single number of the moment, computed from a kernel."""
    return _of_a_layer(keras, lambda own, x, kernel: own.bn(own.conv(x)) * tf.reduce_mean(kernel))


REFUSED: dict[str, tuple[Build, str]] = {
    "doubles_in_training": (doubles_in_training, "computes something else in training"),
    "own_gradient": (own_gradient, "gradient of its own"),
    "scaled_by_a_layers_weight": (scaled_by_a_layers_weight, "computes with its own variables"),
    "computed_scale": (computed_scale, "computes with its own variables"),
    "noisy": (noisy, "RandomStandardNormal"),
    "regularized": (regularized, "has a regularizer"),
}
