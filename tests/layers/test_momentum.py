"""Momenta at the ends of their range: statistics that never move, and that are the last batch's."""

from __future__ import annotations

import numpy as np
import pytest

import rewriter
from builders import fresh, keras_of
from checks import both

X = np.random.default_rng(1).normal(2.0, 3.0, (16, 6, 6, 4)).astype(np.float32)


@both
@pytest.mark.parametrize("momentum", [1.0, 1, 0.0, 0.5])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("traced", [True, False])
def test_training_as_the_stock_layer(
    flavour: str, momentum: float, spatial: bool, traced: bool
) -> None:
    keras = fresh(keras_of(flavour))
    x = X if spatial else X[:, 0, 0]
    inputs = keras.Input(x.shape[1:])
    norm = keras.layers.BatchNormalization(momentum=momentum)
    model = keras.Model(inputs, keras.layers.Dense(2)(norm(inputs)))
    quantized = rewriter.rewrite(model)
    wide = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    normal = (wide - wide.mean(axes)) / np.sqrt(wide.var(axes) + norm.epsilon)
    dense = model.layers[-1]
    expected = normal @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    for each in (model, quantized):
        each.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=not traced)
        found = np.asarray(each(x, training=True))
        np.testing.assert_allclose(found, expected, atol=1e-4)
        each.fit(x, np.zeros_like(expected, np.float32), verbose=0, shuffle=False, batch_size=8)
    for one, other in zip(model.weights, _variables(quantized, model), strict=True):
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), atol=1e-5)


def _variables(quantized: object, model: object) -> list[object]:
    """The variables of the rewritten model that stand for those of ``model``, in its order."""
    kept = rewriter.trained_layers(quantized)
    names = [layer.name for layer in model.layers[1:]]  # type: ignore[attr-defined]
    found = []
    for name, layer in zip(names, model.layers[1:], strict=True):  # type: ignore[attr-defined]
        for attribute in _attributes(layer):
            found.append(getattr(kept[name], attribute))
    return found


def _attributes(layer: object) -> tuple[str, ...]:
    if type(layer).__name__ == "Dense":
        return "kernel", "bias"
    return "gamma", "beta", "moving_mean", "moving_variance"
