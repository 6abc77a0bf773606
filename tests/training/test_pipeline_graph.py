"""Pipelines in a compiled function, whose phase and statistics change after it was traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from test_pipeline import CHANNELS, image, norm_layer

import builders
from pipelines import fixed_point, values_of
from rewriter import FixedPoint, PowerOfTwo
from rewriter.quantization import phases
from small_models import VARIABLES

MIXES: dict[str, dict[str, Any]] = {
    "all alike": {name: FixedPoint(8) for name in VARIABLES},
    "some alike": {"beta": FixedPoint(4), "moving_variance": FixedPoint(4)},
    "ready-made": {"gamma": PowerOfTwo(4), "moving_mean": FixedPoint(3, fraction_bits=1)},
    "with a function": {
        "gamma": FixedPoint(8),
        "beta": tf.math.tanh,
        "moving_mean": FixedPoint(3),
        "moving_variance": FixedPoint(8),
    },
}


def _piped(op: Any, variable: Any) -> Any:
    """The value of an operation in float64, straight through but for functions."""
    if not hasattr(op, "get_config"):
        return op(variable)
    value = np.asarray(variable, np.float32)
    if isinstance(op, FixedPoint) and op.fraction_bits is None:
        result = fixed_point(value, op.num_bits)
    else:  # whose formula test_pipeline_ops has
        result = op(tf.constant(value), training=False, weights={}).numpy()
    return variable + tf.stop_gradient(np.asarray(result, np.float64) - variable)


def _expected(layer: Any, mix: Any, x: Any, weights: Any, batch: bool) -> list[Any]:
    """The output, and the gradients for the input and the four variables, in float64."""
    values = {name: tf.constant(value) for name, value in values_of(layer).items()}
    x = tf.constant(x, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([x, *values.values()])
        piped = {n: _piped(mix[n], v) if n in mix else v for n, v in values.items()}
        mean, variance = piped["moving_mean"], piped["moving_variance"]
        if batch:
            mean, variance = tf.nn.moments(x, [0, 1, 2])
        y = tf.nn.batch_normalization(
            x, mean, variance, piped["beta"], piped["gamma"], layer.epsilon
        )
        loss = tf.reduce_sum(y * weights)
    sources = [x, *(values[name] for name in VARIABLES)]
    return [y, *tape.gradient(loss, sources, unconnected_gradients="zero")]


@pytest.mark.parametrize("kind", builders.KERASES)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("mix", list(MIXES))
def test_values_and_gradients_in_every_phase(arrangement, kind, mix, training):
    operations = MIXES[mix]
    layer = norm_layer(kind, pipeline={**operations, "phases": ("observe", "quantize")})
    x = image()
    weights = np.random.default_rng(9).normal(size=x.shape)
    raw = [
        v if isinstance(v, tf.Variable) else v.value for v in (getattr(layer, n) for n in VARIABLES)
    ]

    @tf.function
    def function(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, *raw])
            y = layer(x, training=training)
            loss = tf.reduce_sum(y * tf.constant(weights, tf.float32))
        return [y, *tape.gradient(loss, [x, *raw], unconnected_gradients="zero")]

    for code in range(4):
        for frozen in (0, 1):
            layer.phase.assign(code)
            layer.frozen.assign(frozen)
            acting = operations if code != phases.FLOAT else {}
            batch = training and not frozen
            expected = _expected(layer, acting, x, weights, batch)
            for a, b in zip(function(tf.constant(x)), expected, strict=True):
                size = max(float(np.abs(b).max()), 1e-3 * x.size / CHANNELS)
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * size)
    assert function.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("kind", builders.KERASES)
def test_ready_made_operations_need_no_condition(kind):
    """What is fast about them; a function has one."""

    def conditions(**pipeline: Any) -> int:
        layer = norm_layer(kind, pipeline=pipeline)
        function = tf.function(lambda x: layer(x, training=False))
        graph = function.get_concrete_function(tf.constant(image())).graph
        kinds = [node.type for node in graph.get_operations()]
        return sum(kind in ("If", "StatelessIf", "Case", "StatelessCase") for kind in kinds)

    assert conditions(gamma=FixedPoint(8), beta=PowerOfTwo(3)) == 0
    assert conditions(gamma=FixedPoint(8), beta=tf.math.tanh) == 1


def test_what_a_phase_does_not_take_does_no_harm():
    """An operation's values may be anything where they are not used."""
    layer = norm_layer("tf_keras", pipeline={"gamma": FixedPoint(8)})
    layer.gamma.assign([np.inf, 1, 2, 3, 4, 5])
    layer.phase.assign(phases.FLOAT)
    function = tf.function(lambda x: layer(x, training=False))
    assert np.isfinite(function(image()).numpy()[..., 1:]).all()
