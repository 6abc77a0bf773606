"""What the layers should compute, in float64 NumPy: shares no code with the package.

Written from the definitions: correlation with zero padding by TensorFlow's SAME and VALID rules,
``gamma * (x - mean) / sqrt(variance + epsilon) + beta``, and symmetric per-channel grids of
``max|w| / 127``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Norm:
    """The four variables of a batch normalization, float64 (C,), and its epsilon."""

    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float

    @property
    def factor(self) -> np.ndarray:
        """``gamma / sqrt(variance + epsilon)``."""
        return self.gamma / np.sqrt(self.variance + self.epsilon)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - self.mean) * self.factor + self.beta


def norm_of(layer: Any) -> Norm:
    """A stock BatchNormalization's."""
    mean = np.asarray(layer.moving_mean, np.float64)
    gamma = np.ones_like(mean) if layer.gamma is None else np.asarray(layer.gamma, np.float64)
    beta = np.zeros_like(mean) if layer.beta is None else np.asarray(layer.beta, np.float64)
    return Norm(gamma, beta, mean, np.asarray(layer.moving_variance, np.float64), layer.epsilon)


def kernel_scale(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """``max|w| / 127`` for every output channel, in a shape that multiplies the kernel."""
    rest = tuple(a for a in range(kernel.ndim) if a not in [axis % kernel.ndim for axis in axes])
    return np.abs(kernel).max(axis=rest, keepdims=True) / 127


def quantized_kernel(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """``Q(W)``: the nearest point of each channel's grid."""
    kernel = np.asarray(kernel, np.float64)
    scale = kernel_scale(kernel, axes)
    return np.where(scale > 0, np.rint(kernel / np.where(scale > 0, scale, 1)) * scale, 0.0)


def off_ties(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The kernel with elements that lie half-way between two steps moved away, float32.

    There float32 and float64 may well round to different sides.
    """
    kernel = np.asarray(kernel, np.float64)
    scale = kernel_scale(kernel, axes)
    steps = kernel / np.where(scale > 0, scale, 1)
    near = np.abs(np.abs(steps - np.floor(steps)) - 0.5) < 1e-3
    return np.where(near, np.floor(steps) * scale, kernel).astype(np.float32)


def _pads(size: int, window: int, stride: int, dilation: int, padding: str) -> tuple[int, int]:
    reach = (window - 1) * dilation + 1
    if padding == "causal":
        return reach - 1, 0
    if padding == "valid":
        return 0, 0
    total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def _windows(
    x: np.ndarray,
    window: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    padding: str,
) -> np.ndarray:
    """(N, H', W', h, w, C): what each output position sees."""
    pads = [_pads(x.shape[1 + i], window[i], strides[i], dilations[i], padding) for i in range(2)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    reach = [(window[i] - 1) * dilations[i] + 1 for i in range(2)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2))
    view = view[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    return view.transpose(0, 1, 2, 4, 5, 3)


def convolution(
    x: np.ndarray,
    kernel: np.ndarray,
    *,
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    padding: str = "valid",
) -> np.ndarray:
    """Grouped where the kernel (h, w, I, O) sees fewer channels than ``x`` has."""
    seen = _windows(np.asarray(x, np.float64), kernel.shape[:2], strides, dilations, padding)
    groups = x.shape[-1] // kernel.shape[2]
    parts = [
        np.einsum("nhwijc,ijco->nhwo", part, weights)
        for part, weights in zip(
            np.split(seen, groups, axis=-1), np.split(kernel, groups, axis=-1), strict=True
        )
    ]
    return np.concatenate(parts, axis=-1)


def depthwise(x: np.ndarray, kernel: np.ndarray, **options: Any) -> np.ndarray:
    """Kernel (h, w, C, M); the outputs of channel c are c * M to c * M + M - 1."""
    options = {"strides": (1, 1), "dilations": (1, 1), "padding": "valid", **options}
    seen = _windows(np.asarray(x, np.float64), kernel.shape[:2], **options)
    y = np.einsum("nhwijc,ijcm->nhwcm", seen, kernel)
    return y.reshape(*y.shape[:3], -1)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A host's linear part in float64.

    Attributes:
      name: class name.
      kernels: float64, in the order of use.
      bias: float64 (C,).
      strides, dilations: of two axes.
      padding: ``"same"``, ``"valid"`` or ``"causal"``.
    """

    name: str
    kernels: tuple[np.ndarray, ...]
    bias: np.ndarray
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    padding: str = "valid"

    def axes(self, index: int) -> tuple[int, ...]:
        """The axes of kernel ``index`` that tell the output channels apart."""
        first_of_separable = self.name == "SeparableConv2D" and index == 0
        return (2, 3) if self.name == "DepthwiseConv2D" or first_of_separable else (-1,)

    def quantized(self) -> Linear:
        """With every kernel on its grid."""
        kernels = (quantized_kernel(k, self.axes(i)) for i, k in enumerate(self.kernels))
        return dataclasses.replace(self, kernels=tuple(kernels))

    def folded(self, norm: Norm) -> Linear:
        """With the normalization in the last kernel and the bias."""
        last, factor = self.kernels[-1], norm.factor
        if self.axes(len(self.kernels) - 1) == (2, 3):
            factor = factor.reshape(last.shape[2:])
        bias = (self.bias - norm.mean) * norm.factor + norm.beta
        return dataclasses.replace(self, kernels=(*self.kernels[:-1], last * factor), bias=bias)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, np.float64)
        options = {
            "strides": self.strides, "dilations": self.dilations, "padding": self.padding
        }  # fmt: skip
        if self.name == "Dense":
            y = x @ self.kernels[0]
        elif self.name == "Conv1D":
            y = convolution(x[:, None], self.kernels[0][None], **options)[:, 0]
        elif self.name == "Conv2D":
            y = convolution(x, self.kernels[0], **options)
        elif self.name == "DepthwiseConv2D":
            y = depthwise(x, self.kernels[0], **options)
        elif self.name == "SeparableConv2D":
            y = convolution(depthwise(x, self.kernels[0], **options), self.kernels[1])
        else:
            raise NotImplementedError(self.name)
        return y + self.bias


def linear_of(layer: Any) -> Linear:
    """The linear part of a stock layer of either Keras."""
    kind = type(layer).__name__
    names = {
        "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"),
        "DepthwiseConv2D": ("depthwise_kernel",),
    }.get(kind, ("kernel",))
    found = [getattr(layer, name, None) for name in names]
    if found[0] is None:  # Keras 3's DepthwiseConv2D
        found = [layer.kernel]
    kernels = tuple(np.asarray(k, np.float64) for k in found)
    channels = kernels[-1].shape[-1]
    if kind == "DepthwiseConv2D":
        channels *= kernels[-1].shape[-2]
    bias = np.zeros(channels) if layer.bias is None else np.asarray(layer.bias, np.float64)
    if kind == "Dense":
        return Linear(kind, kernels, bias)
    spatial = [tuple(layer.strides), tuple(layer.dilation_rate)]
    if kind == "Conv1D":
        spatial = [(1, *value) for value in spatial]
    return Linear(kind, kernels, bias, *spatial, layer.padding)


@dataclasses.dataclass(frozen=True)
class Grid:
    """An asymmetric int8 grid: ``real = scale * (q - zero_point)``."""

    scale: float
    zero_point: int

    def integers(self, real: np.ndarray) -> np.ndarray:
        """Rounded and clamped, as float64."""
        return np.clip(np.rint(real / self.scale) + self.zero_point, -128, 127)

    def real(self, integers: np.ndarray) -> np.ndarray:
        return self.scale * (np.asarray(integers, np.float64) - self.zero_point)

    def __call__(self, real: np.ndarray) -> np.ndarray:
        return self.real(self.integers(real))


def grid_of(low: float, high: float) -> Grid:
    """The grid of a range that holds 0: 255 steps, the zero point at the step nearest to 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    return Grid(scale, int(np.floor(-low / scale + 0.5)) - 128)
