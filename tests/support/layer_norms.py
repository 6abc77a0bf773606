"""Models of one layer normalization, for its tests."""

from __future__ import annotations

from typing import Any

import numpy as np

# Shape of a sample, and arguments of the layer.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "vector": ((24,), {}),
    "sequence": ((7, 16), {"epsilon": 1e-6}),
    "image": ((5, 6, 12), {}),
    "long": ((4, 768), {"epsilon": 1e-6}),
    "rank_5": ((2, 3, 4, 6), {}),
    "two_axes": ((5, 6, 12), {"axis": [-2, -1]}),
    "all_axes": ((5, 6, 12), {"axis": (1, 2, 3)}),
    "no_scale": ((5, 6, 12), {"scale": False}),
    "no_center": ((6, 12), {"center": False}),
    "neither": ((5, 12), {"center": False, "scale": False}),
    "large_epsilon": ((5, 12), {"epsilon": 0.3}),
    "epsilon_above_all": ((6, 12), {"epsilon": 300.0}),
}


def model_of(keras: Any, name: str, seed: int = 0) -> tuple[Any, np.ndarray]:
    """One normalization with random weights; data whose deviations differ by a factor of 8."""
    keras.backend.clear_session()
    shape, options = CASES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    inputs = keras.Input(shape)
    layer = keras.layers.LayerNormalization(name="norm", **options)
    model = keras.Model(inputs, layer(inputs))
    for key, centre in (("gamma", 1.0), ("beta", 0.0)):
        variable = getattr(layer, key)
        if variable is not None:
            variable.assign(rng.normal(centre, 0.7, tuple(variable.shape)).astype(np.float32))
    sizes = np.exp(rng.uniform(-1, 1, (64,) + (1,) * len(shape)))
    x = sizes * rng.normal(size=(64, *shape)) + rng.normal(size=sizes.shape)
    return model, x.astype(np.float32)


def norm_of(qat: Any) -> Any:
    """The stock layer, which stays in the model."""
    (found,) = [
        layer for layer in qat._flatten_layers() if type(layer).__name__ == "LayerNormalization"
    ]
    return found
