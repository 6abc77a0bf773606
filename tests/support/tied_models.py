"""Models whose layers hold variables in common, each with a normalization."""

from __future__ import annotations

import functools
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf


@functools.cache
def classes(keras: ModuleType) -> SimpleNamespace:
    """Layers of a user's of this Keras, registered."""
    layers = keras.layers
    register = keras.saving.register_keras_serializable("tied_models")

    @register
    class TiedHead(layers.Layer):
        """Scores by the table of an embedding."""

        def __init__(self, table: Any, **kwargs: Any):
            super().__init__(**kwargs)
            self.table = table

        def call(self, x: Any) -> Any:
            return tf.matmul(x, self.table.embeddings, transpose_b=True)

        def compute_output_shape(self, shape: Any) -> Any:
            return (*shape[:-1], self.table.input_dim)

        def build(self, shape: Any) -> None:
            if not self.table.built:
                self.table.build((None,))
                self.table.built = True
            self.built = True

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "table": self.table.get_config()}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            table = layers.Embedding.from_config(config["table"])
            return cls(**{**config, "table": table})

    @register
    class Decoder(layers.Layer):
        """The way back through a dense layer, with a bias of its own."""

        def __init__(self, dense: Any, width: int, **kwargs: Any):
            super().__init__(**kwargs)
            self.dense, self.width = dense, width

        def build(self, shape: Any) -> None:
            if not self.dense.built:
                self.dense.build((None, self.width))
                self.dense.built = True
            self.shift = self.add_weight(name="shift", shape=(self.width,), initializer="ones")
            self.built = True

        def call(self, x: Any) -> Any:
            return tf.matmul(x, self.dense.kernel, transpose_b=True) + self.shift

        def compute_output_shape(self, shape: Any) -> Any:
            return (*shape[:-1], self.width)

        def get_config(self) -> dict[str, Any]:
            own = {"dense": self.dense.get_config(), "width": self.width}
            return {**super().get_config(), **own}

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return cls(**{**config, "dense": layers.Dense.from_config(config["dense"])})

    class PlainHead(TiedHead):
        """Leaves it to the model to build the embedding: Keras cannot load it, and we copy it."""

        build = layers.Layer.build

    class Given(layers.Layer):
        """Multiplies by a variable that it is given; ``keep``: how it holds it."""

        def __init__(self, kernel: Any, keep: str = "plain", **kwargs: Any):
            super().__init__(**kwargs)
            self.keep = keep
            held = {"list": [kernel], "dict": {"kernel": kernel}}
            self.held = held.get(keep, kernel)

        def call(self, x: Any) -> Any:
            if self.keep == "turned":
                return tf.einsum("bd,ed->be", x, tf.convert_to_tensor(self.held))
            kernel = {"plain": lambda h: h, "list": lambda h: h[0], "dict": lambda h: h["kernel"]}
            found = tf.convert_to_tensor(kernel[self.keep](self.held))
            y = tf.matmul(x, found)
            # No integers sort, so that this layer stays, and what it holds.
            return y if self.keep == "plain" else tf.sort(y, axis=-1)

        def compute_output_shape(self, shape: Any) -> Any:
            return (*shape[:-1], shape[-1])

    class There(layers.Layer):
        """Calls a layer inside it, and goes the way back by its kernel."""

        def __init__(self, width: int, **kwargs: Any):
            super().__init__(**kwargs)
            self.dense = layers.Dense(width, name="inner")

        def build(self, shape: Any) -> None:
            self.dense.build(shape)
            self.built = True

        def call(self, x: Any) -> Any:
            return tf.matmul(tf.nn.relu(self.dense(x)), self.dense.kernel, transpose_b=True)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    class Half(layers.Layer):
        """The way back by half the kernel of a layer that it is given, as a value of the moment."""

        def __init__(self, dense: Any, **kwargs: Any):
            super().__init__(**kwargs)
            self.dense = dense

        def call(self, x: Any) -> Any:
            kernel = tf.transpose(tf.convert_to_tensor(self.dense.kernel)) * 0.5
            return keras.ops.matmul(x, kernel) if hasattr(keras, "ops") else x @ kernel

        def compute_output_shape(self, shape: Any) -> Any:
            return (*shape[:-1], 6)

    class Sorted(layers.Layer):
        """Calls a layer of the model's, and does what no integers do."""

        def __init__(self, dense: Any, **kwargs: Any):
            super().__init__(**kwargs)
            self.dense = dense

        def call(self, x: Any) -> Any:
            return tf.sort(self.dense(x), axis=-1)

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    made = (TiedHead, PlainHead, Decoder, Given, There, Half, Sorted)
    return SimpleNamespace(**{each.__name__: each for each in made})


