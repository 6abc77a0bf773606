"""The fused kernel and the choice of its statistics, beside the definition in float64.

Everything is compiled, with the choice made later. Where oneDNN is in use, the kernel by the batch's
statistics stands outside of the condition; that arrangement is right with any kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from rewriter import kernels
from rewriter.kernels.fast import machine, norm_kernels

EPSILON, MOMENTUM = 0.02, 0.9


@pytest.fixture(params=["plain", "fast, inside", "fast, outside"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both kernels, and where the fast ones stand."""
    monkeypatch.setattr(machine, "onednn", lambda: "outside" in request.param)
    with kernels.using(request.param.split(",")[0]):
        yield request.param


# Of the largest magnitude; the statistics of 16-bit layers are float32.
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}


def _data(dtype: str, shape: tuple[int, ...] = (4, 5, 3, 6)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    channels = shape[-1]
    draw = {name: rng.uniform(0.5, 2, channels) for name in ("mean", "variance", "gamma")}
    draw.update(beta=rng.normal(size=channels), bias=rng.normal(size=channels))
    draw = {name: value.astype(np.float32) for name, value in draw.items()}
    x = tf.cast(rng.normal(1, 2, shape), dtype)
    return {"x": x.numpy(), **draw, "old mean": draw["beta"], "old variance": draw["gamma"]}


def _definition(
    data: dict[str, Any], up: Any, frozen: int, bessel: bool, averaged: bool, biased: bool
) -> list[Any]:
    """Output, moving statistics, and gradients for x, gamma, beta, mean, variance, bias."""
    values = {name: tf.constant(np.asarray(value, np.float64)) for name, value in data.items()}
    sources = [values[name] for name in ("x", "gamma", "beta", "mean", "variance", "bias")]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        x = values["x"] + (values["bias"] - tf.stop_gradient(values["bias"]) if biased else 0.0)
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        used = (values["mean"], values["variance"]) if frozen else (mean, variance)
        y = tf.nn.batch_normalization(x, *used, values["beta"], values["gamma"], EPSILON)
        loss = tf.reduce_sum(y * up)
    names = ("old mean", "old variance") if averaged else ("mean", "variance")
    moving = [values[name] for name in names]
    if not frozen:
        n = x.shape.num_elements() / x.shape[-1]
        batch = mean, variance * (n / (n - 1) if bessel else 1.0)
        moving = [a + (1 - MOMENTUM) * (b - a) for a, b in zip(moving, batch, strict=True)]
    return [y, *moving, *tape.gradient(loss, sources, unconnected_gradients="zero")]


@pytest.mark.wide
@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("bessel", [False, True])
@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_outputs_statistics_and_gradients(ways, dtype, bessel, averaged, biased):
    data = _data(dtype)
    up = np.asarray(tf.cast(np.random.default_rng(5).normal(size=data["x"].shape), dtype))

    @tf.function
    def function(values: Any, frozen: Any) -> Any:
        with tf.GradientTape() as tape:
            names = ("x", "gamma", "beta", "mean", "variance", "bias")
            sources = [values[name] for name in names]
            tape.watch(sources)
            y, mean, variance = kernels.batch_norm(
                *sources[:5],
                frozen,
                epsilon=EPSILON,
                momentum=MOMENTUM,
                bessel=bessel,
                averages=(values["old mean"], values["old variance"]) if averaged else None,
                bias=values["bias"] if biased else None,
            )
            y = kernels.connected(y)
            loss = tf.reduce_sum(tf.cast(y * up, tf.float32))
        found = tape.gradient(loss, sources, unconnected_gradients="zero")
        return [y, mean, variance, *found]

    for frozen in (0, 1):
        found = function({k: tf.constant(v) for k, v in data.items()}, tf.constant(frozen))
        expected = _definition(data, up.astype(np.float64), frozen, bessel, averaged, biased)
        if not averaged:  # then nobody asks for the gradients of the statistics
            found, expected = found[:6] + found[8:], expected[:6] + expected[8:]
        elif not frozen:
            assert not np.any(found[6]) and not np.any(found[7])
        for got, exact in zip(found, expected, strict=True):
            size = max(float(np.abs(exact).max()), 1.0)
            got = tf.cast(got, tf.float64)
            np.testing.assert_allclose(got, exact, rtol=0, atol=BOUNDS[dtype] * size)
    assert function.experimental_get_tracing_count() == 1


def test_what_nobody_needs_is_not_computed(fast_kernels, arrangement):
    """Frozen, a kernel outside of the condition sees one pixel."""
    data = _data("float32")
    seen = []

    @tf.function
    def function(x: Any, frozen: Any) -> Any:
        values = [tf.constant(data[name]) for name in ("gamma", "beta", "mean", "variance")]
        options = {"epsilon": EPSILON, "momentum": MOMENTUM, "bessel": True}
        kernels.batch_norm(x, *values, frozen, **options)
        graph = tf.compat.v1.get_default_graph()
        found = [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]
        seen.append(len(found))
        return [tf.size(kernel.inputs[0]) for kernel in found]

    sizes = [function(tf.constant(data["x"]), tf.constant(frozen)) for frozen in (0, 1)]
    outside = arrangement == "outside"
    assert seen == [int(outside)]
    assert sizes == ([[data["x"].size], [data["x"].shape[-1]]] if outside else [[], []])


def test_an_empty_batch_and_one_element(ways):
    """Frozen, neither has statistics of its own that anyone would need."""
    data = _data("float32")

    @tf.function(reduce_retracing=True)
    def function(x: Any, frozen: Any) -> Any:
        values = [tf.constant(data[name]) for name in ("gamma", "beta", "mean", "variance")]
        options = {"epsilon": EPSILON, "momentum": MOMENTUM, "bessel": True}
        y, mean, variance = kernels.batch_norm(x, *values, frozen, **options)
        return kernels.connected(y), mean, variance

    for size in (0, 1):
        x = tf.constant(data["x"][:size, :1, :1])
        y, mean, variance = function(x, tf.constant(1))
        expected = _definition({**data, "x": x.numpy()}, 1.0, 1, True, False, False)
        np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(mean, data["mean"])
        np.testing.assert_array_equal(variance, data["variance"])


@pytest.mark.parametrize("enabled", [False, True])
def test_kernels_are_outside_of_conditions_where_onednn_is_in_use(enabled):
    """There TensorFlow finds them when it chooses kernels; elsewhere a branch has less to do."""
    code = """
import tensorflow as tf
from rewriter import kernels
from rewriter.kernels.fast import machine

print("in use:", machine.onednn())

def normalized(x, frozen):
    vectors = [tf.ones([3]) for _ in range(4)]
    options = {"epsilon": 1e-3, "momentum": 0.9, "bessel": True}
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = kernels.connected(kernels.batch_norm(x, *vectors, frozen, **options)[0])
    return tape.gradient(y, x)

arguments = tf.ones([2, 4, 4, 3]), tf.constant(0)
graph = tf.function(normalized).get_concrete_function(*arguments).graph
kinds = [node.op for node in graph.as_graph_def().node]
print("outside:", [kinds.count("FusedBatchNorm" + kind) for kind in ("V3", "GradV3")])
x, later = tf.random.normal([2, 4, 4, 3], seed=1), tf.Variable(0)
functions = [tf.function(lambda: normalized(x, later), jit_compile=jit) for jit in (True, None)]
for frozen in (0, 1):
    later.assign(frozen)
    compiled, alone = (function() for function in functions)
    print("compiled:", abs(compiled - alone).numpy().max(), compiled.shape == x.shape)
ops = functions[0].get_concrete_function().graph.get_operations()
print("outside for XLA:", sum(op.type == "FusedBatchNormV3" for op in ops))
"""
    environment = {
        "TF_ENABLE_ONEDNN_OPTS": str(int(enabled)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "REWRITER_KERNELS": "fast",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert f"in use: {enabled}" in done.stdout
    assert f"outside: {[1, 1] if enabled else [0, 0]}" in done.stdout
    for line in done.stdout.split("compiled:")[1:]:
        off, shaped = line.split()[:2]
        assert float(off) < 1e-6 and shaped == "True"
    assert "outside for XLA: 0" in done.stdout


@pytest.mark.slow
def test_with_the_kernels_of_onednn():
    """All of the above where TensorFlow really exchanges them."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", __file__, "-k", "outputs"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_what_the_kernel_outside_sees():
    seen = tf.function(norm_kernels.seen)
    for shape in ((3, 70, 50, 2), (2000, 1, 1, 3), (0, 4, 4, 2)):
        x = tf.random.normal(shape)
        np.testing.assert_array_equal(seen(x, tf.constant(0)), x)
        np.testing.assert_array_equal(seen(x, tf.constant(1)), x[:1, :1, :1])
