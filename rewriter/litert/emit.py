"""TensorFlow operators that the TFLite converter turns into one int8 operator each.

The tensors are float32 and lie on their grids: whoever produced them put a fake-quant operator
at its output (``fake_quant``), from which the converter reads the scale and the zero point.
Kernels are plain constants on their int8 grid, without a fake-quant operator: the converter then
finds the same integers and per-channel scales by itself.

QUANTIZE from int8 to int8, ELU and PRELU come out of the converter as other operators that
``stand_ins.restore`` has to replace. TRANSPOSE_CONV needs a static batch: with a computed output
shape XNNPACK does not take it, and the builtin kernel rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.litert.emit_ranges import fake_quant_range
from rewriter.litert.integer_elementwise import constant
from rewriter.litert.integer_spatial import slice_arguments
from rewriter.litert.stand_ins import SLOPES
from rewriter.program import Operator, Quantization

_ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "none": lambda x: x,
    "relu": tf.nn.relu,
    "relu6": tf.nn.relu6,
    "relu_n1_to_1": lambda x: tf.maximum(-1.0, tf.minimum(x, 1.0)),
}


def fake_quant(x: tf.Tensor, quantization: Quantization) -> tf.Tensor:
    """Marks ``x`` as quantized so, for the converter."""
    low, high = fake_quant_range(quantization)
    return tf.quantization.fake_quant_with_min_max_args(
        x, min=low, max=high, num_bits=quantization.bits, narrow_range=False
    )


def emit(operator: Operator, *x: tf.Tensor) -> tf.Tensor:
    """Emits one operator on real-valued tensors that lie on their grids.

    Args:
      operator: what to emit.
      *x: float32 tensors, batch first.

    Returns:
      The float32 output, fake-quantized where the converter needs to be told the output's scale.

    Raises:
      RewriterError: ``operator.kind`` cannot be emitted.
    """
    if operator.kind not in _EMITTERS:
        raise RewriterError(f"Cannot emit {operator.kind!r}. Supported: {sorted(SUPPORTED)}.")
    result = _EMITTERS[operator.kind](operator, *x)
    if operator.kind in _INHERITED or operator.output is None:
        return result
    return fake_quant(result, operator.output)


def _linear(
    function: Callable[[Operator, tf.Tensor, tf.Tensor], tf.Tensor], channels: tuple[int, ...]
) -> Callable[..., tf.Tensor]:
    """A kernel on its grid, the bias, and the fused activation.

    ``channels`` are the kernel's output axes.
    """

    def build(operator: Operator, x: tf.Tensor) -> tf.Tensor:
        integers, scales = operator.kernel, operator.kernel_scale
        source = operator.inputs[0]
        if integers is None or scales is None or source is None:
            raise RewriterError(f"{operator.kind} needs int8 input, kernel and kernel scale.")
        scales = np.asarray(scales, np.float32)
        shape = [size if axis in channels else 1 for axis, size in enumerate(integers.shape)]
        kernel = integers.astype(np.float32) * scales.reshape(shape)
        y = function(operator, x, tf.constant(kernel))
        if operator.bias is not None:
            grid = np.float64(np.float32(source.scale)) * scales.astype(np.float64)
            y = tf.nn.bias_add(y, tf.constant(operator.bias * grid, tf.float32))
        elif operator.kind == "TRANSPOSE_CONV" and operator.activation != "none":
            # The converter fuses this activation only with a bias, and folds one of zeros away;
            # this one becomes int32 zeros.
            y = tf.nn.bias_add(y, tf.fill(scales.shape, np.finfo(np.float32).tiny))
        return _ACTIVATIONS[operator.activation](y)

    return build


def _conv_2d(operator: Operator, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    attributes = operator.attributes
    return tf.nn.conv2d(
        x,
        kernel,
        strides=list(attributes["strides"]),
        padding=attributes["padding"],
        dilations=list(attributes.get("dilations", (1, 1))),
    )


def _depthwise(operator: Operator, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    attributes = operator.attributes
    return tf.raw_ops.DepthwiseConv2dNative(
        input=x,
        filter=kernel,
        strides=[1, *attributes["strides"], 1],
        padding=attributes["padding"],
        dilations=[1, *attributes.get("dilations", (1, 1)), 1],
    )


def _fully_connected(operator: Operator, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.matmul(x, kernel)


def _transpose_conv(operator: Operator, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    shape = list(operator.attributes["output_shape"])[-3:]
    batch = tf.shape(x)[:1] if x.shape[0] is None else [x.shape[0]]
    return tf.nn.conv2d_transpose(
        x,
        kernel,
        output_shape=tf.concat([batch, shape], axis=0),
        strides=list(operator.attributes["strides"]),
        padding=operator.attributes["padding"],
    )


def _binary(function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Two tensors, or a tensor and a constant."""

    def build(operator: Operator, *x: tf.Tensor) -> tf.Tensor:
        if "constant" in operator.attributes:
            x = (x[0], _constant(operator))
        return _ACTIVATIONS[operator.activation](function(*x))

    return build


def _constant(operator: Operator) -> tf.Tensor:
    """The constant operand, on its grid and marked with it."""
    integers, grid = constant(operator)
    real = (integers - grid.zero_point).astype(np.float32) * np.float32(grid.scale)
    return fake_quant(tf.constant(real), grid)