def _normalized(keras: ModuleType, x: Any, width: int, name: str) -> Any:
    x = keras.layers.Dense(width, name=name)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization(name=f"{name}_norm")(x))


def head(keras: ModuleType, cls: str = "TiedHead", **options: Any) -> Any:
    """Words, and scores of words by the same table."""
    words = keras.Input((6,), dtype="int32", name="ids")
    table = keras.layers.Embedding(9, 4, name="words", **options)
    x = _normalized(keras, table(words), 4, "hidden")
    return keras.Model(words, vars(classes(keras))[cls](table, name="head")(x))


def autoencoder(keras: ModuleType) -> Any:
    """A decoder with its encoder's kernel."""
    inputs = keras.Input((6,), name="values")
    encoder = keras.layers.Dense(4, name="encoder")
    x = keras.layers.BatchNormalization(name="norm")(encoder(inputs))
    x = keras.layers.ReLU()(x)
    return keras.Model(inputs, classes(keras).Decoder(encoder, 6, name="decoder")(x))


def half(keras: ModuleType) -> Any:
    """A way back whose operations take tensors of Keras, and so might be run on them."""
    inputs = keras.Input((6,), name="values")
    encoder = keras.layers.Dense(4, name="encoder")
    x = keras.layers.BatchNormalization(name="norm")(encoder(inputs))
    return keras.Model(inputs, classes(keras).Half(encoder, name="half")(x))


def _variable(keras: ModuleType, shape: tuple[int, ...]) -> Any:
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return getattr(keras, "Variable", tf.Variable)(value, name="in_common")


def given(keras: ModuleType, keep: str = "plain", second: str = "") -> Any:
    """Two layers that were given one variable: the calls of linear layers, if plain or turned."""
    inputs = keras.Input((6,), name="values")
    kernel = _variable(keras, (6, 6))
    x = classes(keras).Given(kernel, keep, name="one")(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, classes(keras).Given(kernel, second or keep, name="two")(x))


def there_and_back(keras: ModuleType) -> Any:
    """A layer that calls another and reads its kernel."""
    inputs = keras.Input((6,), name="values")
    x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(6, name="dense")(inputs))
    return keras.Model(inputs, classes(keras).There(4, name="there")(x))


def sublayer(keras: ModuleType) -> Any:
    """A layer of the model is an attribute of another one, which calls it."""
    inputs = keras.Input((6,), name="values")
    dense = keras.layers.Dense(6, name="dense")
    x = keras.layers.BatchNormalization(name="norm")(dense(inputs))
    return keras.Model(inputs, classes(keras).Sorted(dense, name="sorted")(x))


CASES = {
    "head": head,
    "plain_head": functools.partial(head, cls="PlainHead"),
    "autoencoder": autoencoder,
    "half": half,
    "given": given,
    "turned": functools.partial(given, keep="turned"),
    "turned_once": functools.partial(given, second="turned"),
    "sublayer": sublayer,
}


def data(model: Any, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and outputs to train a model with."""
    rng = np.random.default_rng(1)
    shape = (count, *tuple(model.inputs[0].shape)[1:])
    whole = "int" in str(model.inputs[0].dtype)
    x = rng.integers(0, 9, shape) if whole else rng.normal(size=shape).astype(np.float32)
    y = rng.normal(size=(count, *tuple(model.outputs[0].shape)[1:])).astype(np.float32)
    return x, y
