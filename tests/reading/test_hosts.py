"""Every host: the plan, the float phase, training, the kernel's grid, and the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, assert_close, both, call, everything, randomise, samples
from host_cases import CASES, DEPTH, NO_3D, Case
from rewriter.quantization.phases import QUANTIZE
from rewriter.reading.hosts import HOSTS


def test_every_host_has_a_case() -> None:
    assert {name.split("_")[0] for name in CASES} - {"TimeDistributed"} == set(HOSTS)


def _model(case: Case, keras: Any, activation: str | None = "relu") -> Any:
    layers = keras.layers
    inputs = keras.Input(case.shape, name="x")
    host = case.host(layers)
    host = type(host).from_config({**host.get_config(), "name": "host"})
    x = layers.BatchNormalization(name="bn")(host(inputs))
    x = layers.Activation(activation)(x) if activation else x
    return keras.Model(inputs, x)


@both
@pytest.mark.parametrize("name", CASES)
def test_host(name: str, flavour: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.only not in (None, flavour):
        pytest.skip(f"{case.only} only")
    everything(
        flavour,
        lambda keras: _model(case, keras),
        {"bn": "host"},
        tmp_path,
        refusal=case.refusal,
        allow_float=case.refusal == NO_3D,
    )


@pytest.mark.wide
@both
@pytest.mark.parametrize("name", CASES)
def test_kernels_are_on_the_grid_of_their_channels(name: str, flavour: str) -> None:
    """With its kernels quantized, and nothing else, it is the stock model with NumPy's kernels."""
    case, keras = CASES[name], KERASES[flavour]
    if case.only not in (None, flavour):
        pytest.skip(f"{case.only} only")
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    model = _model(case, keras, None)
    inputs = samples(model, rng)
    randomise(model, rng, inputs)
    rewritten = rewriter.rewrite(model)
    next(layer for layer in rewritten.layers if layer.name == "host").phase.assign(QUANTIZE)
    host = next(layer for layer in model.layers if layer.name == "host")
    host = getattr(host, "layer", host)
    kernels = [v for v in host.weights if "kernel" in v.name]
    for kernel in kernels:
        depthwise = len(kernels) == 2 and kernel is kernels[0]
        kernel.assign(_quantized(np.asarray(kernel), DEPTH if depthwise else case.axes))
    assert_close(call(rewritten, inputs, training=False), call(model, inputs, training=False), 2e-5)


def _quantized(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Symmetric, narrow-range, one scale for every index of ``axes``; float64."""
    kernel = kernel.astype(np.float64)
    rest = tuple(set(range(kernel.ndim)) - {axis % kernel.ndim for axis in axes})
    scale = np.abs(kernel).max(axis=rest, keepdims=True) / 127
    return (np.rint(kernel / scale) * scale).astype(np.float32)
