"""Functions of a user's in a model: kept when layers are copied, refused where a file loses them."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from builders import KERASES, keras_of
from rewriter import keras_compat
from rewriter.errors import SaveError

FACTOR = 3.0
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
STEPS = np.random.default_rng(1).normal(size=(8, 4, 6)).astype(np.float32)


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


def softplus(x):
    """Named as one of Keras's, and another function."""
    return x * tf.nn.relu6(x + 3) / 6


def mine(x):
    return FACTOR * x + 1


class Halved:
    """Callable, without a configuration."""

    def __call__(self, x):
        return x / 2


FUNCTIONS = {
    "stock name": softplus,
    "function": mine,
    "lambda": lambda x: np.float32(FACTOR) * tf.sin(x),
    "partial": functools.partial(tf.nn.leaky_relu, alpha=0.4),
    "object": Halved(),
    "of TensorFlow": tf.sin,
}
PLACES = {
    "Activation": (lambda layers, f: layers.Activation(f), X),
    "Dense": (lambda layers, f: layers.Dense(5, activation=f), X),
    "LSTM": (lambda layers, f: layers.LSTM(3, activation=f, recurrent_activation=f), STEPS),
    "TimeDistributed": (lambda layers, f: layers.TimeDistributed(layers.Activation(f)), STEPS),
    "RNN": (lambda layers, f: layers.RNN([layers.GRUCell(3), layers.LSTMCell(2, f)]), STEPS),
    "Lambda": (lambda layers, f: layers.Lambda(f), X),
    "nested Lambda": (lambda layers, f: layers.TimeDistributed(layers.Lambda(f)), STEPS),
}


def _model(keras, layer, x):
    inputs = keras.Input(x.shape[1:])
    return keras.Model(inputs, layer(keras.layers.Dense(6)(inputs)))


def _same(model, x):
    """Rewritten, and equal to the original in float."""
    qat = rewriter.rewrite(model)
    rewriter.set_phase(qat, "float")
    expected, found = model(x), qat(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return qat


@pytest.mark.wide
@pytest.mark.parametrize("function", list(FUNCTIONS))
@pytest.mark.parametrize("place", list(PLACES))
def test_copies_compute_the_same(keras, place, function):
    make, x = PLACES[place]
    _same(_model(keras, make(keras.layers, FUNCTIONS[function]), x), x)


def test_in_a_model_inside_a_layer(keras):
    layers = keras.layers
    inputs = keras.Input((6,))
    outputs = layers.Lambda(lambda x: FACTOR * x[:, :3])(layers.Dense(6, softplus)(inputs))
    inner = keras.Model(inputs, layers.Dense(2, kernel_regularizer=lambda w: 0.1)(outputs))
    _same(_model(keras, layers.TimeDistributed(inner), STEPS), STEPS)


def test_lambda_with_all_its_functions(keras):
    layer = keras.layers.Lambda(
        lambda x, start: FACTOR * x[:, start : start + 3],
        output_shape=lambda shape: (shape[0], 3),
        mask=lambda x, mask=None: mask,
        arguments={"start": 1},
    )
    qat = _same(_model(keras, layer, X), X)
    found = next(each for each in qat.layers if isinstance(each, keras.layers.Lambda))
    assert found is not layer and found.function is layer.function and found.mask is layer.mask
    assert found._output_shape is layer._output_shape and found.arguments == {"start": 1}


class Squares:
    """A regularizer that is neither Keras's nor registered."""

    def __call__(self, weights):
        return 0.5 * tf.reduce_sum(weights * weights)


@pytest.mark.parametrize("normalized", [False, True])
def test_regularizers_initializers_and_constraints(keras, normalized):
    layers = keras.layers

    def initial(shape, dtype=None, **_):
        return tf.fill(shape, tf.constant(0.25, dtype))

    def kept(weights):
        return weights

    dense = layers.Dense(
        6,
        kernel_regularizer=Squares(),
        bias_regularizer=lambda w: 7.0 + 0 * tf.reduce_sum(w),
        kernel_initializer=initial,
        kernel_constraint=kept,
    )
    norm = layers.BatchNormalization(
        gamma_regularizer=Squares(), beta_initializer=initial, gamma_constraint=kept
    )
    inputs = keras.Input((6,))
    x = dense(inputs)
    model = keras.Model(inputs, norm(x) if normalized else layers.Activation(mine)(x))
    qat = _same(model, X)
    assert float(sum(qat.losses)) == pytest.approx(float(sum(model.losses)))
    host = next(each for each in qat.layers if hasattr(each, "host"))
    assert host.host.kernel_initializer is initial and host.host.kernel_constraint is kept
    if normalized:
        assert host.batch_norm.gamma_constraint is kept
        with pytest.raises(SaveError, match="gamma_regularizer"):
            host.batch_norm.get_config()
    again = rewriter.rewrite(model)  # from the same original
    assert float(sum(again.losses)) == pytest.approx(float(sum(model.losses)))


def test_the_twin_computes_the_same(keras):
    layer = keras.layers.Dense(5, activation=softplus)
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(3)])
    qat = rewriter.rewrite(model, calibration_data=X)
    assert np.abs(np.asarray(qat(X)) - np.asarray(model(X))).max() < 0.1


