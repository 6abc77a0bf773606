"""A layer of the twin: one LiteRT operator, computed as the device computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import grid as grids
from rewriter.grid import Grid
from rewriter.keras_compat import Flavour
from rewriter.litert import affine, integer
from rewriter.program import Operator, Quantization


class IntegerOperatorMixin:
    """One operator of the integer program, on real values that lie on their grids.

    Recovers the integers of its inputs, computes with LiteRT's integer arithmetic and rounding,
    and returns real values again: ``scale * (q - zero_point)``. Not trainable.

    Input: one float32 tensor, or a list of them, batch first; of any type where it is of whole
    numbers. Output: float32; int32 or int64 where it is of whole numbers.

    Args:
      operator: the operator, or the configuration that :meth:`get_config` made of one.

    Weights (none of them trainable): ``kernel`` (float32, on the grid of its channel),
    ``kernel_scale`` (float32), ``bias_integers`` (int32, or int64 with 16-bit inputs).
    """

    flavour: Flavour

    def __init__(self, operator: Operator | Mapping[str, Any], **kwargs: Any):
        if isinstance(operator, Operator):
            self._config = _describe(operator)
            self._constants = (operator.kernel, operator.kernel_scale, operator.bias)
        else:
            self._config = {key: operator[key] for key in operator}
            self._config["attributes"] = _of_arrays(self._config["attributes"])
            self._constants = (None, None, None)
        output = _quantization(self._config["output"])
        if output is not None and output.whole:
            kwargs.update(dtype=f"int{output.bits}", autocast=False)
        kwargs["trainable"] = False
        super().__init__(**kwargs)

    def build(self, input_shape: Any) -> None:
        shapes = self._config["kernel_shape"], self._config["bias_shape"]
        kernel, scale, bias = self._constants
        self.kernel = self.kernel_scale = self.bias_integers = None
        if shapes[0] is not None:
            channels = (int(self._config["channels"]),)
            self.kernel = self._constant("kernel", shapes[0], "float32")
            self.kernel_scale = self._constant("kernel_scale", channels, "float32")
            if kernel is not None:
                self.kernel.assign(kernel * _spread(scale, kernel.shape, self._config["kind"]))
                self.kernel_scale.assign(scale)
        if shapes[1] is not None:
            source = _quantization(self._config["inputs"][0])
            wide = source is not None and source.bits > grids.BITS
            dtype = "int64" if wide else "int32"
            self.bias_integers = self._constant("bias_integers", shapes[1], dtype)
            if bias is not None:
                self.bias_integers.assign(bias)
        super().build(input_shape)

    def _constant(self, name: str, shape: Any, dtype: str) -> Any:
        return self.flavour.add_weight(
            self, name, tuple(shape), "zeros", dtype=dtype, trainable=False
        )

    @property
    def bias(self) -> np.ndarray | None:
        """The bias, float64, on the grid ``input scale * kernel_scale``; None if there is none."""
        operator = self.operator
        if operator.bias is None or operator.inputs[0] is None:
            return None
        step = np.float32(operator.inputs[0].scale) * np.asarray(operator.kernel_scale)
        return operator.bias * step.astype(np.float64)

    @property
    def operator(self) -> Operator:
        """The operator, with the constants that the weights hold."""
        config = self._config
        with tf.init_scope():
            kernel, scale, bias = (
                None if v is None else np.asarray(v)
                for v in (self.kernel, self.kernel_scale, self.bias_integers)
            )
        if kernel is not None:
            step = _spread(scale, kernel.shape, config["kind"])
            kernel = np.rint(kernel / np.where(step > 0, step, 1)).astype(np.int8)
        return Operator(
            config["kind"],
            tuple(_quantization(q) for q in config["inputs"]),
            _quantization(config["output"]),
            config["attributes"],
            config["activation"],
            kernel,
            scale,
            bias,
            kernel_grid=_kernel_grid(config.get("kernel_grid")),
        )

    @tf.autograph.experimental.do_not_convert  # else every kernel that this calls is converted
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        operator = self.operator
        tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        values = [
            x if grid is None else affine.quantize(x, grid)
            for x, grid in zip(tensors, operator.inputs, strict=True)
        ]
        result = integer.compute(operator, *values)
        if operator.output is None:
            return result
        if operator.output.whole:
            return tf.cast(result, f"int{operator.output.bits}")
        return affine.dequantize(result, operator.output)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return tuple(self._config["output_shape"])

    def get_config(self) -> dict[str, Any]:
        attributes = {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in self._config["attributes"].items()
        }
        return {**super().get_config(), "operator": {**self._config, "attributes": attributes}}

    def with_output_shape(self, shape: Any) -> Any:
        """Tell the layer its output's static shape; returns the layer."""
        self._config["output_shape"] = list(shape)
        return self


class QuantizeInputMixin:
    """Puts a model input on its integer grid: ``clip(round(x / scale) + zero_point)``.

    Input and output: float32 of any shape; the output is ``scale * (q - zero_point)``.

    Args:
      scale, zero_point, bits: the grid.
    """

    flavour: Flavour

    def __init__(self, scale: float, zero_point: int, bits: int = grids.BITS, **kwargs: Any):
        super().__init__(**kwargs)
        self.quantization = Quantization(scale, zero_point, bits)

    @tf.autograph.experimental.do_not_convert  # as above
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        real = tf.cast(inputs, tf.float32)  # bytes, too
        return affine.dequantize(affine.quantize(real, self.quantization), self.quantization)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        grid = self.quantization
        own = {"scale": grid.scale, "zero_point": grid.zero_point, "bits": grid.bits}
        return {**super().get_config(), **own}


def _of_arrays(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes from a file, with the table of a GATHER as an array: reading lists takes long."""
    table = attributes.get("table")
    return dict(attributes) if table is None else {**attributes, "table": np.asarray(table)}


def _spread(scale: Any, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Per-channel scales in a shape that multiplies the kernel."""
    scale = np.asarray(scale, np.float32)
    if kind == "DEPTHWISE_CONV_2D":
        return scale.reshape(shape[-2:])
    if kind == "TRANSPOSE_CONV":
        return scale.reshape(-1, 1)
    return scale


def _describe(operator: Operator) -> dict[str, Any]:
    kernel, bias = operator.kernel, operator.bias
    return {
        "kind": operator.kind,
        "inputs": [_plain(q) for q in operator.inputs],
        "output": _plain(operator.output),
        "attributes": dict(operator.attributes),
        "activation": operator.activation,
        "kernel_shape": None if kernel is None else list(kernel.shape),
        "bias_shape": None if bias is None else list(bias.shape),
        "channels": None if operator.kernel_scale is None else len(operator.kernel_scale),
        "kernel_grid": None
        if operator.kernel_grid is None
        else [operator.kernel_grid.bits, list(operator.kernel_grid.axes)],
    }


def _plain(grid: Quantization | None) -> list[Any] | None:
    return None if grid is None else [grid.scale, grid.zero_point, grid.bits]


def _kernel_grid(values: Any) -> Grid | None:
    return None if values is None else grids.kernel(int(values[0]), values[1])


def _quantization(values: Any) -> Quantization | None:
    return None if values is None else Quantization(values[0], int(values[1]), int(values[2]))
