"""Rows of the linear operators: convolutions and products of matrices, each with its bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.lifting import computed
from rewriter.lifting.builder import Builder, Weights
from rewriter.lifting.graph import Node, Out
from rewriter.lifting.values import Known, Symbol, Value, listed

_SUMS = ("BiasAdd", "AddV2", "Add")


def _bias(b: Builder, number: int, channels: int, rows: bool) -> tuple[Known | None, int]:
    """The bias that is added to what a node makes, and the node that then has the result."""
    source, reader = number, b.only_reader(Out(number))
    while rows and reader is not None and reader[1].op == "Reshape":  # back from rows to axes
        source, reader = reader[0], b.only_reader(Out(reader[0]))
    if reader is None or reader[1].op not in _SUMS or reader[0] in b.done:
        return None, number
    place, node = reader
    others = [out for out in node.inputs if out != Out(source)]
    known = b.known(others[0]) if len(others) == 1 else None
    if known is None or known.array.size != channels or not _is_last(known.array.shape):
        return None, number
    if known.variable is None and b.graph.nodes[others[0].node].op not in ("Const", "Identity"):
        return None, number  # computed of several: not what a bias is trained as
    b.done.add(place)
    return known, place


def _is_last(shape: tuple[int, ...]) -> bool:
    return all(size == 1 for size in shape[:-1])


def _kernel(b: Builder, out: Out) -> Known | None:
    known = b.known(out)
    if known is not None and b.trains and out.node in b.dependence.computed:
        return Known(known.array, computed=out)
    return known


def convolution(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A convolution of two or three spatial axes, grouped or not."""
    kernel = _kernel(b, node.inputs[1])
    if kernel is None or node.attribute("data_format", "NHWC") not in ("NHWC", "NDHWC"):
        return None
    spatial = kernel.array.ndim - 2
    x, padding, paired = _padded(b, number, node)
    channels = kernel.array.shape[-1]
    groups, rest = divmod(int(x.shape[-1]), kernel.array.shape[-2])
    if rest:
        return None
    options = _geometry(b, number, node, spatial) | {"padding": padding}
    options |= {"filters": channels, "kernel_size": kernel.array.shape[:spatial], "groups": groups}
    if spatial == 3 and groups == 1:
        options.pop("groups")
    make = {2: b.layers.Conv2D, 3: b.layers.Conv3D}[spatial]
    return _linear(b, paired, node, make, x, {"kernel": kernel}, channels, options)


