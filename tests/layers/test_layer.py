"""The layer by itself: a drop-in for BatchNormalization when a model is built from the start."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from norm_layers import fused

both = pytest.mark.parametrize("kind", builders.KERASES)
CHANNELS = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what it reads."""

    shape: tuple[int, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([f"rank{len(self.shape)}", *map(str, self.options.values())])


CASES = (
    Case((6, CHANNELS)),
    Case((3, 7, CHANNELS)),
    Case((3, 4, 5, CHANNELS)),
    Case((2, 3, 4, 2, CHANNELS)),
    Case((3, CHANNELS, 4, 6), {"axis": 1}),
    Case((3, 4, CHANNELS, 6), {"axis": 2}),
    Case((6, CHANNELS), {"axis": 1}),
    Case((3, 4, 5, CHANNELS), {"momentum": 0.6, "epsilon": 0.1}),
    Case((3, 4, 5, CHANNELS), {"scale": False}),
    Case((3, 4, 5, CHANNELS), {"center": False}),
    Case((3, 4, 5, CHANNELS), {"scale": False, "center": False}),
)


def pair(kind: str, case: Case, **more: Any) -> tuple[Any, Any]:
    """The stock layer and ours, built, with the same random variables."""
    rng = np.random.default_rng(3)
    options = {**case.options, **more}
    stock = builders.keras_of(kind).layers.BatchNormalization(name="norm", **options)
    ours = fused(kind)(name="norm", **options)
    for layer in (stock, ours):
        layer.build((None, *case.shape[1:]))
    values = {
        "gamma": rng.normal(size=CHANNELS),
        "beta": rng.normal(size=CHANNELS),
        "moving_mean": rng.normal(size=CHANNELS),
        "moving_variance": rng.uniform(0.1, 3, CHANNELS),
    }
    for layer in (stock, ours):
        builders.set_statistics(layer, **values)
    return stock, ours


def data(case: Case, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0.5, 2.0, case.shape)).astype(np.float32)


@both
@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference_is_the_stock_layer(kind, case):
    stock, ours = pair(kind, case)
    x = data(case)
    claims.assert_close(ours(x, training=False), stock(x, training=False), 1e-6)


@both
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_is_the_stock_layer(kind, case):
    """Outputs, gradients for the input and the variables, and the moving statistics."""
    stock, ours = pair(kind, case)
    weights = tf.constant(np.random.default_rng(9).normal(size=case.shape).astype(np.float32))
    for seed in range(3):
        x = tf.constant(data(case, seed))
        results = []
        for layer in (stock, ours):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y * weights)
            variables = [v for v in (layer.gamma, layer.beta) if v is not None]
            sources = [x, *(v if isinstance(v, tf.Variable) else v.value for v in variables)]
            results.append([y, *tape.gradient(loss, sources)])
        for found, expected in zip(results[1], results[0], strict=True):
            claims.assert_close(found, expected, 2e-5)
        for name in claims.STATISTICS:
            claims.assert_close(getattr(ours, name), getattr(stock, name), 1e-6, name)


@both
def test_same_arguments_and_variables(kind):
    """Weights move from the stock layer to ours in Keras's own order."""
    stock, ours = pair(kind, CASES[2])
    assert len(ours.trainable_weights) == len(stock.trainable_weights) == 2
    zero = np.array(0, np.int32)
    ours.set_weights([*stock.get_weights(), zero, zero])
    for name in ("gamma", "beta", *claims.STATISTICS):
        assert np.array_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(stock, name)))


@both
def test_regularizers_constraints_and_initializers(kind):
    keras = builders.keras_of(kind)
    options = {
        "gamma_initializer": keras.initializers.Constant(3.0),
        "beta_initializer": "ones",
        "moving_mean_initializer": "ones",
        "moving_variance_initializer": keras.initializers.Constant(2.0),
        "gamma_regularizer": keras.regularizers.L2(0.5),
        "beta_constraint": "non_neg",
    }
    layer = fused(kind)(**options)
    layer.build((None, CHANNELS))
    for name, value in {"gamma": 3, "beta": 1, "moving_mean": 1, "moving_variance": 2}.items():
        assert (np.asarray(getattr(layer, name)) == value).all()
    assert float(sum(layer.losses)) == pytest.approx(0.5 * 9 * CHANNELS)
    assert layer.beta.constraint is not None
    again = fused(kind).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@both
