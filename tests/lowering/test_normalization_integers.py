"""Layer, group and RMS normalization in integers, against NumPy in float64 on what the file reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, both
from rewriter.lowering.lower import lower
from rewriter.lowering.operators import normalizations


def _layer(axes: tuple[int, ...]) -> Callable[..., np.ndarray]:
    def normalized(x: np.ndarray, epsilon: float) -> np.ndarray:
        d = x - x.mean(axes, keepdims=True)
        return d / np.sqrt((d**2).mean(axes, keepdims=True) + epsilon)

    return normalized


def _groups(count: int) -> Callable[..., np.ndarray]:
    def normalized(x: np.ndarray, epsilon: float) -> np.ndarray:
        parts = x.reshape(len(x), -1, count, x.shape[-1] // count)
        return _layer((1, 3))(parts, epsilon).reshape(x.shape)

    return normalized


def _root_mean_square(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


# The layer, its arguments, the shape of a sample, and what it computes without scale and shift.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...], Callable[..., np.ndarray]]] = {
    "layer": ("LayerNormalization", {"epsilon": 1e-6}, (9, 96), _layer((-1,))),
    "layer_long": ("LayerNormalization", {}, (4, 768), _layer((-1,))),
    "layer_vector": ("LayerNormalization", {}, (24,), _layer((-1,))),
    "layer_axes": ("LayerNormalization", {"axis": (2, 3)}, (5, 6, 12), _layer((2, 3))),
    "layer_epsilon": ("LayerNormalization", {"epsilon": 0.3}, (5, 12), _layer((-1,))),
    "layer_large_epsilon": ("LayerNormalization", {"epsilon": 300.0}, (5, 12), _layer((-1,))),
    "group": ("GroupNormalization", {"groups": 4}, (5, 6, 16), _groups(4)),
    "group_one": ("GroupNormalization", {"groups": 1}, (20, 8), _groups(1)),
    "instance": ("GroupNormalization", {"groups": -1, "center": False}, (7, 7, 6), _groups(6)),
    "rms": ("RMSNormalization", {}, (9, 96), _root_mean_square),
}
STEPS = 0.36  # of the output; rounding alone makes 12 ** -1/2, or 0.29


def _built(flavour: str, name: str) -> tuple[Any, np.ndarray]:
    """A model of one layer with random weights; rows whose deviations differ by a factor of 8."""
    kind, options, shape, _ = CASES[name]
    k = KERASES[flavour]
    k.backend.clear_session()
    rng = np.random.default_rng([0, *name.encode()])
    inputs = k.Input(shape)
    layer = getattr(k.layers, kind)(name="norm", **options)
    model = k.Model(inputs, layer(inputs))
    for variable in layer.weights:
        centre = 0.0 if "beta" in variable.name else 1.0
        variable.assign(rng.normal(centre, 0.3, tuple(variable.shape)).astype(np.float32))
    sizes = np.exp(rng.uniform(-1, 1, (64, *shape[:-1], 1)))
    return model, (sizes * rng.normal(size=(64, *shape)) + 0.3).astype(np.float32)


def _noise(model: Any, x: np.ndarray, name: str) -> tuple[Any, float]:
    """The calibrated model, and the twin's root mean square error, in steps of its output."""
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, x, progress=False)
    program = lower(qat)
    grid = program.tensors[program.inputs[0]].quantization
    steps = np.clip(np.rint(x / np.float32(grid.scale)) + grid.zero_point, -128, 127)
    layer = next(each for each in model.layers if each.name == "norm")
    scale = next((getattr(layer, n, None) for n in ("gamma", "scale") if _is_variable(layer, n)), 1)
    shift = getattr(layer, "beta", None)
    read = (steps - grid.zero_point) * grid.scale
    exact = CASES[name][3](read, layer.epsilon) * np.asarray(scale, np.float64)
    exact = exact + (0 if shift is None else np.asarray(shift, np.float64))
    output = program.tensors[program.outputs[0]].quantization
    exact = np.clip(exact, *output.range)
    found = np.asarray(rewriter.fold(qat)(x), np.float64)
    return qat, float(np.sqrt(np.mean((exact - found) ** 2))) / output.scale


def _is_variable(layer: Any, name: str) -> bool:
    return hasattr(getattr(layer, name, None), "shape")


@pytest.mark.slow
@both
@pytest.mark.parametrize("name", CASES)
def test_near_float64_and_the_file_is_the_twin(name: str, flavour: str, tmp_path: Path) -> None:
    if name == "rms" and flavour == "tf_keras":
        pytest.skip("Keras 3 only")
    model, x = _built(flavour, name)
    qat, steps = _noise(model, x, name)
    assert steps < STEPS
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", x, progress=False)
    assert {tensor.identical for tensor in found.comparison.end_to_end} == {1.0}
    assert not found.comparison.differences and found.parts_at is None


@pytest.mark.parametrize(
    ("fault", "value"),
    [("_FINER", 1), ("_STRETCH", 1e9), ("_MOST", 2**9)],
    ids=["deviations_coarse", "one_stretch", "nine_bits"],
)
def test_a_fault_is_seen(fault: str, value: float, monkeypatch: Any) -> None:
    model, x = _built("keras", "layer")
    monkeypatch.setattr(normalizations, fault, value)
    assert _noise(model, x, "layer")[1] > STEPS
