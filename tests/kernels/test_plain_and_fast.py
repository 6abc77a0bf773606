"""The plain kernels and the fast ones agree: values, gradients, ranges and statistics."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from claims import assert_close
from host_cases import CASES
from rewriter import grid, kernels
from rewriter.kernels import fast, plain
from rewriter.kernels.fast import machine
from rewriter.quantization import phases

# Forward the sums are the same ones. Gradients of convolutions are summed in another order, which
# 16 bits round to one of two neighbours; that of a depthwise kernel is summed of such roundings.
BOUNDS = {"float32": 1e-6, "float64": 1e-13, "mixed_float16": 2**-9, "mixed_bfloat16": 2**-5}
PHASES = (phases.FLOAT, phases.OBSERVE, phases.QUANTIZE, phases.QUANTIZE_FROZEN)


def test_the_same_functions() -> None:
    for name in fast.__all__:
        assert name in kernels.__all__
        ours, specified = (
            [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
            for function in (getattr(fast, name), getattr(plain, name))
        )
        assert ours == specified, name
    public = {name for name in kernels.__all__ if name.islower()} - {"current", "using"}
    assert public == set(fast.__all__)


def test_the_specification_is_public_tensorflow() -> None:
    folder = Path(rewriter.__file__).parent / "kernels" / "plain"
    specification = "".join(path.read_text() for path in folder.glob("*.py"))
    assert "kernels.fast" not in specification and not re.search(r"\w\._\w", specification)


def _agree(found: Any, expected: Any, bound: float, what: str) -> None:
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.dtype == b.dtype
        assert_close(tf.cast(a, "float64"), tf.cast(b, "float64"), bound, f"{what}, {index}")


def _model(kind: str, name: str, dtype: str) -> Any:
    """The host, a normalization and a ReLU, and the host again before frozen statistics."""
    keras = builders.fresh(builders.keras_of(kind), 3)
    policy: Any = keras.mixed_precision.Policy(dtype) if kind == "tf_keras" else dtype
    case, k = CASES[name], keras.layers

    def host(x: Any, name: str) -> Any:
        layer = case.host(k)
        if hasattr(layer, "layer"):
            inner = layer.layer
            config = {**inner.get_config(), "dtype": policy, "bias_initializer": "random_normal"}
            return k.TimeDistributed(type(inner).from_config(config), name=name, dtype=policy)(x)
        config = {**layer.get_config(), "name": name, "dtype": policy}
        return type(layer).from_config({**config, "bias_initializer": "random_normal"})(x)

    inputs = keras.Input(case.shape)
    x = k.BatchNormalization(dtype=policy)(host(inputs, "first"))
    x = k.ReLU(dtype=policy)(x)
    y = k.BatchNormalization(dtype=policy, name="frozen")(host(inputs, "second"))
    model = keras.Model(inputs, [x, y])
    return rewriter.rewrite(builders.randomise(model, 2, low=0.1, high=10))


def _step(model: Any, x: Any) -> Any:
    variables = [v if isinstance(v, tf.Variable) else v.value for v in model.trainable_variables]

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x, training=True)
            weights = [tf.reshape(tf.range(tf.size(y)) % 7 - 3, tf.shape(y)) for y in outputs]
            loss = sum(
                tf.reduce_sum(tf.cast(y, x.dtype) * tf.cast(w, x.dtype))
                for y, w in zip(outputs, weights, strict=True)
            )
        found = tape.gradient(loss, [x, *variables], unconnected_gradients="zero")
        # All in one: that of a bias before a normalization is nothing beside the others.
        flat = tf.concat([tf.reshape(tf.cast(g, tf.float64), [-1]) for g in found[1:]], 0)
        return *outputs, found[0], flat

    return step


_HOSTS = [(kind, name, "float32") for kind in builders.KERASES for name in CASES]
_HOSTS += [("tf_keras", name, dtype) for name in CASES for dtype in BOUNDS if dtype != "float32"]


@pytest.mark.wide
@pytest.mark.parametrize(("kind", "name", "dtype"), _HOSTS)
def test_hosts(kind: str, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of training in every phase; with the fast kernels of both arrangements."""
    if CASES[name].only not in (None, kind):
        pytest.skip(f"{CASES[name].only} only")
    model = _model(kind, name, dtype)
    shape = 4, *CASES[name].shape
    given = np.random.default_rng(1).normal(size=shape)
    x = tf.constant(given, "float64" if dtype == "float64" else "float32")
    rewriter.calibrate(model, np.asarray(x), progress=False, method="minmax")
    model.get_layer("second").batch_norm.frozen.assign(1)
    start = model.get_weights()

    def results(step: Any) -> Any:
        found = []
        for code in PHASES:
            model.set_weights(start)
            for layer in phases.phased_layers(model):
                layer.phase.assign(code)
            outputs = step()
            state = [np.ravel(w).astype("float64") for w in model.get_weights()]
            found.append([*outputs, tf.constant(np.concatenate(state))])
        return found

    with kernels.using("plain"):
        expected = results(_step(model, x))
    bound = BOUNDS[dtype]
    for onednn in (False, True):
        monkeypatch.setattr(machine, "onednn", lambda onednn=onednn: onednn)
        with kernels.using("fast"):
            for code, a, b in zip(PHASES, results(_step(model, x)), expected, strict=True):
                _agree(a, b, bound, f"phase {code}, oneDNN's way: {onednn}")


