"""What each operator becomes: one row for each.

A row is a function ``row(builder, number, node)`` that returns the values of the operator's
outputs, or ``None`` where the operator cannot be that layer: it is then kept as it is, in a layer
of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rewriter.errors import LoadError
from rewriter.lifting import dilation, functions, layer_norm, operators, scales, shapes
from rewriter.lifting.affine import Norm
from rewriter.lifting.builder import Builder, Weights
from rewriter.lifting.einsum import einsum
from rewriter.lifting.graph import Node, Out
from rewriter.lifting.linear import convolution, depthwise, product, transposed
from rewriter.lifting.scales import scaled
from rewriter.lifting.values import Known, Symbol, Value

Row = Callable[[Builder, int, Node], "list[Value] | None"]


def passed(b: Builder, number: int, node: Node) -> list[Value] | None:
    """What only passes tensors on."""
    return [b.value(out) for out in node.inputs]


def first(*choices: Row) -> Row:
    """The first of several that takes the operator."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        made = (choice(b, number, node) for choice in choices)
        return next((values for values in made if values is not None), None)

    return row


def activation(name: str) -> Row:
    """The row of a stock activation."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        value = b.value(node.inputs[0])
        if not isinstance(value, Symbol):
            return None
        made = b.apply(node, b.layers.Activation, value.tensor, activation=name)
        return [Symbol(made, value.rows)]

    return row


def relu6(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``min(max(x, 0), 6)``."""
    return [Symbol(b.apply(node, b.layers.ReLU, b.tensor(node.inputs[0]), max_value=6.0))]


