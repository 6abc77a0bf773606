"""Operations on gamma, beta, moving mean and variance: what the layer computes and learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import oracles
from pipelines import LEARNED, eight_bits, fixed_point, values_of
from rewriter import Clip, FixedPoint, layers
from rewriter.errors import RecipeError
from rewriter.quantization import phases
from small_models import VARIABLES

both = pytest.mark.parametrize("kind", builders.KERASES)
CHANNELS = 6


def norm_layer(kind: str, seed: int = 0, **options: Any) -> Any:
    """Our layer with random variables, in phase ``quantize``."""
    layer = getattr(layers, kind).FusedBatchNormalization(name="norm", **options)
    layer.build((None, 4, 5, CHANNELS))
    rng = np.random.default_rng(seed)
    builders.set_statistics(
        layer,
        gamma=rng.normal(size=CHANNELS),
        beta=rng.normal(size=CHANNELS),
        moving_mean=rng.normal(0, 3, CHANNELS),
        moving_variance=rng.uniform(0.01, 4, CHANNELS),
    )
    layer.phase.assign(phases.QUANTIZE)
    return layer


def image(seed: int = 5) -> np.ndarray:
    shape = (8, 4, 5, CHANNELS)
    return np.random.default_rng(seed).normal(0.4, 1.5, shape).astype(np.float32)


def normalized(x: Any, v: dict[str, Any], epsilon: float) -> np.ndarray:
    """The definition, float64."""
    norm = oracles.Norm(v["gamma"], v["beta"], v["moving_mean"], v["moving_variance"], epsilon)
    return norm(np.asarray(x, np.float64))


def batch_moments(x: np.ndarray) -> dict[str, np.ndarray]:
    wide = x.astype(np.float64)
    return {"moving_mean": wide.mean((0, 1, 2)), "moving_variance": wide.var((0, 1, 2))}


@both
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_piped_values_normalize(kind, training, frozen):
    layer = norm_layer(kind, pipeline=eight_bits())
    layer.frozen.assign(int(frozen))
    before = values_of(layer)
    piped = {name: fixed_point(value.astype(np.float32), 8) for name, value in before.items()}
    assert all((piped[name] != before[name]).any() for name in VARIABLES)
    x = image()
    moments = batch_moments(x)
    used = {**piped, **moments} if training and not frozen else piped
    claims.assert_close(layer(x, training=training), normalized(x, used, layer.epsilon), 2e-6)
    after = values_of(layer)
    if training and not frozen:
        # The averages go on from the variables, not from the piped values.
        n = x.size / CHANNELS
        moments["moving_variance"] *= n / (n - 1) if kind == "tf_keras" else 1
        for name, batch in moments.items():
            expected = 0.99 * before[name] + 0.01 * batch
            claims.assert_close(after[name], expected, 1e-6, name)
    else:
        for name in claims.STATISTICS:
            assert np.array_equal(after[name], before[name])


@both
def test_averages_do_not_lose_digits_to_what_is_piped(kind):
    """A pipe may give values of quite another size; the variable moves as without it."""
    layers_ = [norm_layer(kind, pipeline={n: Clip(1e6) for n in VARIABLES[2:]}), norm_layer(kind)]
    for layer in layers_:
        layer(image(), training=True)
    for name in claims.STATISTICS:
        a, b = (np.asarray(getattr(layer, name)) for layer in layers_)
        assert np.array_equal(a, b), name


@both
@pytest.mark.parametrize(
    ("acting", "active"),
    [
        (("quantize",), (False, False, True, True)),
        (("float",), (True, False, False, False)),
        (("observe", "quantize"), (False, True, True, True)),
        (("float", "observe", "quantize"), (True, True, True, True)),
    ],
)
def test_phases(kind, acting, active):
    layer = norm_layer(kind, pipeline={"gamma": FixedPoint(2), "phases": acting})
    before = values_of(layer)
    for code in range(4):
        layer.phase.assign(code)
        used = {**before}
        if active[code]:
            used["gamma"] = fixed_point(before["gamma"].astype(np.float32), 2)
        x = image()
        claims.assert_close(layer(x, training=False), normalized(x, used, layer.epsilon), 2e-6)


def numeric(function: Any, value: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a float64 function."""
    result = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        moved = [value.copy(), value.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        result[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return result


SMOOTH = {
    "gamma": (tf.math.tanh, np.tanh),
    "beta": (tf.math.sinh, np.sinh),
    "moving_mean": (lambda v: v * v, lambda v: v * v),
    "moving_variance": (tf.math.softplus, lambda v: np.log1p(np.exp(v))),
}


@both
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_gradients_of_smooth_operations(kind, frozen):
    """For the input, gamma and beta, against differences of the definition in float64."""
    layer = norm_layer(kind, pipeline={name: ours for name, (ours, _) in SMOOTH.items()})
    layer.frozen.assign(int(frozen))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 2, 2, CHANNELS)).astype(np.float32)
    weights = rng.normal(size=x.shape)

    def loss(variables: dict[str, np.ndarray], image: np.ndarray) -> float:
        piped = {name: SMOOTH[name][1](value) for name, value in variables.items()}
        if not frozen:
            piped |= batch_moments(image)
        return float((normalized(image, piped, layer.epsilon) * weights).sum())

    start = values_of(layer)
    tensor = tf.constant(x)
    raw = [v if isinstance(v, tf.Variable) else v.value for v in (layer.gamma, layer.beta)]
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = tf.reduce_sum(layer(tensor, training=True) * tf.constant(weights, tf.float32))
    found = tape.gradient(y, [tensor, *raw])
    expected = [
        numeric(lambda v: loss(start, v), x.astype(np.float64)),
        numeric(lambda v: loss({**start, "gamma": v}, x.astype(np.float64)), start["gamma"]),
        numeric(lambda v: loss({**start, "beta": v}, x.astype(np.float64)), start["beta"]),
    ]
    for a, b in zip(found, expected, strict=True):
        claims.assert_close(a, b, 2e-4)