# Files


def _formats(keras):
    return (".keras", ".h5", "") if keras.__name__ == "tf_keras" else (".keras", ".h5")


UNSAVEABLE = {
    "stock name": "keras's own 'softplus'",
    "lambda": "is a lambda",
    "partial": "no configuration",
    "object": "no configuration",
}


@pytest.mark.wide
@pytest.mark.parametrize("place", ["Activation", "Dense", "TimeDistributed"])
@pytest.mark.parametrize("function", list(UNSAVEABLE))
def test_what_no_file_brings_back_is_refused(keras, tmp_path, place, function):
    make, x = PLACES[place]
    layer = make(keras.layers, FUNCTIONS[function])
    owner = layer.layer if place == "TimeDistributed" else layer
    qat = rewriter.rewrite(_model(keras, layer, x))
    for extension in _formats(keras):
        with pytest.raises(SaveError, match=UNSAVEABLE[function]) as raised:
            qat.save(str(tmp_path / f"model{extension}"))
        assert repr(owner.name) in str(raised.value)
        assert f"{keras.__name__}.saving.register_keras_serializable" in str(raised.value)


def test_registered_functions_are_saved(keras, tmp_path):
    registered = keras.saving.register_keras_serializable("functions")(
        lambda x: x * tf.nn.relu6(x + 3) / 6
    )
    registered.__name__ = "not_a_lambda"
    function = keras.saving.register_keras_serializable("functions", "softplus")(_other())
    qat = rewriter.rewrite(_model(keras, keras.layers.Dense(5, activation=function), X))
    qat.save(tmp_path / "model.keras")
    loaded = rewriter.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(X), qat(X), rtol=1e-6)


def _other():
    def softplus(x):
        return x * tf.nn.relu6(x + 3) / 6

    return softplus


def test_functions_that_loading_is_given_are_saved(keras, tmp_path):
    qat = rewriter.rewrite(_model(keras, keras.layers.Dense(5, activation=mine), X))
    qat.save(tmp_path / "model.keras")
    loaded = rewriter.load_model(tmp_path / "model.keras", custom_objects={"mine": mine})
    np.testing.assert_allclose(loaded(X), qat(X), rtol=1e-6)


def test_lambda_layers(keras, tmp_path):
    """A file holds the code of a lambda; in Keras 3 without the globals that it uses."""
    qat = rewriter.rewrite(_model(keras, keras.layers.Lambda(lambda x: 2 * x + 1), X))
    qat.save(tmp_path / "model.keras")
    loaded = rewriter.load_model(tmp_path / "model.keras", allow_lambda=True)
    np.testing.assert_allclose(loaded(X), qat(X), rtol=1e-6)
    qat = rewriter.rewrite(_model(keras, keras.layers.Lambda(lambda x: FACTOR * tf.sort(x)), X))
    if keras.__name__ == "keras":
        with pytest.raises(SaveError, match=re.escape("globals ['FACTOR', 'tf']")):
            qat.save(tmp_path / "globals.keras")
        return
    qat.save(tmp_path / "globals.keras")
    loaded = rewriter.load_model(tmp_path / "globals.keras", allow_lambda=True)
    np.testing.assert_allclose(loaded(X), qat(X), rtol=1e-6)