def leaky_relu(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A leaky ReLU."""
    options: dict[str, Any] = {b.flavour.slope_argument: float(node.attribute("alpha", 0.2))}
    return [Symbol(b.apply(node, b.layers.LeakyReLU, b.tensor(node.inputs[0]), **options))]


def merged(kind: str) -> Row:
    """Of two tensors of the model; with a constant: ``scaled``."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        if not all(b.domains.symbolic(out) for out in node.inputs):
            return scaled(b, number, node) if node.op in scales.OPERATORS else None
        tensors = [b.tensor(out) for out in node.inputs]
        ranks = {len(t.shape) for t in tensors}
        if len(ranks) != 1:
            return None
        return [Symbol(b.apply(node, getattr(b.layers, kind), tensors))]

    return row


def summed(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A sum of several tensors."""
    if not all(b.domains.symbolic(out) for out in node.inputs):
        return None
    tensors = [b.tensor(out) for out in node.inputs]
    return [Symbol(b.apply(node, b.layers.Add, tensors))] if len(tensors) > 1 else None


def embedding(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Rows of a table, by their numbers."""
    table, numbers = b.known(node.inputs[0]), b.value(node.inputs[1])
    axis = b.known(node.inputs[2]) if len(node.inputs) > 2 else None
    along_rows = axis is None or int(axis.array) == 0
    if table is None or table.variable is None or not isinstance(numbers, Symbol):
        return None
    if table.array.ndim != 2 or node.attribute("batch_dims", 0) or not along_rows:
        return None
    rows, width = table.array.shape
    weights, sizes = {"embeddings": table}, {"input_dim": rows, "output_dim": width}
    return [Symbol(b.apply(node, b.layers.Embedding, numbers.tensor, weights, **sizes))]


def fused_norm(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A batch normalization in one operator.

    Raises:
      LoadError: it computes the statistics of each batch.
    """
    if node.attribute("is_training", True):
        if all(b.known(out) is not None for out in node.inputs[1:3]):
            raise LoadError(
                f"{b.where}: the batch normalization {node.name!r} computes the statistics of each "
                "batch: the signature was traced in training mode. Export the model as it is used: "
                "call it with training=False."
            )
        return None
    if node.attribute("data_format", "NHWC") != "NHWC":
        return None
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {}
    for name, out in zip(names, node.inputs[1:], strict=True):
        known = b.known(out)
        if known is None:
            return None
        weights[name] = known
    epsilon = float(node.attribute("epsilon", 1e-4))
    return _norm(b, node, node.inputs[0], weights, epsilon, -1)


def norm_in_pieces(b: Builder, number: int, norm: Norm) -> list[Value]:
    """A batch normalization that :mod:`rewriter.lifting.affine` has found."""
    channels = b.evaluator.known(norm.variance).array.size
    given = {
        "gamma": norm.gamma,
        "beta": norm.beta,
        "moving_mean": norm.mean,
        "moving_variance": norm.variance,
    }
    weights = {name: b.evaluator.known(out) for name, out in given.items() if out is not None}
    weights = {
        name: Known(np.broadcast_to(k.array.ravel(), (channels,)), k.variable)
        for name, k in weights.items()
    }
    if "moving_mean" not in weights:
        weights["moving_mean"] = Known(np.zeros(channels, np.float32))
    node = b.graph.nodes[number]
    return _norm(b, node, norm.base, weights, norm.epsilon, norm.axis)


def layer_norm_in_pieces(b: Builder, number: int, norm: layer_norm.Norm) -> list[Value] | None:
    """A layer normalization that :mod:`rewriter.lifting.layer_norm` has found.

    None if it is none for this tensor: what it averages over is another axis than the last.

    Raises:
      LoadError: what it normalizes is no tensor of the model.
    """
    node, value = b.graph.nodes[number], b.value(norm.of)
    if not isinstance(value, Symbol):
        raise b.refusal(node, "what it normalizes is no tensor of the model")
    rank = len(value.tensor.shape)
    if norm.rank not in (None, rank) or rank < norm.least:
        return None
    pairs = (("gamma", norm.gamma), ("beta", norm.beta))
    weights = {name: known for name, known in pairs if known is not None}
    options = {"epsilon": norm.epsilon, "scale": "gamma" in weights, "center": "beta" in weights}
    made = b.apply(node, b.layers.LayerNormalization, value.tensor, weights, axis=-1, **options)
    return [Symbol(made, value.rows)]


def _norm(
    b: Builder, node: Node, out: Out, weights: Weights, epsilon: float, axis: int
) -> list[Value]:
    value = b.value(out)
    if not isinstance(value, Symbol):
        raise b.refusal(node, "what it normalizes is no tensor of the model")
    kept = dict(weights)
    for name, neutral in (("gamma", 1.0), ("beta", 0.0)):
        known = kept.get(name)
        # A constant that changes nothing is what a layer without it is written as.
        if known is not None and known.variable is None and np.all(known.array == neutral):
            del kept[name]
    options = {"epsilon": epsilon, "scale": "gamma" in kept, "center": "beta" in kept}
    if axis != -1:
        options["axis"] = axis + len(value.tensor.shape)
    made = b.apply(node, b.layers.BatchNormalization, value.tensor, kept, **options)
    return [Symbol(made, value.rows), *[Known(np.zeros(0))] * 5]


ROWS: dict[str, Row] = {
    **dict.fromkeys(operators.PASSING, passed),
    "Conv2D": convolution,
    "Conv3D": convolution,
    "DepthwiseConv2dNative": depthwise,
    "Conv2DBackpropInput": transposed,
    "MatMul": product,
    "BatchMatMul": product,
    "BatchMatMulV2": product,
    "BatchMatMulV3": product,
    "Einsum": einsum,
    "FusedBatchNorm": fused_norm,
    "FusedBatchNormV2": fused_norm,
    "FusedBatchNormV3": fused_norm,
    "Relu": activation("relu"),
    "Relu6": relu6,
    "LeakyRelu": leaky_relu,
    "Elu": activation("elu"),
    "Selu": activation("selu"),
    "Sigmoid": activation("sigmoid"),
    "Tanh": activation("tanh"),
    "Softplus": activation("softplus"),
    "Softsign": activation("softsign"),
    "Softmax": activation("softmax"),
    "Exp": activation("exponential"),
    "AddV2": merged("Add"),
    "Add": merged("Add"),
    "BiasAdd": merged("Add"),
    "AddN": summed,
    "Sub": merged("Subtract"),
    "Mul": merged("Multiply"),
    "RealDiv": scaled,
    "Maximum": first(functions.extreme(True), merged("Maximum")),
    "Minimum": first(functions.extreme(False), merged("Minimum")),
    "Neg": functions.negative,
    "Square": functions.square,
    "Pow": functions.power,
    "ResourceGather": embedding,
    "GatherV2": embedding,
    "Reshape": shapes.reshape,
    "Squeeze": shapes.squeeze,
    "ExpandDims": shapes.expand_dims,
    "Transpose": shapes.transpose,
    "ConcatV2": shapes.concatenate,
    "Pad": first(shapes.pad, functions.pad),
    "PadV2": first(shapes.pad, functions.pad),
    "SpaceToBatchND": dilation.apart,
    "BatchToSpaceND": dilation.together,
    "StridedSlice": functions.item,
    "Slice": functions.part,
    "Split": functions.split,
    "SplitV": functions.split,
    "Unpack": functions.unstack,
    "Pack": functions.stack,
    "MaxPool": shapes.pool("MaxPooling2D"),
    "AvgPool": shapes.pool("AveragePooling2D"),
    "Mean": first(shapes.reduce("Average"), functions.reduction("mean")),
    "Max": first(shapes.reduce("Max"), functions.reduction("max")),
    "Sum": functions.reduction("sum"),
    "ResizeBilinear": shapes.resize("bilinear"),
    "ResizeNearestNeighbor": shapes.resize("nearest"),
}