def test_how_far_apart_phases_are() -> None:
    """That the comparison above compares something: each phase has outputs or ranges of its own."""
    model = _model("tf_keras", "Conv2D", "float32")
    x = tf.random.stateless_normal((4, *CASES["Conv2D"].shape), (1, 2))
    rewriter.calibrate(model, np.asarray(x), progress=False, method="minmax")
    outputs = []
    for code in (phases.FLOAT, phases.QUANTIZE):
        for layer in phases.phased_layers(model):
            layer.phase.assign(code)
        outputs.append(model(x * 2, training=True)[0])
    assert float(tf.reduce_max(tf.abs(outputs[0] - outputs[1]))) > 1e-3


@pytest.mark.parametrize("clamp", ["none", "relu", "relu6"])
@pytest.mark.parametrize("bits", [8, 4, 16])
@pytest.mark.parametrize("unset", [False, True])
def test_activations(clamp: str, bits: int, unset: bool) -> None:
    """Two tensors that share a range, for every phase and way to follow."""
    x, y = (tf.random.stateless_normal([3, 5, 2], (seed, 2)) * 5.0 for seed in (1, 2))
    ends = (np.inf, -np.inf) if unset else (-0.5, 3.0)

    def results() -> Any:
        low, high = tf.Variable(ends[0]), tf.Variable(ends[1])

        def function(x: Any, y: Any, phase: Any, follow: Any) -> Any:
            options = {
                "rate": 0.25,
                "follow": follow,
                "clamp": clamp,
                "grid": grid.activation(bits),
            }
            with tf.GradientTape() as tape:
                tape.watch([x, y])
                a, before = kernels.activation(x, low, high, phase, **options)
                b, _ = kernels.activation(y, low, high, phase, before=before, **options)
                c = kernels.fixed_activation(x, -1.0, 2.0, tf.minimum(phase, 3), clamp=clamp)
                a, b, c = (kernels.connected(t) for t in (a, b, c))
                loss = tf.reduce_sum(a * y + b * tf.stop_gradient(x) + c * c)
            return a, b, c, *tape.gradient(loss, [x, y])

        found = []
        for follow in (False, True, None):
            compiled = tf.function(function, autograph=False)
            for code in range(5):
                low.assign(ends[0]), high.assign(ends[1])
                if code == phases.QUANTIZE_FIXED and unset:
                    continue  # its layers have a range
                chosen = tf.constant(True) if follow is None else follow
                found.append(
                    [*compiled(x, y, tf.constant(code), chosen), low.value(), high.value()]
                )
        return [value for values in found for value in values]

    with kernels.using("plain"):
        expected = results()
    with kernels.using("fast"):
        found = results()
    set_ranges = [np.isfinite(np.asarray(value)).all() for value in expected]
    assert set_ranges == [np.isfinite(np.asarray(value)).all() for value in found]
    assert unset or all(set_ranges)
    found, expected = (
        [v for v, is_set in zip(values, set_ranges, strict=True) if is_set]
        for values in (found, expected)
    )
    _agree(found, expected, 1e-6, clamp)


@pytest.mark.parametrize("kind", builders.KERASES)
@pytest.mark.parametrize("axis", [-1, (1, 2)])
def test_layer_normalizations(kind: str, axis: Any) -> None:
    keras = builders.fresh(builders.keras_of(kind), 1)
    inputs = keras.Input((5, 6))
    model = rewriter.rewrite(keras.Model(inputs, keras.layers.LayerNormalization(axis)(inputs)))
    x = tf.random.stateless_normal([4, 5, 6], (3, 4)) * 2.0
    rewriter.calibrate(model, np.asarray(x), progress=False, method="minmax")
    start = model.get_weights()

    def results() -> Any:
        @tf.function(autograph=False)
        def function() -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = model(x, training=True)
            return y, tape.gradient(y, x, output_gradients=tf.sin(y))

        found = []
        for code in PHASES:
            model.set_weights(start)
            for layer in phases.phased_layers(model):
                layer.phase.assign(code)
            found += function()
        return found

    with kernels.using("plain"):
        expected = results()
    with kernels.using("fast"):
        _agree(results(), expected, 1e-6, kind)


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )


_MISSING = """
from tensorflow.python.eager import record
del record.record_operation
import rewriter
from rewriter import kernels
print("kernels:", kernels.current(), kernels.tensor.__module__)
"""


def test_a_tensorflow_that_lacks_a_private_name() -> None:
    """The plain kernels are taken, with one line of warning."""
    done = _run(_MISSING, REWRITER_KERNELS="")
    assert "kernels: plain rewriter.kernels.plain" in done.stdout, done.stderr
    assert done.stderr.count("record_operation") == 1
    assert done.stderr.count("REWRITER_KERNELS=plain") == 1
    done = _run(_MISSING, REWRITER_KERNELS="plain")
    assert "kernels: plain rewriter.kernels.plain" in done.stdout, done.stderr
    assert "record_operation" not in done.stderr


@pytest.mark.slow
def test_what_the_environment_asks_for() -> None:
    code = "from rewriter import kernels; print('kernels:', kernels.current())"
    assert "kernels: plain" in _run(code, REWRITER_KERNELS="plain").stdout
    assert "kernels: fast" in _run(code, REWRITER_KERNELS="fast").stdout
    done = _run(code, REWRITER_KERNELS="quick")
    assert "REWRITER_KERNELS must be 'plain' or 'fast'. Received: 'quick'." in done.stderr
    with pytest.raises(ValueError, match="quick"), kernels.using("quick"):
        pass
    with pytest.raises(AttributeError, match="no attribute 'convolutions'"):
        _ = kernels.convolutions  # type: ignore[attr-defined]