@pytest.mark.parametrize("place", ["Activation", "Dense", "TimeDistributed"])
def test_a_lambda_that_is_keras_own_function_is_saved_as_that(keras, tmp_path, place):
    """Operation by operation, its gradient included; any other one is refused as before."""
    make, x = PLACES[place]
    own = keras.activations
    same = {"gelu": lambda x: own.gelu(x, approximate=False), "tanh": lambda x: tf.tanh(x)}
    if keras.__name__ == "keras":
        same["silu"] = lambda x: own.silu(x)
    for name, function in same.items():
        model = _model(keras, make(keras.layers, function), x)
        assert not rewriter.plan(model).notes
        qat = _same(model, x)
        qat.save(tmp_path / "model.keras")
        again = rewriter.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(again(x), qat(x))
        activation = getattr(model.layers[-1], "layer", model.layers[-1]).activation
        assert activation is function, name  # the original has what it had
    flavour = keras_compat.flavour_of(model)
    factor = keras.Variable(2.0) if keras.__name__ == "keras" else tf.Variable(2.0)
    others = {
        "another option": lambda x: own.gelu(x, approximate=True),
        "a number more": lambda x: own.gelu(x) * 1.0,
        "another gradient": lambda x: tf.grad_pass_through(lambda x: tf.tanh(x))(x),
        "a variable": lambda x: own.tanh(x * factor),
    }
    for function in others.values():
        layer = make(keras.layers, function)
        copy = flavour.clone(layer)
        assert getattr(copy, "layer", copy).activation is function
        with pytest.raises(SaveError, match="is a lambda"):
            copy.get_config()


def test_what_was_loaded_is_rewritten(keras, tmp_path):
    """With the functions that loading was given, in a layer of a user's, too."""

    class Own(keras.layers.Layer):
        def __init__(self, activation=None, **kwargs):
            super().__init__(**kwargs)
            self.activation = keras.activations.get(activation)

        def call(self, x):
            return self.activation(tf.sin(x))

        def get_config(self):
            activation = keras.activations.serialize(self.activation)
            return {**super().get_config(), "activation": activation}

    known = {"Own": Own, "mine": mine}
    model = _model(keras, Own(mine), X)
    model.save(tmp_path / "model.keras")
    loaded = rewriter.load_model(tmp_path / "model.keras", custom_objects=known)
    qat = _same(loaded, X)
    qat.save(tmp_path / "qat.keras")
    again = rewriter.load_model(tmp_path / "qat.keras", custom_objects=known)
    np.testing.assert_array_equal(again(X), model(X))


def test_a_lambda_with_a_closure_inside_an_opened_layer(keras, tmp_path):
    """As in keras-tcn: it trains, is saved in every format, and is loaded again."""
    layers = keras.layers

    class Last(layers.Layer):
        def __init__(self, place=3, **kwargs):
            super().__init__(**kwargs)
            self.place = place
            self.conv, self.norm = (
                layers.Conv1D(4, 2, padding="causal"),
                layers.BatchNormalization(),
            )
            self.last = layers.Lambda(lambda x: x[:, self.place, :])

        def build(self, shape):
            self.conv.build(shape)
            self.norm.build((*shape[:-1], 4))
            self.built = True

        def call(self, x):
            return self.last(self.norm(self.conv(x)))

        def compute_output_shape(self, shape):
            return (shape[0], 4)

        def get_config(self):
            return {**super().get_config(), "place": self.place}

    inputs = keras.Input((4, 6))
    model = keras.Model(inputs, layers.Dense(2)(Last()(inputs)))
    qat = rewriter.rewrite(model, calibration_data=STEPS)
    qat.compile("sgd", "mse")
    qat.fit(STEPS, np.zeros((8, 2)), verbose=0)
    for suffix in _formats(keras):
        if keras.__name__ == "keras" and suffix == ".h5":
            continue  # which holds no operations that Keras 3 itself loads
        qat.save(str(tmp_path / f"m{suffix}"))
        loaded = rewriter.load_model(tmp_path / f"m{suffix}")
        np.testing.assert_array_equal(np.asarray(loaded(STEPS)), np.asarray(qat(STEPS)))
