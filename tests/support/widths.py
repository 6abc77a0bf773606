"""Hosts of every width for the tests: the model, its quantizers, and what its integers must be."""

from __future__ import annotations

from typing import Any

import numpy as np

import builders
from rewriter import PerTensorQuantizer, Recipe
from rewriter.litert.integer_kernels import rounding_offset
from rewriter.lowering.linear import normalization
from rewriter.lowering.lower import lower
from rewriter.quantization.quantizers import PerChannelQuantizer
from tfmot_recipes import KERNEL, last_value

IMAGE = (8, 9, 16)
HOSTS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Conv2D": (lambda k: k.Conv2D(12, 3, padding="same", name="host"), IMAGE),
    "DepthwiseConv2D": (lambda k: k.DepthwiseConv2D(3, depth_multiplier=2, name="host"), IMAGE),
    "Dense": (lambda k: k.Dense(16, name="host"), (96,)),
    "SeparableConv2D": (lambda k: k.SeparableConv2D(12, 3, name="host"), IMAGE),
    "Conv2DTranspose": (lambda k: k.Conv2DTranspose(12, 3, strides=2, name="host"), IMAGE),
}
AXES = {"DepthwiseConv2D": [(-2, -1)], "SeparableConv2D": [(-2, -1), (-1,)],
        "Conv2DTranspose": [(-2,)]}  # fmt: skip


WAYS = ("explicit", "json", "per-tensor", "tfmot")


def recipe(how: str, bits: int) -> Recipe:
    """The same grid, asked for in one of several ways."""
    if how == "per-tensor":
        return Recipe(kernel_quantizer=PerTensorQuantizer(bits))
    if how == "tfmot":
        return Recipe(kernel_quantizer=last_value(**{**KERNEL, "num_bits": bits}))
    if how == "default":
        return Recipe()
    made = Recipe(kernel_quantizer=PerChannelQuantizer(bits, channel_axes=(0,)))
    return Recipe.from_json(made.to_json()) if how == "json" else made


def model(keras: Any, name: str, seed: int = 0) -> tuple[Any, np.ndarray]:
    """``host -> BatchNormalization -> ReLU`` with statistics of every sort, and data."""
    builders.fresh(keras, seed)
    make, shape = HOSTS[name]
    image = keras.Input(shape)
    x = keras.layers.BatchNormalization(name="norm")(make(keras.layers)(image))
    built = builders.randomise(keras.Model(image, keras.layers.ReLU()(x)), seed, low=0.1, high=10)
    count = 512 if len(shape) == 1 else 48
    return built, np.random.default_rng(seed).normal(0.2, 1, (count, *shape)).astype(np.float32)


def calibrated(built: Any, x: np.ndarray, how: str, bits: int) -> Any:
    qat = builders.calibrated(built, x, recipe(how, bits))
    if how == "tfmot":  # learns its range in training
        qat(x[:1], training=True)
    return qat


def decibels(expected: Any, found: Any) -> float:
    """The signal over the difference."""
    a, b = (np.asarray(v).astype(np.float64) for v in (expected, found))
    noise = np.sum((a - b) ** 2)
    return float("inf") if noise == 0 else float(10 * np.log10(np.sum(a**2) / noise))


def on_the_grid_of_the_file(qat: Any) -> None:
    """Move beta so that the bias is one that the file's int32 holds exactly."""
    program = lower(qat)
    (host,) = builders.hosts(qat)
    step = [step for step in program.steps if step.operator.kernel is not None][-1]
    operator, channels = step.operator, program.tensors[step.inputs[0]].shape[-1]
    _, bias = normalization(host.batch_norm, np.asarray(host.bias).astype(np.float64))
    unit = np.float32(operator.inputs[0].scale) * operator.kernel_scale
    real = operator.bias * unit.astype(np.float64)
    real = real + rounding_offset(operator, channels) * operator.output.scale
    beta = np.asarray(host.batch_norm.beta).astype(np.float64) + real - bias
    host.batch_norm.beta.assign(beta.astype(np.float32))


def check_integers(qat: Any, name: str, how: str, bits: int) -> None:
    """The program's integers are those of the quantizer's formula, in float64."""
    (host,) = builders.hosts(qat)
    top = 2 ** (bits - 1) - 1
    operators = [s.operator for s in lower(qat).steps if s.operator.kernel is not None]
    for index, (operator, attribute) in enumerate(zip(operators, host.kernel_names, strict=True)):
        kernel = np.asarray(getattr(host.host, attribute)).astype(np.float64)
        axes = [a % kernel.ndim for a in AXES.get(name, [(-1,)])[index]]
        rest = tuple(a for a in range(kernel.ndim) if a not in axes)
        shape = [kernel.shape[a] if a in axes else 1 for a in range(kernel.ndim)]
        factor = np.ones(shape)
        if index == len(operators) - 1:
            norm = host.batch_norm
            gamma, variance = (
                np.asarray(v).astype(np.float64) for v in (norm.gamma, norm.moving_variance)
            )
            factor = (gamma / np.sqrt(variance + norm.epsilon)).reshape(shape)
        live = np.broadcast_to(np.abs(factor) > 1e-5, kernel.shape)
        folded = kernel * factor
        whole = None if how in ("per-tensor", "tfmot") else rest
        reach = np.abs(folded).max(whole, keepdims=True)
        if how == "tfmot":  # the range that it had when it was last trained
            reach = np.max(np.abs(host.kernel_ranges(index)))
        step = np.where(reach > 0, reach, 1) / top
        exact = np.clip(folded / step, -top, top)
        found = operator.kernel.reshape(kernel.shape).astype(np.float64)
        fill = operator.kernel_grid.qmax // top  # the storage is filled
        off = np.abs(found / fill - exact)[live].max()
        if off > 0.5 + 1e-3:
            raise AssertionError(f"{name}: integers off by {off:.3g}")
        assert not (found[live] % fill).any()
