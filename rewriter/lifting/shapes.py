"""Rows of the operators that move values, join them and reduce them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rewriter.lifting.builder import Builder
from rewriter.lifting.graph import Node, Out
from rewriter.lifting.values import Symbol, Value, listed


def reshape(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Another shape of each sample, or the rows of a product and back."""
    value, wanted = b.value(node.inputs[0]), listed(b.value(node.inputs[1]))
    if not isinstance(value, Symbol) or wanted is None:
        return None
    shape = tuple(value.tensor.shape)
    if value.rows:  # back from the rows of a product to the axes that they were
        same_rank = len(wanted) == len(shape)
        if same_rank and _fits(wanted[1:], shape[1:]):
            return [Symbol(value.tensor)]
        if len(wanted) == 2 and wanted[1] == shape[-1]:
            return [value]
        return None
    reader = b.only_reader(Out(number))
    into_product = reader is not None and reader[1].op in ("MatMul",)
    if into_product and len(shape) > 2 and len(wanted) == 2 and wanted[1] in (shape[-1], None):
        flat = np.prod([s for s in shape[1:] if s]) if None not in shape[1:] else None
        if wanted[1] == shape[-1] and wanted[1] != flat:
            return [Symbol(value.tensor, rows=True)]
    if wanted and (wanted[0] in (None, -1, 1) or wanted[0] == b.fixed_batch):
        rest = list(wanted[1:])
        if wanted[0] in (1, b.fixed_batch) and not _keeps_batch(rest, shape):
            return None
        if wanted[0] == -1 and (None in rest or not _keeps_batch(rest, shape)):
            return None
        if rest.count(None) > 1 or (None in rest and -1 in rest):
            return None
        rest = [-1 if size is None else size for size in rest]
        if tuple(rest) == shape[1:]:
            return [value]
        if rest and (len(rest) == 1 and len(shape) > 2):
            return [Symbol(b.apply(node, b.layers.Flatten, value.tensor))]
        return [Symbol(b.apply(node, b.layers.Reshape, value.tensor, target_shape=tuple(rest)))]
    return None


def _keeps_batch(rest: list[int | None], shape: tuple[int | None, ...]) -> bool:
    """Whether a sample has as many values after as before, as far as is known."""
    if -1 in rest or None in rest or None in shape[1:]:
        return -1 in rest or None in rest
    return math.prod(s or 0 for s in rest) == math.prod(s or 0 for s in shape[1:])


def _fits(wanted: tuple[int | None, ...], shape: tuple[int | None, ...]) -> bool:
    pairs = zip(wanted, shape, strict=True)
    return all(w in (None, -1) or s is None or w == s for w, s in pairs)


