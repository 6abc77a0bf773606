"""A quantization-aware model as stock layers and fake quantization, for other converters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter import layers
from rewriter.errors import UnsupportedModelError
from rewriter.grid import FUSED_ACTIVATIONS
from rewriter.keras_compat import Flavour
from rewriter.lowering import folding
from rewriter.lowering.linear import QuantizedKernel, after_kernel, kernels, normalization
from rewriter.lowering.lower import require_ranges
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.reading import from_keras
from rewriter.reading.graph import Call
from rewriter.reading.roles import BatchNorm, Ours
from rewriter.rewriting import retracing, sizes


def freeze(model: Any, *, input_shape: Any = None) -> Any:
    """A copy for inference that any converter takes, without phases and conditions.

    Linear layers are the stock ones again, with kernels on their integer grids and the
    normalization folded into them; in the place of every Quantize layer is one
    ``FakeQuantWithMinMaxArgs``. The copy computes what ``model`` computes in phase ``quantize``,
    in inference. Give it to ``tf.lite.TFLiteConverter.from_keras_model``, ``model.export`` or
    tf2onnx; :func:`rewriter.export_tflite` needs none of that, and its files are exact.

    Args:
      model: a calibrated (or trained) model that :func:`rewriter.rewrite` returned; it is left
        as it is.
      input_shape: as for :func:`rewriter.export_tflite`.

    Returns:
      A model of the same Keras that is not trainable.

    Raises:
      ExportError: if ranges are not set, or a quantizer has no grid; it names the layers.
      UnsupportedModelError: if the model has not been rewritten, is a twin or frozen; for an
        ``input_shape`` that does not fit.
    """
    model = sizes.settled(model, input_shape)
    graph = from_keras.read(model)
    ours = [call for call in graph.calls if isinstance(call.role, Ours)]
    if not ours or any(call.role.final for call in ours if isinstance(call.role, Ours)):
        raise UnsupportedModelError(
            f"The model {graph.name!r} is not quantization-aware, or a twin or frozen "
            "already. Give a model that rewriter.rewrite returned."
        )
    maker = _Maker(graph.flavour)
    frozen = retracing.retrace(model, graph, make=maker.make, name=f"{graph.name}_frozen")
    require_ranges(maker.ranges)
    frozen.trainable = False
    return frozen


class _Maker:
    """Stock layers for ours.

    Attributes:
      ranges: what reads the grids, and knows which are not set.
    """

    def __init__(self, flavour: Flavour):
        self.flavour = flavour
        self.stock = flavour.keras.layers
        self.ranges = ProgramBuilder(flavour)

    def make(self, call: Call, name: str) -> Any:
        """What stands for a layer of ours; None for any other layer."""
        layer = call.layer
        if isinstance(call.role, BatchNorm):
            return _Chain([(self._normalization(layer), _affine(layer))], name, self.flavour)
        if not isinstance(call.role, Ours):
            return None
        if hasattr(layer, "host"):
            return _Chain(self._host(call), name, self.flavour)
        if hasattr(layer, "norm"):
            norm = self.flavour.clone(layer.norm, name)
            values = [np.asarray(variable) for variable in layer.norm.variables]
            return _Chain([(norm, values)], name, self.flavour)
        return _Chain(self._quantize(layer, call.path), name, self.flavour)

    def _quantize(self, layer: Any, path: str) -> list[tuple[Any, Any]]:
        grid = self.ranges.range_of(layer, path)
        fake = layers.of(self.flavour).FakeQuantize(*grid.range, grid.bits, dtype=layer.dtype)
        if layer.clamp == "none":
            return [(fake, None)]
        _, most = FUSED_ACTIVATIONS[layer.clamp]
        relu = self.stock.ReLU(None if math.isinf(most) else most)
        return [(relu, None), (fake, None)]

    def _host(self, call: Call) -> list[tuple[Any, Any]]:
        layer = call.layer
        found = kernels(layer, call.path)
        last = found[-1]
        factor, bias = after_kernel(layer, len(last.scale))
        if layer.batch_norm is not None and not layer.folds_first:
            folded = folding.fold_scale(last.integers, last.scale, factor, last.grid.axes)
            found[-1] = QuantizedKernel(*folded, last.grid)
        values = [_real(kernel) for kernel in found]
        chain: list[tuple[Any, Any]] = []
        if layer.between is None:
            host = self.flavour.as_stock(layer.host)
            host.use_bias, host.activation = True, self.flavour.keras.activations.linear
            if hasattr(host, "bias_axes"):  # for each of the axes that the kernel adds
                axes = layer.row.kernels[-1].channel_axes
                host.bias_axes = host.equation.replace(" ", "")[-len(axes) :]
                bias = bias.reshape(values[-1].shape[-len(axes) :])
                self.flavour.complete_shape(host, [call.input_shapes[0]])
            names = (*layer.kernel_names, "bias")
            chain.append((host, dict(zip(names, (*values, bias), strict=True))))
        else:
            chain += self._separable(layer, values, bias, call.path)
        if layer.distributed:
            chain = [(self.stock.TimeDistributed(host), value) for host, value in chain]
        if layer.before_activation is not None:
            chain += self._quantize(layer.before_activation, call.path)
        clamp = "none" if layer.output_quantizer is None else layer.output_quantizer.clamp
        if layer.host.activation is not None and clamp == "none":
            linear = self.flavour.activation_name(layer.host.activation) == "linear"
            activation = self.stock.Activation(layer.host.activation)
            chain += [] if linear else [(activation, None)]
        if layer.output_quantizer is not None:
            chain += self._quantize(layer.output_quantizer, call.path)
        return chain

    def _separable(
        self, layer: Any, values: Sequence[np.ndarray], bias: np.ndarray, path: str
    ) -> list[tuple[Any, Any]]:
        """A depthwise and a pointwise convolution, with the grid between them."""
        host = layer.host
        rank = values[0].ndim - 2
        shared = {"data_format": host.data_format, "dtype": host.dtype}
        depthwise = getattr(self.stock, f"DepthwiseConv{rank}D")(
            host.kernel_size, host.strides, host.padding, depth_multiplier=host.depth_multiplier,
            dilation_rate=host.dilation_rate, use_bias=False, **shared,
        )  # fmt: skip
        pointwise = getattr(self.stock, f"Conv{rank}D")(host.filters, 1, **shared)
        attribute = self.flavour.kernel_attribute(type(depthwise).__name__, "depthwise_kernel")
        return [
            (depthwise, {attribute: values[0]}),
            *self._quantize(layer.between, f"{path}/between"),
            (pointwise, {"kernel": values[1], "bias": bias}),
        ]

    def _normalization(self, layer: Any) -> Any:
        return self.stock.BatchNormalization(
            axis=layer.axis, epsilon=float(layer.epsilon), dtype=layer.dtype
        )


def _affine(layer: Any) -> dict[str, np.ndarray]:
    """The variables of a stock normalization that scales and shifts as ours does."""
    channels = int(np.asarray(layer.moving_variance).size)
    factor, bias = normalization(layer, np.zeros(channels))
    ones = np.ones(channels)
    return {
        "gamma": factor,
        "beta": bias,
        "moving_mean": 0 * ones,
        "moving_variance": ones - float(layer.epsilon),
    }


def _real(kernel: QuantizedKernel) -> np.ndarray:
    """The values of a kernel on its grid."""
    axes = [axis % kernel.integers.ndim for axis in kernel.grid.axes]
    shape = [n if axis in axes else 1 for axis, n in enumerate(kernel.integers.shape)]
    scale = kernel.scale.astype(np.float64).reshape(shape)
    return (kernel.integers * scale).astype(np.float32)


class _Chain:
    """Layers one after the other in the place of one; the last has its name."""

    def __init__(self, parts: Sequence[tuple[Any, Any]], name: str, flavour: Flavour):
        self._parts = parts
        self._filled = False
        for number, (layer, _) in enumerate(parts, 1 - len(parts)):
            flavour.rename(layer, name if number == 0 else f"{name}_part_{number + len(parts)}")

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        for layer, _ in self._parts:
            x = layer(x)
        if not self._filled:
            self._filled = True
            for layer, values in self._parts:
                _fill(getattr(layer, "layer", layer), values)
        return x


def _fill(layer: Any, values: Any) -> None:
    if isinstance(values, dict):
        for name, value in values.items():
            getattr(layer, name).assign(np.asarray(value, np.float32))
    elif values is not None:
        for variable, value in zip(layer.variables, values, strict=True):
            variable.assign(value)