def test_not_trainable_means_inference(kind):
    stock, ours = pair(kind, CASES[2])
    x = data(CASES[2])
    stock.trainable = ours.trainable = False
    claims.assert_close(ours(x, training=True), stock(x, training=True), 1e-6)
    for name in claims.STATISTICS:
        assert np.array_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(stock, name)))


@both
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_dtypes(kind, dtype):
    keras = builders.keras_of(kind)
    policy = keras.mixed_precision.Policy(dtype) if dtype.startswith("mixed") else dtype
    stock, ours = pair(kind, CASES[2], dtype=policy)
    assert str(ours.gamma.dtype) == str(stock.gamma.dtype)
    x = data(CASES[2])
    tolerance = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2, "float64": 1e-9}[dtype]
    wide = tf.cast(x, "float64" if dtype == "float64" else dtype.removeprefix("mixed_"))
    for training in (False, True):
        found, expected = ours(wide, training=training), stock(wide, training=training)
        assert found.dtype == expected.dtype
        claims.assert_close(tf.cast(found, tf.float64), tf.cast(expected, tf.float64), tolerance)
    for name in claims.STATISTICS:
        claims.assert_close(getattr(ours, name), getattr(stock, name), tolerance, name)


@both
def test_masks(kind):
    """Keras 3 leaves masked steps out of the statistics; tf_keras ignores masks at rank 3."""
    case = Case((4, 6, CHANNELS))
    stock, ours = pair(kind, case)
    x, mask = data(case), np.random.default_rng(1).random((4, 6)) < 0.6
    found = ours(x, training=True, mask=tf.constant(mask))
    try:
        expected = stock(x, training=True, mask=tf.constant(mask))
    except TypeError:  # tf_keras's layer takes no mask
        pytest.skip("this Keras's layer takes no mask")
    claims.assert_close(found, expected, 1e-5)
    for name in claims.STATISTICS:
        claims.assert_close(getattr(ours, name), getattr(stock, name), 1e-5, name)


@both
def test_training_as_a_tensor(kind):
    """``training`` may be known only when the graph runs."""
    stock, ours = pair(kind, CASES[2])
    x = tf.constant(data(CASES[2]))
    run = tf.function(lambda flag: ours(x, training=flag))
    for flag in (True, False):
        claims.assert_close(run(tf.constant(flag)), stock(x, training=flag), 1e-5)
    claims.assert_close(ours.moving_mean, stock.moving_mean, 1e-6)


@both
def test_second_derivatives(kind):
    """As for a gradient penalty; the oracle is the same formula without a kernel."""
    _, ours = pair(kind, Case((4, 3, 3, CHANNELS)))
    x = tf.constant(data(Case((4, 3, 3, CHANNELS))))
    gamma, beta = tf.convert_to_tensor(ours.gamma), tf.convert_to_tensor(ours.beta)

    def plain(t: Any) -> Any:
        mean, variance = tf.nn.moments(t, [0, 1, 2])
        return tf.nn.batch_normalization(t, mean, variance, beta, gamma, ours.epsilon)

    results = []
    for function in (lambda t: ours(t, training=True), plain):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(tf.sin(function(x)))
            penalty = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
        results.append(outer.gradient(penalty, x))
    claims.assert_close(results[0], results[1], 1e-4)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pipeline": {"gama": None}}, TypeError),
        ({"pipeline": {"gamma": 3}}, rewriter.RewriterError),
    ],
)
@both
def test_bad_pipelines(kind, options, error):
    with pytest.raises(error, match="gam"):
        fused(kind)(**options)
