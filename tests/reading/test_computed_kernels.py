"""Users' layers whose kernels are functions of their variables: integers, trained through these.

The oracles are the original model, layer and all, and the kernels as NumPy computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from builders import KERASES, keras_of, normal
from rewriter.errors import ExportError, LoadError
from rewriter.lowering.lower import lower


@pytest.fixture(params=KERASES)
def keras(request: Any) -> Any:
    return builders.fresh(keras_of(request.param))


def standardized(keras: Any, **options: Any) -> Any:
    """As of normalizer-free networks: the stock call, on another kernel."""

    class Standardized(keras.layers.Conv2D):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            super().build(shape)
            self.gain = self.add_weight(name="gain", shape=(self.filters,), initializer="ones")

        def convolution_op(self, x: Any, kernel: Any) -> Any:
            kernel = tf.convert_to_tensor(kernel)
            mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
            count = float(np.prod(kernel.shape[:-1]))
            scale = tf.math.rsqrt(tf.maximum(count * variance, 1e-4)) * tf.convert_to_tensor(
                self.gain
            )
            return super().convolution_op(x, (kernel - mean) * scale)

    return Standardized(6, 3, name="own", **options)


def standardized_values(layer: Any) -> np.ndarray:
    kernel, gain = (np.asarray(v, np.float64) for v in (layer.kernel, layer.gain))
    centred = kernel - kernel.mean((0, 1, 2))
    count = np.prod(kernel.shape[:-1])
    return centred * gain / np.sqrt(np.maximum(count * kernel.var((0, 1, 2)), 1e-4))


def masked(keras: Any) -> Any:
    """A constant of more elements than stand in a configuration."""

    class Masked(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.mask = (np.arange(3 * 3 * 4 * 6).reshape(3, 3, 4, 6) % 3 > 0).astype(np.float32)
            self.kernel = self.add_weight(name="kernel", shape=(3, 3, 4, 6))
            self.bias = self.add_weight(name="bias", shape=(6,))
            super().build(shape)

        def call(self, x: Any) -> Any:
            kernel = tf.convert_to_tensor(self.kernel) * self.mask
            return tf.nn.conv2d(x, kernel, 1, "SAME") + tf.convert_to_tensor(self.bias)

        def compute_output_shape(self, shape: Any) -> Any:
            return (*tuple(shape)[:-1], 6)

    return Masked(name="own")


def masked_values(layer: Any) -> np.ndarray:
    layer = layer.layers[1] if hasattr(layer, "layers") else layer
    return np.asarray(layer.kernel, np.float64) * layer.mask


def in_a_line(keras: Any) -> Any:
    """A convolution over one axis, which is one over two with a first of size 1."""

    class Line(keras.layers.Layer):  # type: ignore[misc,name-defined]
        mask = np.array([1, 0, 1], np.float32).reshape(3, 1, 1)

        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(3, 4, 6))
            super().build(shape)

        def call(self, x: Any) -> Any:
            return tf.nn.conv1d(x, tf.convert_to_tensor(self.kernel) * self.mask, 1, "VALID")

        def compute_output_shape(self, shape: Any) -> Any:
            return (shape[0], shape[1] - 2, 6)

    inside = [
        keras.layers.Reshape((64, 4)),
        Line(name="own"),
        keras.layers.Reshape((62, 1, 6)),
    ]
    return keras.Sequential(inside)


def of_norm_one(keras: Any) -> Any:
    """A product of matrices, with a variable in its kernel that is not trained."""

    class Normed(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(4, 6))
            self.state = self.add_weight(name="state", shape=(1, 6), trainable=False)
            super().build(shape)

        def call(self, x: Any) -> Any:
            kernel = tf.math.l2_normalize(tf.convert_to_tensor(self.kernel), 0)
            return tf.linalg.matmul(x, kernel * (1 + tf.square(tf.convert_to_tensor(self.state))))

        def compute_output_shape(self, shape: Any) -> Any:
            return (*tuple(shape)[:-1], 6)

    return keras.Sequential([keras.layers.GlobalAveragePooling2D(), Normed(name="own")])


def of_norm_one_values(layer: Any) -> np.ndarray:
    layer = layer.layers[-1]
    kernel, state = (np.asarray(v, np.float64) for v in (layer.kernel, layer.state))
    return kernel / np.sqrt((kernel**2).sum(0)) * (1 + state**2)


def turned(keras: Any) -> Any:
    """With the channels first, as other frameworks have them."""

    class Turned(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(6, 4))
            super().build(shape)

        def call(self, x: Any) -> Any:
            return tf.linalg.matmul(x, tf.convert_to_tensor(self.kernel), transpose_b=True)

        def compute_output_shape(self, shape: Any) -> Any:
            return (*tuple(shape)[:-1], 6)

    return keras.Sequential([keras.layers.GlobalAveragePooling2D(), Turned(name="own")])


def turned_values(layer: Any) -> np.ndarray:
    return np.asarray(layer.layers[-1].kernel, np.float64).T


def smoothing(keras: Any) -> Any:
    """A depthwise convolution whose weights add up to 1."""

    class Smoothing(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.logits = self.add_weight(name="logits", shape=(4, 9))
            super().build(shape)

        def call(self, x: Any) -> Any:
            kernel = tf.transpose(tf.nn.softmax(tf.convert_to_tensor(self.logits)))
            kernel = tf.reshape(kernel, (3, 3, 4, 1))
            return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Smoothing(name="own")


def smoothing_values(layer: Any) -> np.ndarray:
    powers = np.exp(np.asarray(layer.logits, np.float64))
    return (powers / powers.sum(1, keepdims=True)).T.reshape(3, 3, 4, 1)


Make = Callable[[Any], Any]
CASES: dict[str, tuple[Make, Callable[[Any], np.ndarray]]] = {
    "standardized": (standardized, standardized_values),
    "grouped": (
        lambda k: standardized(k, groups=2, strides=2, padding="same", use_bias=False),
        standardized_values,
    ),
    "masked": (masked, masked_values),
    "in_a_line": (in_a_line, masked_values),
    "of_norm_one": (of_norm_one, of_norm_one_values),
    "turned": (turned, turned_values),
    "smoothing": (smoothing, smoothing_values),
}


def model_of(keras: Any, own: Any, norm: bool = False) -> Any:
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = own(layers.Conv2D(4, 3, padding="same", name="stem")(image))
    x = layers.BatchNormalization(name="bn")(x) if norm else x
    x = layers.GlobalAveragePooling2D(name="pool")(x) if len(x.shape) == 4 else x
    model = keras.Model(image, layers.Dense(3, name="scores")(x))
    builders.randomise_all(model, 1)
    return model


def follows(keras: Any, model: Any, qat: Any) -> None:
    """The same outputs in phase float, the same losses in training, the same outputs after."""
    x = normal(4, 8, 8, 3, seed=99)
    claims.check_float_phase(model, qat, x)
    batches = [(normal(8, 8, 8, 3, seed=i), normal(8, 3, seed=50 + i)) for i in range(10)]
    losses = [claims.train(m, keras, batches, "mse", 1e-2) for m in (model, qat)]
    claims.assert_close(losses[1], losses[0], 1e-4, "losses")
    claims.check_float_phase(model, qat, x, 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_that_is_computed_is_integers(keras: Any, name: str, tmp_path: Path) -> None:
    make, values = CASES[name]
    own = make(keras)
    model = model_of(keras, own)
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    follows(keras, model, qat)
    data = normal(32, 8, 8, 3, seed=5)
    rewriter.calibrate(qat, data, progress=False)
    operators = [s.operator for s in lower(qat).steps if s.layer not in ("stem", "scores")]
    size = values(own).size
    (kernel,) = [o for o in operators if o.kernel is not None and np.size(o.kernel) == size]
    wanted = values(own).reshape(kernel.kernel.shape)
    axis = (-2,) if name == "smoothing" else (-1,)
    scale = np.asarray(kernel.kernel_scale, np.float64)
    shape = [1] * wanted.ndim
    shape[axis[0]] = scale.size
    scale = scale.reshape(shape)
    assert np.abs(kernel.kernel * scale - wanted).max() <= 0.5001 * scale.max()
    assert np.abs(kernel.kernel).max() == 127
    qat.compile("sgd", "mse")
    qat.fit(data, normal(32, 3, seed=6), verbose=0)
    for file in ("qat.h5", "qat.keras"):
        qat.save(tmp_path / file)
        again = rewriter.load_model(tmp_path / file)
        np.testing.assert_array_equal(again.predict(data, verbose=0), qat.predict(data, verbose=0))
    assert len(again.trainable_variables) == len(qat.trainable_variables)
    rewriter.export_tflite(again, tmp_path / "m.tflite")  # refused where anything stays in float
    found = rewriter.verify(again, tmp_path / "m.tflite", data[:8], progress=False)
    assert not found.comparison.differences
    assert all(t.identical == 1 for t in found.comparison.operator_by_operator)
    assert found.parts_at is None and found.snr is not None and found.snr > 20


def test_a_normalization_behind_it_folds_into_it(keras: Any, tmp_path: Path) -> None:
    model = model_of(keras, standardized(keras), norm=True)
    plan = rewriter.plan(model)
    assert [(e.action, e.host) for e in plan.entries] == [("fused", "own/own")]
    qat = rewriter.rewrite(model)
    claims.check_no_batch_norm(qat)
    follows(keras, model, qat)
    data = normal(16, 8, 8, 3, seed=5)
    rewriter.calibrate(qat, data, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", data, progress=False)
    assert all(t.identical == 1 for t in found.comparison.operator_by_operator)
    frozen = rewriter.freeze(qat)
    rewriter.set_phase(qat, "quantize")
    a, b = (m.predict(data, verbose=0) for m in (frozen, qat))
    claims.assert_close(a, b, 1e-2, "frozen")


def test_gradients_go_through_the_computation(keras: Any) -> None:
    """In phase quantize: those of the kernel as it was before it was put on its grid."""
    own = standardized(keras)
    model = model_of(keras, own)
    qat = rewriter.rewrite(model)
    data = normal(16, 8, 8, 3, seed=5)
    rewriter.calibrate(qat, data, progress=False)
    rewriter.set_phase(qat, "quantize")
    host = qat.get_layer("own").host
    weights = [w for w in host.trainable_variables if len(w.shape) == 4]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(qat(data, training=True)))
    gradient = tape.gradient(loss, [getattr(w, "_value", w) for w in weights])[0]
    # A standardized kernel does not change with the mean of what it is computed from.
    assert np.abs(gradient).max() > 0
    total = np.asarray(gradient, np.float64).sum((0, 1, 2))
    assert np.abs(total).max() < 1e-4 * np.abs(gradient).sum()


def in_two_places(x: Any, kernel: Any, gain: Any) -> Any:
    return gain * tf.nn.conv2d(x, kernel * gain, 1, "SAME")


def with_a_computed_bias(x: Any, kernel: Any, gain: Any) -> Any:
    kernel = tf.tanh(kernel)
    return tf.nn.conv2d(x, kernel, 1, "SAME") + tf.reduce_mean(kernel, (0, 1, 2))


def of_its_input(x: Any, kernel: Any, gain: Any) -> Any:
    count = tf.cast(tf.shape(x)[0], tf.float32)
    return tf.nn.conv2d(x, kernel / count, 1, "SAME")


def computing(keras: Any, compute: Callable[..., Any]) -> Any:
    """A layer with a kernel and a gain."""

    class Own(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.kernel = self.add_weight(name="kernel", shape=(3, 3, 4, 4))
            self.gain = self.add_weight(name="gain", shape=(4,))
            super().build(shape)

        def call(self, x: Any) -> Any:
            return compute(x, *map(tf.convert_to_tensor, (self.kernel, self.gain)))

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Own(name="own")


@pytest.mark.parametrize("compute", [in_two_places, with_a_computed_bias, of_its_input])
def test_what_is_more_than_a_kernel_stays_in_float(
    keras: Any, compute: Callable[..., Any], tmp_path: Path
) -> None:
    """It trains as it is, and the export says so."""
    model = model_of(keras, computing(keras, compute))
    qat = rewriter.rewrite(model)
    follows(keras, model, qat)
    rewriter.calibrate(qat, normal(16, 8, 8, 3, seed=5), progress=False)
    with pytest.raises(ExportError, match="'own' has no integer form"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("before", "after"),
    [('"op": "Rsqrt"', '"op": "WriteFile"'), ('"shape": [3, 3', '"size": [3, 3'), ("{", "[")],
)
def test_a_damaged_function_is_refused(keras: Any, before: str, after: str) -> None:
    model = model_of(keras, standardized(keras))
    host = rewriter.rewrite(model).get_layer("own").host
    function = host.get_config()["kernel_of"]
    assert before in function
    with pytest.raises(LoadError, match="may not stand|not described as a function"):
        type(host)(6, 3, kernel_of=function.replace(before, after))
