"""Random graphs: branches, sharing, nesting, several inputs and outputs, in both Kerases.

For every graph: the plan has an entry for each BatchNormalization, none is left after the
rewrite, and in phase float the outputs are the original's. ``REWRITER_GRAPHS`` sets how many
graphs are drawn for each Keras.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rewriter
from builders import KERASES, batch_norms, fresh, keras_of, randomise
from graph_files import WRITERS, write
from rewriter import keras_compat

GRAPHS = int(os.environ.get("REWRITER_GRAPHS", "150"))
_SIZE, _CHANNELS = 6, 4


class _Drawer:
    """Draws one graph: a pool of (N, 6, 6, 4) tensors that grows by one layer after the other."""

    def __init__(self, keras: ModuleType, draw: Any):
        self.keras = keras
        self.k = keras.layers
        self.draw = draw
        self.shared: list[Any] = []  # layers and models that may be called again

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def linear(self) -> Any:
        k = self.k
        activation = self.choose(["linear", "linear", "linear", "relu", "tanh"])
        bias = self.choose([True, False])
        common = {"padding": "same", "use_bias": bias, "activation": activation}
        return self.choose(
            [
                lambda: k.Conv2D(_CHANNELS, 3, **common),
                lambda: k.Conv2D(_CHANNELS, 1, groups=2, **common),
                lambda: k.Conv2D(_CHANNELS, 3, dilation_rate=2, **common),
                lambda: k.DepthwiseConv2D(3, **common),
                lambda: k.SeparableConv2D(_CHANNELS, 3, **common),
                lambda: k.Conv2DTranspose(_CHANNELS, 3, **common),
                lambda: k.Dense(_CHANNELS, use_bias=bias, activation=activation),
            ]
        )()

    def norm(self) -> Any:
        return self.k.BatchNormalization(
            scale=self.choose([True, True, False]),
            center=self.choose([True, True, False]),
            epsilon=self.choose([1e-3, 1e-5]),
        )

    def other(self) -> Any:
        k = self.k
        return self.choose(
            [
                k.ReLU,
                lambda: k.ReLU(6.0),
                lambda: k.Activation("sigmoid"),
                lambda: k.Dropout(0.5),
                lambda: k.MaxPooling2D(3, strides=1, padding="same"),
                lambda: k.AveragePooling2D(3, strides=1, padding="same"),
                lambda: k.Permute((2, 1, 3)),
                lambda: k.Lambda(lambda x: x * 0.5),
            ]
        )()

    def nested(self) -> Any:
        """A model of a few layers, Sequential or functional, maybe with a model inside."""
        count = self.draw(st.integers(1, 3))
        parts = []
        for _ in range(count):
            parts.append(self.choose([self.linear, self.norm, self.other])())
        if self.choose([False, False, True]):
            inner = [self.linear(), self.norm()]
            shape = (_SIZE, _SIZE, _CHANNELS)
            parts.append(self.keras.Sequential([self.keras.Input(shape), *inner]))
        if self.choose([True, False]):
            return self.keras.Sequential([self.keras.Input((_SIZE, _SIZE, _CHANNELS)), *parts])
        x = inputs = self.keras.Input((_SIZE, _SIZE, _CHANNELS))
        for part in parts:
            x = part(x)
        return self.keras.Model(inputs, x)

    def step(self, pool: list[Any]) -> Any:
        kind = self.choose(
            ["linear", "linear", "norm", "norm", "fused", "other", "merge", "nested", "again"]
        )
        x = self.choose(pool)
        if kind == "merge":
            y = self.choose(pool)
            merge = self.choose(["Add", "Multiply", "Maximum", "Concatenate", "Subtract"])
            both = getattr(self.k, merge)()([x, y])
            if merge == "Concatenate":
                both = self.k.Conv2D(_CHANNELS, 1)(both)
            return both
        if kind == "fused":
            return self.norm()(self.linear()(x))
        if kind == "again" and self.shared:
            return self.choose(self.shared)(x)
        layer = {
            "linear": self.linear,
            "norm": self.norm,
            "other": self.other,
            "nested": self.nested,
            "again": self.norm,
        }[kind]()
        self.shared.append(layer)
        return layer(x)

    def model(self) -> Any:
        inputs = [
            self.keras.Input((_SIZE, _SIZE, _CHANNELS)) for _ in range(self.draw(st.integers(1, 2)))
        ]
        pool = list(inputs)
        if len(inputs) == 2:
            pool.append(self.k.Add()(list(reversed(inputs))))
        for _ in range(self.draw(st.integers(2, 7))):
            pool.append(self.step(pool))
        pool.append(self.norm()(pool[-1]))
        outputs = [pool[-1]]
        if self.choose([True, False]):
            outputs.append(self.choose(pool[len(inputs) :]))
        if len(inputs) == 2 and outputs:
            # Both inputs count, or Keras would drop one from the graph.
            outputs[0] = self.k.Add()([outputs[0], pool[2]])
        structure: Any = outputs if len(outputs) > 1 else outputs[0]
        return self.keras.Model(inputs if len(inputs) > 1 else inputs[0], structure)


def check(keras: ModuleType, draw: Any, seed: int) -> None:
    """One graph of this Keras."""
    fresh(keras, seed)
    model = _Drawer(keras, draw).model()
    randomise(model, seed, low=0.3, high=3.0)
    names = {id(layer): layer.name for layer in batch_norms(model)}
    plan = rewriter.plan(model)
    assert len(plan.entries) == len(names)
    assert sorted(entry.name.rpartition("/")[2] for entry in plan.entries) == sorted(names.values())
    assert plan.count("refused") == 0
    rewritten = rewriter.rewrite(model)
    assert not batch_norms(rewritten)
    rng = np.random.default_rng(seed)
    data = [rng.normal(size=(2, *tuple(t.shape)[1:])).astype("float32") for t in model.inputs]
    data = [tf.constant(array) for array in data]
    given_data = data if len(data) > 1 else data[0]
    expected = tf.nest.flatten(model(given_data, training=False))
    found = tf.nest.flatten(rewritten(given_data, training=False))
    for one, other in zip(found, expected, strict=True):
        scale = max(float(tf.reduce_max(tf.abs(other))), 1e-3)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERASES)
def test_random_graphs_are_rewritten_exactly(name: str) -> None:
    @settings(
        max_examples=GRAPHS,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=st.data(), seed=st.integers(0, 2**16))
    def run(draw: Any, seed: int) -> None:
        check(keras_of(name), draw.draw, seed)

    run()


@pytest.mark.parametrize("name", KERASES)
def test_random_graphs_are_lifted(name: str, tmp_path: Path) -> None:
    """Written as a graph, in both ways, and made a model of either Keras again."""
    folders = itertools.count()

    @settings(
        max_examples=max(1, GRAPHS // 8),
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=st.data(), seed=st.integers(0, 2**16))
    def run(draw: Any, seed: int) -> None:
        keras = fresh(keras_of(name), seed)
        model = randomise(_Drawer(keras, draw.draw).model(), seed, low=0.3, high=3.0)
        how = draw.draw(st.sampled_from(WRITERS))
        target = draw.draw(st.sampled_from([flavour.name for flavour in keras_compat.usable()]))
        path = write(model, how, tmp_path / str(next(folders)))
        lifted = rewriter.load_model(path, flavour=target)
        rng = np.random.default_rng(seed)
        data = [rng.normal(size=(3, *tuple(t.shape)[1:])).astype("float32") for t in model.inputs]
        by_name = {t.name.split(":")[0]: array for t, array in zip(model.inputs, data, strict=True)}
        own = [by_name.get(t.name.split(":")[0]) for t in lifted.inputs]
        given_data = data if how == "module" else own
        expected = tf.nest.flatten(model(data if len(data) > 1 else data[0], training=False))
        found = tf.nest.flatten(lifted(given_data if len(data) > 1 else given_data[0]))
        for one, other in zip(found, expected, strict=True):
            scale = max(float(tf.reduce_max(tf.abs(other))), 1e-3)
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)
        assert len(batch_norms(lifted)) == len(batch_norms(model))
        shutil.rmtree(path)

    run()


@pytest.mark.parametrize("name", KERASES)
def test_a_rewritten_model_is_not_rewritten_again(name: str) -> None:
    keras = fresh(keras_of(name))
    k = keras.layers
    model = keras.Sequential([keras.Input((4,)), k.Dense(3, name="first"), k.BatchNormalization()])
    with pytest.raises(rewriter.RewriterError, match="quantization-aware already.*original model"):
        rewriter.rewrite(rewriter.rewrite(model))
