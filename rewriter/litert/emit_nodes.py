"""The operators without a kernel, as the nodes that the TFLite converter makes them of.

The functions take the operator and its inputs, float32 tensors or nodes, batch first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from rewriter.litert.emit_ranges import fake_quant_range
from rewriter.litert.integer_elementwise import constant
from rewriter.litert.integer_spatial import slice_arguments
from rewriter.litert.nodes import Node, nodes
from rewriter.program import Operator, Quantization

Value: TypeAlias = Node | tf.Tensor
Emitter: TypeAlias = Callable[..., Value]


def add(op: str, *inputs: Value, name: str = "", **attributes: Any) -> Node:
    """A node of float32."""
    return nodes().add(op, *inputs, name=name, T=tf.float32, **attributes)


def fake_quant(x: Value, quantization: Quantization) -> Node:
    """Marks ``x`` as quantized so, for the converter."""
    low, high = fake_quant_range(quantization)
    return nodes().add("FakeQuantWithMinMaxArgs", x, min=low, max=high, num_bits=quantization.bits)


def leaky_relu(x: Value, slope: float) -> Node:
    """``x`` where it is positive, ``slope * x`` elsewhere."""
    return add("LeakyRelu", x, alpha=float(slope))


def _clipped(x: Value) -> Node:
    ends = (nodes().constant(np.float32(1)), nodes().constant(np.float32(-1)))
    return add("Maximum", add("Minimum", x, ends[0]), ends[1])


ACTIVATIONS: dict[str, Callable[[Value], Value]] = {
    "none": lambda x: x,
    "relu": lambda x: add("Relu", x),
    "relu6": lambda x: add("Relu6", x),
    "relu_n1_to_1": _clipped,
}


def activation(name: str) -> Emitter:
    """One of :data:`ACTIVATIONS`."""
    return lambda operator, x: ACTIVATIONS[name](x)


def unary(op: str) -> Emitter:
    """A node of one input, without attributes."""
    return lambda operator, x: add(op, x)


def leaky(slope: float) -> Emitter:
    """A LEAKY_RELU that stands for something else."""
    return lambda operator, x: leaky_relu(x, slope)


def binary(op: str, name: str = "") -> Emitter:
    """Two tensors, or a tensor and a constant."""

    def build(operator: Operator, *x: Value) -> Value:
        if "constant" in operator.attributes:
            x = (x[0], _constant(operator))
        return ACTIVATIONS[operator.activation](add(op, *x, name=name))

    return build


def _constant(operator: Operator) -> Node:
    """The constant operand, on its grid and marked with it."""
    integers, grid = constant(operator)
    real = (integers - grid.zero_point).astype(np.float32) * np.float32(grid.scale)
    # A scalar would be stored without a shape.
    return fake_quant(nodes().constant(np.atleast_1d(real)), grid)


def pool(op: str) -> Emitter:
    """AvgPool or MaxPool of images, and the fused activation."""

    def build(operator: Operator, x: Value) -> Value:
        attributes = operator.attributes
        pooled = add(
            op,
            x,
            ksize=[1, *attributes["pool_size"], 1],
            strides=[1, *attributes["strides"], 1],
            padding=attributes["padding"],
        )
        return ACTIVATIONS[operator.activation](pooled)

    return build


def reduction(op: str) -> Emitter:
    """Over the operator's axes."""

    def build(operator: Operator, x: Value) -> Node:
        axes = nodes().constant(list(operator.attributes["axes"]), "axes")
        return add(op, x, axes, keep_dims=bool(operator.attributes.get("keepdims", False)))

    return build


def reshape(operator: Operator, x: Value) -> Node:
    return add("Reshape", x, nodes().constant([-1, *operator.attributes["shape"]], "shape"))


def concatenation(operator: Operator, *x: Value) -> Node:
    return add("ConcatV2", *x, nodes().constant(operator.attributes["axis"], "axis"), N=len(x))


def pad(operator: Operator, x: Value) -> Node:
    return add("Pad", x, nodes().constant(operator.attributes["paddings"], "paddings"))


def transpose(operator: Operator, x: Value) -> Node:
    return add("Transpose", x, nodes().constant(list(operator.attributes["perm"]), "perm"))


def strided_slice(operator: Operator, x: Value) -> Node:
    arguments = slice_arguments(operator)
    places: Sequence[Node] = [
        nodes().constant(arguments.pop(name), name) for name in ("begin", "end", "strides")
    ]
    return add("StridedSlice", x, *places, Index=tf.int32, **arguments)


def resize(op: str) -> Emitter:
    """Of images, to the operator's size."""

    def build(operator: Operator, x: Value) -> Node:
        attributes = operator.attributes
        return add(
            op,
            x,
            nodes().constant(list(attributes["size"]), "size"),
            align_corners=bool(attributes.get("align_corners", False)),
            half_pixel_centers=bool(attributes.get("half_pixel_centers", False)),
        )

    return build


def quantize(slope: float) -> Emitter:
    """From float the fake-quant operator that follows is all; see ``stand_ins`` for the rest."""
    return lambda operator, x: x if operator.inputs[0] is None else leaky_relu(x, slope)


def hard_swish(operator: Operator, x: Value) -> Node:
    moved = add("AddV2", x, nodes().constant(np.float32(3)))
    product = add("Mul", x, add("Relu6", moved))
    return add("Mul", product, nodes().constant(np.float32(1 / 6)))
