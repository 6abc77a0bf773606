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
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.litert.emit_ranges import fake_quant_range
from rewriter.litert.integer_elementwise import constant
from rewriter.litert.integer_spatial import slice_arguments
from rewriter.litert.nodes import Node, Nodes, nodes_of, tensor_of
from rewriter.litert.stand_ins import SLOPES
from rewriter.program import Operator, Quantization

_Value: TypeAlias = Node | tf.Tensor

_ACTIVATIONS: dict[str, Callable[[_Value], _Value]] = {
    "none": lambda x: x,
    "relu": lambda x: nodes_of(x).add("Relu", x, T=tf.float32),
    "relu6": lambda x: nodes_of(x).add("Relu6", x, T=tf.float32),
    "relu_n1_to_1": lambda x: tf.maximum(-1.0, tf.minimum(tensor_of(x), 1.0)),
}


def fake_quant(x: Node | tf.Tensor, quantization: Quantization) -> Node:
    """Marks ``x`` as quantized so, for the converter."""
    low, high = fake_quant_range(quantization)
    return nodes_of(x).add(
        "FakeQuantWithMinMaxArgs", x, min=low, max=high, num_bits=quantization.bits
    )


def leaky_relu(x: Node | tf.Tensor, slope: float) -> Node:
    """``x`` where it is positive, ``slope * x`` elsewhere."""
    return nodes_of(x).add("LeakyRelu", x, alpha=float(slope), T=tf.float32)


def emit(operator: Operator, *x: Node | tf.Tensor) -> Node | tf.Tensor:
    """Emits one operator on real-valued tensors that lie on their grids.

    Args:
      operator: what to emit.
      *x: float32 tensors or nodes that stand for them, batch first.

    Returns:
      The float32 output or its node, fake-quantized where the converter needs to be told the
      output's scale.

    Raises:
      RewriterError: ``operator.kind`` cannot be emitted.
    """
    if operator.kind not in _EMITTERS:
        raise RewriterError(f"Cannot emit {operator.kind!r}. Supported: {sorted(SUPPORTED)}.")
    if operator.kind not in _AS_NODES:
        x = tuple(tensor_of(value) for value in x)
    result = _EMITTERS[operator.kind](operator, *x)
    if operator.kind in _INHERITED or operator.output is None:
        return result
    return fake_quant(result, operator.output)


def _linear(
    function: Callable[[Operator, _Value, Node], _Value], channels: tuple[int, ...]
) -> Callable[..., _Value]:
    """A kernel on its grid, the bias, and the fused activation.

    ``channels`` are the kernel's output axes.
    """

    def build(operator: Operator, x: _Value) -> _Value:
        integers, scales = operator.kernel, operator.kernel_scale
        source = operator.inputs[0]
        if integers is None or scales is None or source is None:
            raise RewriterError(f"{operator.kind} needs int8 input, kernel and kernel scale.")
        scales = np.asarray(scales, np.float32)
        shape = [size if axis in channels else 1 for axis, size in enumerate(integers.shape)]
        kernel = integers.astype(np.float32) * scales.reshape(shape)
        nodes = nodes_of(x)
        y = function(operator, x, nodes.constant(kernel))
        if operator.bias is not None:
            grid = np.float64(np.float32(source.scale)) * scales.astype(np.float64)
            y = nodes.add("BiasAdd", y, nodes.constant(operator.bias * grid), T=tf.float32)
        elif operator.kind == "TRANSPOSE_CONV" and operator.activation != "none":
            # The converter fuses this activation only with a bias, and folds one of zeros away;
            # this one becomes int32 zeros.
            tiny = tf.fill(scales.shape, np.finfo(np.float32).tiny)
            y = tf.nn.bias_add(tensor_of(y), tiny)
        return _ACTIVATIONS[operator.activation](y)

    return build


def _convolution(op: str) -> Callable[[Operator, _Value, Node], Node]:
    def build(operator: Operator, x: _Value, kernel: Node) -> Node:
        attributes = operator.attributes
        return kernel.nodes.add(
            op,
            x,
            kernel,
            T=tf.float32,
            strides=[1, *attributes["strides"], 1],
            padding=attributes["padding"],
            dilations=[1, *attributes.get("dilations", (1, 1)), 1],
        )

    return build


def _fully_connected(operator: Operator, x: _Value, kernel: Node) -> tf.Tensor:
    return tf.matmul(tensor_of(x), tensor_of(kernel))


def _transpose_conv(operator: Operator, x: _Value, kernel: Node) -> tf.Tensor:
    x = tensor_of(x)
    shape = list(operator.attributes["output_shape"])[-3:]
    batch = tf.shape(x)[:1] if x.shape[0] is None else [x.shape[0]]
    return tf.nn.conv2d_transpose(
        x,
        tensor_of(kernel),
        output_shape=tf.concat([batch, shape], axis=0),
        strides=list(operator.attributes["strides"]),
        padding=operator.attributes["padding"],
    )


def _binary(op: str, name: str = "") -> Callable[..., _Value]:
    """Two tensors, or a tensor and a constant."""

    def build(operator: Operator, *x: _Value) -> _Value:
        nodes = nodes_of(*x)
        if "constant" in operator.attributes:
            x = (x[0], _constant(operator, nodes))
        return _ACTIVATIONS[operator.activation](nodes.add(op, *x, name=name, T=tf.float32))

    return build


def _constant(operator: Operator, nodes: Nodes) -> Node:
    """The constant operand, on its grid and marked with it."""
    integers, grid = constant(operator)
    real = (integers - grid.zero_point).astype(np.float32) * np.float32(grid.scale)
    return fake_quant(nodes.constant(real), grid)


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
    return lambda operator, x: leaky_relu(x, slope)


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


_EMITTERS: dict[str, Callable[..., _Value]] = {
    "CONV_2D": _linear(_convolution("Conv2D"), (3,)),
    "DEPTHWISE_CONV_2D": _linear(_convolution("DepthwiseConv2dNative"), (2, 3)),
    "FULLY_CONNECTED": _linear(_fully_connected, (1,)),
    "TRANSPOSE_CONV": _linear(_transpose_conv, (2,)),
    "ADD": _binary("AddV2", "Add"),
    "SUB": _binary("Sub"),
    "MUL": _binary("Mul"),
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
    "MAXIMUM": _binary("Maximum"),
    "MINIMUM": _binary("Minimum"),
    "PRELU": _binary("Mul"),
    "LOGISTIC": lambda operator, x: tf.sigmoid(x),
    "TANH": lambda operator, x: tf.tanh(x),
    "LEAKY_RELU": lambda operator, x: leaky_relu(x, operator.attributes["alpha"]),
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

# Written as nodes: what there may be hundreds of. The others are traced.
_AS_NODES = frozenset(
    [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "TRANSPOSE_CONV",
        "ADD",
        "SUB",
        "MUL",
        "MAXIMUM",
        "MINIMUM",
        "PRELU",
    ]
)

SUPPORTED = frozenset(_EMITTERS)