def depthwise(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A depthwise convolution."""
    kernel = _kernel(b, node.inputs[1])
    if kernel is None or node.attribute("data_format", "NHWC") != "NHWC":
        return None
    x, padding, paired = _padded(b, number, node)
    height, width, channels, multiplier = kernel.array.shape
    options = _geometry(b, number, node, 2) | {"padding": padding, "kernel_size": (height, width)}
    options["depth_multiplier"] = multiplier
    attribute = b.flavour.kernel_attribute("DepthwiseConv2D", "depthwise_kernel")
    weights = {attribute: kernel}
    make = b.layers.DepthwiseConv2D
    return _linear(b, paired, node, make, x, weights, channels * multiplier, options)


def transposed(b: Builder, number: int, node: Node) -> list[Value] | None:
    """The transposed convolution; ``None`` for output sizes that no layer has."""
    kernel = _kernel(b, node.inputs[1])
    if kernel is None or node.attribute("data_format", "NHWC") != "NHWC":
        return None
    options = _geometry(b, number, node, 2) | {"padding": node.attribute("padding").lower()}
    if options.pop("dilation_rate") != (1, 1) or options["padding"] not in ("same", "valid"):
        return None
    x = b.tensor(node.inputs[2])
    sizes = listed(b.value(node.inputs[0]))
    options["kernel_size"] = kernel.array.shape[:2]
    plain, added = [], []
    for axis in range(2):
        size, stride, extent = x.shape[1 + axis], options["strides"][axis], kernel.array.shape[axis]
        wanted = None if sizes is None or len(sizes) != 4 else sizes[1 + axis]
        if size is None or wanted is None:
            plain.append(True)
            continue
        same = options["padding"] == "same"
        whole = size * stride if same else size * stride + max(extent - stride, 0)
        plain.append(wanted == whole)
        edge = extent // 2
        added.append(wanted - ((size - 1) * stride + extent - (2 * edge if same else 0)))
    if not all(plain):
        if len(added) != 2 or any(
            not 0 <= a < s for a, s in zip(added, options["strides"], strict=True)
        ):
            return None
        options["output_padding"] = tuple(added)
    channels = kernel.array.shape[2]
    options["filters"] = channels
    make = b.layers.Conv2DTranspose
    return _linear(b, number, node, make, x, {"kernel": kernel}, channels, options)


def product(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A product with a matrix of weights: a Dense layer."""
    kernel = _kernel(b, node.inputs[1])
    if kernel is None or kernel.array.ndim != 2 or not b.domains.symbolic(node.inputs[0]):
        return None
    if node.attribute("transpose_a") or node.attribute("adj_x"):
        return None
    if node.attribute("transpose_b") or node.attribute("adj_y"):
        if b.trains and node.inputs[1].node in b.dependence.own:
            kernel = Known(kernel.array, computed=node.inputs[1])  # the variable, which others read
        kernel = kernel.turned((1, 0))
    value = b.value(node.inputs[0])
    if not isinstance(value, Symbol):
        return None
    return dense(b, number, node, value.tensor, kernel, value.rows)


def dense(
    b: Builder, number: int, node: Node, x: Any, kernel: Known, rows: bool = False
) -> list[Value]:
    """A Dense layer.

    Args:
      b, number, node: of the operator.
      x: a tensor of Keras.
      kernel: (features, units).
      rows: whether those of several samples are rows of ``x``.
    """
    channels = kernel.array.shape[1]
    options = {"units": channels}
    return _linear(b, number, node, b.layers.Dense, x, {"kernel": kernel}, channels, options, rows)


def _linear(
    b: Builder,
    number: int,
    node: Node,
    make: Any,
    x: Any,
    weights: Weights,
    channels: int,
    options: dict[str, Any],
    rows: bool = False,
) -> list[Value]:
    bias, last = _bias(b, number, channels, rows)
    (kernel,) = weights.values()
    if kernel.computed is not None:
        make, weights, more = computed.layer(b, make, kernel.computed, kernel.order)
        options = {**options, **more}
    if bias is not None:
        weights = {**weights, "bias": bias}
    y = b.apply(node, make, x, weights, use_bias=bias is not None, **options)
    if last != number:
        b.set(Out(last), Symbol(y))
    return [Symbol(y, rows)]


def _geometry(b: Builder, number: int, node: Node, spatial: int) -> dict[str, Any]:
    strides = node.attribute("strides")[1 : 1 + spatial]
    dilations = (node.attribute("dilations") or [1] * (spatial + 2))[1 : 1 + spatial]
    rate = b.dilated[number][0] if number in b.dilated else tuple(dilations)
    return {"strides": tuple(strides), "dilation_rate": rate}


def _padded(b: Builder, number: int, node: Node) -> tuple[Any, str, int]:
    """The input of a convolution with the padding that its layer has, and the node that has the
    result.

    A padding by hand becomes a layer before it; a dilation through space and batch is the layer's.
    """
    x, padding = b.tensor(node.inputs[0]), node.attribute("padding").lower()
    if number in b.dilated:
        padding = b.dilated[number][1]
    if padding == "explicit":
        pairs = np.reshape(node.attribute("explicit_paddings"), (-1, 2))[1:-1].tolist()
        make = {2: b.layers.ZeroPadding2D, 3: b.layers.ZeroPadding3D}[len(pairs)]
        x = b.apply(node, make, x, padding=tuple(map(tuple, pairs)))
        padding = "valid"
    return x, padding, number