def _pool(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    def build(operator: Operator, x: tf.Tensor) -> tf.Tensor:
        attributes = operator.attributes
        pooled = function(
            x,
            ksize=list(attributes["pool_size"]),
            strides=list(attributes["strides"]),
            padding=attributes["padding"],
        )
        return _ACTIVATIONS[operator.activation](pooled)

    return build


def _mean(operator: Operator, x: tf.Tensor) -> tf.Tensor:
    attributes = operator.attributes
    return tf.reduce_mean(
        x, axis=list(attributes["axes"]), keepdims=attributes.get("keepdims", False)
    )


def _reduce_max(operator: Operator, x: tf.Tensor) -> tf.Tensor:
    attributes = operator.attributes
    return tf.reduce_max(
        x, axis=list(attributes["axes"]), keepdims=attributes.get("keepdims", False)
    )


def _quantize(operator: Operator, x: tf.Tensor) -> tf.Tensor:
    """From float the fake-quant operator that follows is all; see ``stand_ins`` for the rest."""
    return x if operator.inputs[0] is None else _leaky(SLOPES["QUANTIZE"])(operator, x)


def _leaky(slope: float) -> Callable[..., tf.Tensor]:
    return lambda operator, x: tf.nn.leaky_relu(x, slope)


def _hard_swish(operator: Operator, x: tf.Tensor) -> tf.Tensor:
    return x * tf.nn.relu6(x + 3.0) * (1.0 / 6.0)


def _gelu(operator: Operator, x: tf.Tensor) -> tf.Tensor:
    return tf.nn.gelu(x, approximate=operator.attributes.get("approximate", False))


def _resize(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    def build(operator: Operator, x: tf.Tensor) -> tf.Tensor:
        attributes = operator.attributes
        return function(
            images=x,
            size=list(attributes["size"]),
            align_corners=attributes.get("align_corners", False),
            half_pixel_centers=attributes.get("half_pixel_centers", False),
        )

    return build


_EMITTERS: dict[str, Callable[..., tf.Tensor]] = {
    "CONV_2D": _linear(_conv_2d, (3,)),
    "DEPTHWISE_CONV_2D": _linear(_depthwise, (2, 3)),
    "FULLY_CONNECTED": _linear(_fully_connected, (1,)),
    "TRANSPOSE_CONV": _linear(_transpose_conv, (2,)),
    "ADD": _binary(tf.add),
    "SUB": _binary(tf.subtract),
    "MUL": _binary(tf.multiply),
    "AVERAGE_POOL_2D": _pool(tf.nn.avg_pool2d),
    "MAX_POOL_2D": _pool(tf.nn.max_pool2d),
    "MEAN": _mean,
    "RESHAPE": lambda operator, x: tf.reshape(x, [-1, *operator.attributes["shape"]]),
    "CONCATENATION": lambda operator, *x: tf.concat(x, axis=operator.attributes["axis"]),
    "PAD": lambda operator, x: tf.pad(x, operator.attributes["paddings"]),
    "SOFTMAX": lambda operator, x: tf.nn.softmax(x),
    "L2_NORMALIZATION": lambda operator, x: tf.nn.l2_normalize(x, axis=-1),
    "QUANTIZE": _quantize,
    "DEQUANTIZE": lambda operator, x: x,
    "REDUCE_MAX": _reduce_max,
    "MAXIMUM": _binary(tf.maximum),
    "MINIMUM": _binary(tf.minimum),
    "PRELU": _binary(tf.multiply),
    "LOGISTIC": lambda operator, x: tf.sigmoid(x),
    "TANH": lambda operator, x: tf.tanh(x),
    "LEAKY_RELU": lambda operator, x: tf.nn.leaky_relu(x, operator.attributes["alpha"]),
    "ELU": _leaky(SLOPES["ELU"]),
    "GELU": _gelu,
    "HARD_SWISH": _hard_swish,
    "TRANSPOSE": lambda operator, x: tf.transpose(x, operator.attributes["perm"]),
    "STRIDED_SLICE": lambda operator, x: tf.strided_slice(x, **slice_arguments(operator)),
    "RESIZE_NEAREST_NEIGHBOR": _resize(tf.raw_ops.ResizeNearestNeighbor),
    "RESIZE_BILINEAR": _resize(tf.raw_ops.ResizeBilinear),
    "RELU": lambda operator, x: tf.nn.relu(x),
    "RELU6": lambda operator, x: tf.nn.relu6(x),
    "RELU_N1_TO_1": lambda operator, x: _ACTIVATIONS["relu_n1_to_1"](x),
}

# Their output's quantization is the input's, or fixed: a fake-quant operator would only be in
# the converter's way.
_INHERITED = frozenset(
    [
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
        "REDUCE_MAX",
        "RESHAPE",
        "TRANSPOSE",
        "STRIDED_SLICE",
        "CONCATENATION",
        "PAD",
        "RESIZE_NEAREST_NEIGHBOR",
        "RESIZE_BILINEAR",
        "MAXIMUM",
        "MINIMUM",
        "SOFTMAX",
        "LOGISTIC",
        "TANH",
        "L2_NORMALIZATION",
    ]
)

SUPPORTED = frozenset(_EMITTERS)