def squeeze(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Axes of length 1 left out."""
    x = b.tensor(node.inputs[0])
    axes = [axis % len(x.shape) for axis in node.attribute("squeeze_dims") or []]
    axes = axes or [i for i, size in enumerate(x.shape) if i and size == 1]
    if 0 in axes:
        return None
    target = tuple(s for i, s in enumerate(x.shape) if i and i not in axes)
    return _reshaped(b, node, x, target)


def expand_dims(b: Builder, number: int, node: Node) -> list[Value] | None:
    """An axis of length 1 put in."""
    x, axis = b.tensor(node.inputs[0]), b.known(node.inputs[1])
    if axis is None:
        return None
    place = int(axis.array.ravel()[0])
    place = place if place >= 0 else place + len(x.shape) + 1
    if place == 0:
        return None
    target = [*x.shape[1:]]
    target.insert(place - 1, 1)
    return _reshaped(b, node, x, tuple(target))


def _reshaped(b: Builder, node: Node, x: Any, target: tuple[int | None, ...]) -> list[Value] | None:
    if target.count(None) > 1:
        return None
    sizes = tuple(-1 if size is None else size for size in target)
    return [Symbol(b.apply(node, b.layers.Reshape, x, target_shape=sizes))]


def transpose(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Axes of a sample in another order."""
    order = listed(b.value(node.inputs[1]))
    if order is None or None in order or not order or order[0] != 0:
        return None
    if list(order) == sorted(i for i in order if i is not None):
        return [b.value(node.inputs[0])]
    dims = tuple(i for i in order[1:] if i is not None)
    return [Symbol(b.apply(node, b.layers.Permute, b.tensor(node.inputs[0]), dims=dims))]


def concatenate(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Tensors joined along an axis of a sample."""
    axis = b.known(node.inputs[-1])
    parts = node.inputs[:-1]
    if axis is None or not all(b.domains.symbolic(p) for p in parts):
        return None
    tensors = [b.tensor(p) for p in parts]
    place = int(axis.array.ravel()[0])
    if place % len(tensors[0].shape) == 0:
        return None
    if len(tensors) == 1:
        return [b.value(parts[0])]
    return [Symbol(b.apply(node, b.layers.Concatenate, tensors, axis=place))]


def pad(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Zeros around the spatial axes."""
    x, pairs = b.tensor(node.inputs[0]), b.known(node.inputs[1])
    if pairs is None or (len(node.inputs) > 2 and not _is_zero(b, node.inputs[2])):
        return None
    widths = pairs.array.tolist()
    if any(widths[0]) or any(widths[-1]) or len(widths) not in (3, 4, 5):
        return None
    inner = tuple(map(tuple, widths[1:-1]))
    make = {1: b.layers.ZeroPadding1D, 2: b.layers.ZeroPadding2D, 3: b.layers.ZeroPadding3D}
    padding = inner[0] if len(inner) == 1 else inner
    return [Symbol(b.apply(node, make[len(inner)], x, padding=padding))]


def _is_zero(b: Builder, out: Out) -> bool:
    known = b.known(out)
    return known is not None and not known.array.any()


def pool(kind: str) -> Any:
    """The row of a pooling."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        if node.attribute("data_format", "NHWC") != "NHWC":
            return None
        size, strides = node.attribute("ksize"), node.attribute("strides")
        if size[0] != 1 or size[-1] != 1 or strides[0] != 1 or strides[-1] != 1:
            return None
        padding = node.attribute("padding").lower()
        if padding not in ("same", "valid"):
            return None
        options: dict[str, Any] = {"pool_size": tuple(size[1:-1]), "strides": tuple(strides[1:-1])}
        make = getattr(b.layers, kind)
        return [Symbol(b.apply(node, make, b.tensor(node.inputs[0]), padding=padding, **options))]

    return row


def reduce(kind: str) -> Any:
    """The row of a reduction over all spatial axes."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        axes = b.known(node.inputs[1])
        if axes is None:
            return None
        x = b.tensor(node.inputs[0])
        rank = len(x.shape)
        places = sorted(int(a) % rank for a in np.atleast_1d(axes.array))
        if places != list(range(1, rank - 1)) or rank not in (3, 4, 5):
            return None
        make = getattr(b.layers, f"Global{kind}Pooling{rank - 2}D")
        keep = bool(node.attribute("keep_dims"))
        return [Symbol(b.apply(node, make, x, keepdims=keep))]

    return row


def resize(interpolation: str) -> Any:
    """The row of a resizing by whole factors."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        x, sizes = b.tensor(node.inputs[0]), b.known(node.inputs[1])
        if sizes is None or node.attribute("align_corners"):
            return None
        if not node.attribute("half_pixel_centers"):
            return None
        height, width = (int(s) for s in sizes.array)
        if None in x.shape[1:3]:
            return None
        if height % x.shape[1] or width % x.shape[2]:
            made = b.apply(
                node, b.layers.Resizing, x, height=height, width=width, interpolation=interpolation
            )
            return [Symbol(made)]
        factors = (height // x.shape[1], width // x.shape[2])
        make = b.layers.UpSampling2D
        return [Symbol(b.apply(node, make, x, size=factors, interpolation=interpolation))]

    return row