@both
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_gradients_of_a_layers_own_variables(kind, frozen):
    """Those on mean and variance learn while the statistics are frozen, else they rest."""
    layer = norm_layer(kind, pipeline={name: LEARNED[kind]() for name in VARIABLES})
    layer.frozen.assign(int(frozen))
    own = layer.pipeline_variables
    assert len(own) == 8 and len(layer.trainable_variables) == 10
    rng = np.random.default_rng(2)
    start = [rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for _ in own]
    for variable, value in zip(own, start, strict=True):
        variable.assign(value)
    x = rng.normal(size=(3, 2, 2, CHANNELS)).astype(np.float32)
    weights, before = rng.normal(size=x.shape), values_of(layer)

    def loss(position: int, value: np.ndarray) -> float:
        theirs = [v.astype(np.float64) for v in start]
        theirs[position] = value
        piped = {
            name: before[name] * theirs[2 * i] + theirs[2 * i + 1]
            for i, name in enumerate(VARIABLES)
        }
        if not frozen:
            piped |= batch_moments(x)
        return float((normalized(x, piped, layer.epsilon) * weights).sum())

    raw = [v if isinstance(v, tf.Variable) else v.value for v in own]
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(x, training=True) * tf.constant(weights, tf.float32))
    found = tape.gradient(y, raw, unconnected_gradients="zero")
    for position, gradient in enumerate(found):
        expected = numeric(lambda v, p=position: loss(p, v), start[position].astype(np.float64))
        if position >= 4 and not frozen:
            assert not np.asarray(gradient).any() and not expected.any()
        else:
            claims.assert_close(gradient, expected, 2e-4)


@both
def test_operations_that_change_the_shape_are_refused(kind):
    layer = norm_layer(kind, pipeline={"gamma": lambda v: v[:2]})
    message = r"gamma of 'norm' must keep the shape \(6,\). Received: \(2,\)"
    with pytest.raises(RecipeError, match=message):
        layer(image(), training=False)
