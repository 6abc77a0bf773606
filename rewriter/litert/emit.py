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
from rewriter.litert import emit_nodes
from rewriter.litert.emit_nodes import ACTIVATIONS, Emitter, Value, add, fake_quant
from rewriter.litert.nodes import Node, nodes, tensor_of
from rewriter.litert.stand_ins import SLOPES
from rewriter.program import Operator

_TINY = np.finfo(np.float32).tiny


def emit(operator: Operator, *x: Value) -> Value:
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
    result = _EMITTERS[operator.kind](operator, *x)
    if operator.kind in _INHERITED or operator.output is None:
        return result
    return fake_quant(result, operator.output)


def _linear(
    function: Callable[[Operator, Value, Node], Value], channels: tuple[int, ...]
) -> Emitter:
    """A kernel on its grid, the bias, and the fused activation.

    ``channels`` are the kernel's output axes.
    """

    def build(operator: Operator, x: Value) -> Value:
        integers, scales = operator.kernel, operator.kernel_scale
        source = operator.inputs[0]
        if integers is None or scales is None or source is None:
            raise RewriterError(f"{operator.kind} needs int8 input, kernel and kernel scale.")
        scales = np.asarray(scales, np.float32)
        shape = [size if axis in channels else 1 for axis, size in enumerate(integers.shape)]
        kernel = np.multiply(integers, scales.reshape(shape), dtype=np.float32)
        y = function(operator, x, nodes().constant(kernel))
        if operator.bias is not None:
            grid = np.float64(np.float32(source.scale)) * scales.astype(np.float64)
            y = add("BiasAdd", y, nodes().constant(operator.bias * grid))
        elif operator.kind == "TRANSPOSE_CONV" and operator.activation != "none":
            # The converter fuses this activation only with a bias, and folds one of zeros away;
            # this one becomes int32 zeros.
            y = add("BiasAdd", y, nodes().constant(np.full(scales.shape, _TINY)))
        return ACTIVATIONS[operator.activation](y)

    return build


def _convolution(op: str) -> Callable[[Operator, Value, Node], Node]:
    def build(operator: Operator, x: Value, kernel: Node) -> Node:
        attributes = operator.attributes
        return add(
            op,
            x,
            kernel,
            strides=[1, *attributes["strides"], 1],
            padding=attributes["padding"],
            dilations=[1, *attributes.get("dilations", (1, 1)), 1],
        )

    return build


def _fully_connected(operator: Operator, x: Value, kernel: Node) -> Node:
    rows = operator.attributes.get("keep_num_dims", False)
    return add("BatchMatMulV2" if rows else "MatMul", x, kernel)


def _transpose_conv(operator: Operator, x: Value, kernel: Node) -> tf.Tensor:
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


def _gelu(operator: Operator, x: Value) -> tf.Tensor:
    approximate = operator.attributes.get("approximate", False)
    return tf.nn.gelu(tensor_of(x), approximate=approximate)


def _l2_normalization(operator: Operator, x: Value) -> tf.Tensor:
    return tf.nn.l2_normalize(tensor_of(x), axis=-1)


_EMITTERS: dict[str, Emitter] = {
    "CONV_2D": _linear(_convolution("Conv2D"), (3,)),
    "DEPTHWISE_CONV_2D": _linear(_convolution("DepthwiseConv2dNative"), (2, 3)),
    "FULLY_CONNECTED": _linear(_fully_connected, (1,)),
    "TRANSPOSE_CONV": _linear(_transpose_conv, (2,)),
    "ADD": emit_nodes.binary("AddV2", "Add"),
    "SUB": emit_nodes.binary("Sub"),
    "MUL": emit_nodes.binary("Mul"),
    "AVERAGE_POOL_2D": emit_nodes.pool("AvgPool"),
    "MAX_POOL_2D": emit_nodes.pool("MaxPool"),
    "MEAN": emit_nodes.reduction("Mean"),
    "RESHAPE": emit_nodes.reshape,
    "CONCATENATION": emit_nodes.concatenation,
    "PAD": emit_nodes.pad,
    "SOFTMAX": emit_nodes.unary("Softmax"),
    "L2_NORMALIZATION": _l2_normalization,
    "QUANTIZE": emit_nodes.quantize(SLOPES["QUANTIZE"]),
    "DEQUANTIZE": emit_nodes.activation("none"),
    "REDUCE_MAX": emit_nodes.reduction("Max"),
    "MAXIMUM": emit_nodes.binary("Maximum"),
    "MINIMUM": emit_nodes.binary("Minimum"),
    "PRELU": emit_nodes.binary("Mul"),
    "LOGISTIC": emit_nodes.unary("Sigmoid"),
    "TANH": emit_nodes.unary("Tanh"),
    "LEAKY_RELU": lambda operator, x: emit_nodes.leaky_relu(x, operator.attributes["alpha"]),
    "ELU": emit_nodes.leaky(SLOPES["ELU"]),
    "GELU": _gelu,
    "HARD_SWISH": emit_nodes.hard_swish,
    "TRANSPOSE": emit_nodes.transpose,
    "STRIDED_SLICE": emit_nodes.strided_slice,
    "RESIZE_NEAREST_NEIGHBOR": emit_nodes.resize("ResizeNearestNeighbor"),
    "RESIZE_BILINEAR": emit_nodes.resize("ResizeBilinear"),
    "RELU": emit_nodes.activation("relu"),
    "RELU6": emit_nodes.activation("relu6"),
    "RELU_N1_TO_1": emit_nodes.activation("relu_n1_to_1"),
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
