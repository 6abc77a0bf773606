"""Every host: the plan, the float phase, training, the kernel's grid, and the export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, assert_close, both, call, everything, randomise, samples
from rewriter.quantization.phases import QUANTIZE
from rewriter.reading.hosts import HOSTS


@dataclasses.dataclass(frozen=True)
class Case:
    """A host before a normalization.

    Attributes:
      host: makes the layer, given ``keras.layers``.
      shape: of the input, without the batch.
      axes: the kernel's axes that index output channels, of the kernel that is folded into.
      refusal: what the export says, if it refuses.
      only: the one Keras that has it.
    """

    host: Callable[[Any], Any]
    shape: tuple[int, ...]
    axes: tuple[int, ...] = (-1,)
    refusal: str | None = None
    only: str | None = None


IMAGE, LINE, VOLUME = (7, 9, 4), (11, 4), (4, 5, 6, 3)
OUT, DEPTH, BACK = (-1,), (-2, -1), (-2,)
NO_3D = "'host' has no integer form"

CASES: dict[str, Case] = {
    "Conv1D": Case(lambda k: k.Conv1D(5, 3, strides=2, padding="same"), LINE),
    "Conv1D_causal": Case(lambda k: k.Conv1D(5, 3, dilation_rate=2, padding="causal"), LINE),
    "Conv1D_grouped": Case(lambda k: k.Conv1D(6, 3, groups=2), LINE),
    "Conv2D": Case(lambda k: k.Conv2D(5, 3, strides=2, padding="same"), IMAGE),
    "Conv2D_no_bias": Case(lambda k: k.Conv2D(5, (2, 3), use_bias=False), IMAGE),
    "Conv2D_grouped": Case(lambda k: k.Conv2D(6, 3, groups=2), IMAGE),
    "Conv2D_dilated": Case(lambda k: k.Conv2D(5, 3, dilation_rate=2, padding="same"), IMAGE),
    "Conv3D": Case(lambda k: k.Conv3D(5, 2, strides=2, padding="same"), VOLUME, refusal=NO_3D),
    "DepthwiseConv1D": Case(lambda k: k.DepthwiseConv1D(3, padding="same"), LINE, DEPTH),
    "DepthwiseConv1D_multiplied": Case(
        lambda k: k.DepthwiseConv1D(3, strides=2, depth_multiplier=2), LINE, DEPTH
    ),
    "DepthwiseConv2D": Case(lambda k: k.DepthwiseConv2D(3, strides=2), IMAGE, DEPTH),
    "DepthwiseConv2D_multiplied": Case(
        lambda k: k.DepthwiseConv2D((3, 2), depth_multiplier=3, padding="same"), IMAGE, DEPTH
    ),
    "DepthwiseConv2D_dilated": Case(
        lambda k: k.DepthwiseConv2D(3, dilation_rate=2, padding="same"), IMAGE, DEPTH
    ),
    "DepthwiseConv2D_strided_and_dilated": Case(
        lambda k: k.DepthwiseConv2D(3, strides=2, dilation_rate=2, padding="same"),
        IMAGE, DEPTH, only="keras",
    ),
    "SeparableConv1D": Case(lambda k: k.SeparableConv1D(5, 3, padding="same"), LINE),
    "SeparableConv1D_causal": Case(
        lambda k: k.SeparableConv1D(5, 3, padding="causal"), LINE, only="tf_keras"
    ),
    "SeparableConv2D": Case(lambda k: k.SeparableConv2D(5, 3, depth_multiplier=2), IMAGE),
    "Conv1DTranspose": Case(lambda k: k.Conv1DTranspose(5, 3, strides=2), LINE, BACK),
    "Conv1DTranspose_same": Case(
        lambda k: k.Conv1DTranspose(5, 4, strides=2, padding="same", use_bias=False), LINE, BACK
    ),
    "Conv2DTranspose": Case(lambda k: k.Conv2DTranspose(5, 3, strides=2), IMAGE, BACK),
    "Conv2DTranspose_same": Case(
        lambda k: k.Conv2DTranspose(5, (4, 3), strides=2, padding="same"), IMAGE, BACK
    ),
    "Conv2DTranspose_gaps": Case(lambda k: k.Conv2DTranspose(5, 2, strides=3), IMAGE, BACK),
    "Conv2DTranspose_output_padding": Case(
        lambda k: k.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=(1, 0)),
        IMAGE, BACK,
    ),
    "Conv2DTranspose_output_padding_valid": Case(
        lambda k: k.Conv2DTranspose(5, 3, strides=2, output_padding=1), IMAGE, BACK
    ),
    "Conv2DTranspose_dilated": Case(
        lambda k: k.Conv2DTranspose(5, 3, padding="same", dilation_rate=2), IMAGE, BACK,
        refusal="'host' is a transposed convolution with dilation_rate", only="tf_keras",
    ),
    "Conv3DTranspose": Case(
        lambda k: k.Conv3DTranspose(3, 2, strides=2), VOLUME, BACK, refusal=NO_3D
    ),
    "Dense": Case(lambda k: k.Dense(5), (6,)),
    "Dense_rank_3": Case(lambda k: k.Dense(5, use_bias=False), LINE),
    "Dense_rank_4": Case(lambda k: k.Dense(5), IMAGE),
    "Dense_rank_5": Case(lambda k: k.Dense(5), VOLUME),
    "TimeDistributed_Dense": Case(lambda k: k.TimeDistributed(k.Dense(5)), LINE),
    "TimeDistributed_Conv2D": Case(
        lambda k: k.TimeDistributed(k.Conv2D(5, 3, padding="same")), (3, *IMAGE)
    ),
    "TimeDistributed_Conv1D": Case(lambda k: k.TimeDistributed(k.Conv1D(5, 3)), (3, *LINE)),
    "TimeDistributed_DepthwiseConv2D": Case(
        lambda k: k.TimeDistributed(k.DepthwiseConv2D(3)), (3, *IMAGE), DEPTH
    ),
}  # fmt: skip


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


@both
def test_channels_first_is_refused_by_name(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((4, 7, 9))
    x = keras.layers.Conv2D(5, 3, data_format="channels_first", name="host")(inputs)
    x = keras.layers.BatchNormalization(axis=1, name="bn")(x)
    model = keras.Model(inputs, x)
    (entry,) = rewriter.plan(model).entries
    assert (entry.action, entry.host) == ("fused", "host")
    rewritten = rewriter.rewrite(model)
    for layer in rewriter.phases.phased_layers(rewritten):
        for name, value in (("min_var", -1.0), ("max_var", 1.0)):
            if name in getattr(layer, "range_variables", {}):
                layer.range_variables[name].assign(value)
    with pytest.raises(
        rewriter.errors.ExportError, match="'host' is channels_first.*channels_last"
    ):
        rewriter.export_tflite(rewritten, tmp_path / "m.tflite")
