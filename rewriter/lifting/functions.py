"""Rows of operators that no layer stands for, but a function of both Kerases does.

Each Keras puts a layer, or an operation, of its own around a function of symbolic tensors; those
have integer forms where the operator as it is would have none.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.lifting.builder import Builder
from rewriter.lifting.elementwise import FUNCTIONS, Match
from rewriter.lifting.graph import Node, Out
from rewriter.lifting.values import Known, Symbol, Value, listed


def in_pieces(b: Builder, number: int, match: Match) -> list[Value] | None:
    """What :mod:`rewriter.lifting.elementwise` has found, as a layer or a function."""
    node, value = b.graph.nodes[number], b.value(match.of)
    if not isinstance(value, Symbol):
        return None
    x, options = value.tensor, match.options
    made: Any
    spelled = b.flavour.spelled(match.name)
    if match.name in FUNCTIONS and spelled is not None:
        made = b.apply(node, b.layers.Activation, x, activation=spelled)
    elif match.name == "relu":
        made = b.apply(node, b.layers.ReLU, x, max_value=options["high"])
    elif match.name == "leaky_relu":
        slope: dict[str, Any] = {b.flavour.slope_argument: options["alpha"]}
        made = b.apply(node, b.layers.LeakyReLU, x, **slope)
    elif match.name == "gelu_tanh":
        made = b.flavour.function("gelu_tanh")(x)
    elif match.name == "clip":
        made = b.flavour.function("clip")(x, options["low"], options["high"])
    else:
        return _prelu(b, node, value, match)
    return [Symbol(made, value.rows)] * max(1, len(node.inputs))


def _prelu(b: Builder, node: Node, value: Symbol, match: Match) -> list[Value] | None:
    known = b.known(match.alpha) if match.alpha is not None else None
    shape = tuple(value.tensor.shape)
    if known is None or value.rows or known.array.ndim > len(shape):
        return None
    sizes = (1,) * (len(shape) - known.array.ndim) + known.array.shape
    if sizes[0] != 1 or any(own not in (1, s) for s, own in zip(shape[1:], sizes[1:], strict=True)):
        return None
    shared = [axis for axis in range(1, len(shape)) if sizes[axis] == 1 and shape[axis] != 1]
    weights = {"alpha": known}
    made = b.apply(node, b.layers.PReLU, value.tensor, weights, shared_axes=shared or None)
    return [Symbol(made)]


def _symbol(b: Builder, out: Out) -> Symbol | None:
    """A tensor of the model with the batch as its first axis; None for others."""
    if not b.domains.symbolic(out):
        return None
    value = b.value(out)
    return value if isinstance(value, Symbol) and not value.rows else None


def negative(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``-x``."""
    value = _symbol(b, node.inputs[0])
    if value is None:
        return None
    return [Symbol(b.flavour.function("negative")(value.tensor))]


def square(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``x * x``."""
    value = _symbol(b, node.inputs[0])
    if value is None:
        return None
    return [Symbol(b.flavour.function("square")(value.tensor))]


def power(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``x ** 2``; other powers stay as they are."""
    exponent = b.known(node.inputs[1])
    if exponent is None or exponent.array.size != 1 or exponent.array.ravel()[0] != 2:
        return None
    return square(b, number, node)


def extreme(low: bool) -> Any:
    """The larger, or smaller, of a tensor and a number."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        known = [out for out in node.inputs if (k := b.known(out)) and k.variable is None]
        others = [out for out in node.inputs if out not in known]
        value = _symbol(b, others[0]) if len(known) == 1 and len(others) == 1 else None
        array = b.evaluator.known(known[0]).array if value is not None else None
        if value is None or array is None or array.size != 1:
            return None
        x, bound = value.tensor, float(array.ravel()[0])
        if low and bound == 0:
            return [Symbol(b.apply(node, b.layers.ReLU, x))]
        name = "maximum" if low else "minimum"
        return [Symbol(b.flavour.function(name)(x, bound))]

    return row


def reduction(name: str) -> Any:
    """Over any axes but the batch."""

    def row(b: Builder, number: int, node: Node) -> list[Value] | None:
        value, axes = _symbol(b, node.inputs[0]), b.known(node.inputs[1])
        if value is None or axes is None:
            return None
        x, rank = value.tensor, len(value.tensor.shape)
        places = sorted({int(axis) % rank for axis in np.atleast_1d(axes.array)})
        if 0 in places or not places:
            return None
        keep = bool(node.attribute("keep_dims"))
        return [Symbol(b.flavour.function(name)(x, axis=tuple(places), keepdims=keep))]

    return row


def item(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``x[key]`` of slices, integers, new axes and an ellipsis."""
    value = _symbol(b, node.inputs[0])
    bounds = [listed(b.value(out)) for out in node.inputs[1:4]]
    if value is None or any(bound is None for bound in bounds):
        return None
    begins, ends, steps = (bound or () for bound in bounds)
    key: list[Any] = []
    for place, (begin, end, step) in enumerate(zip(begins, ends, steps, strict=True)):
        bit = 1 << place
        if node.attribute("ellipsis_mask", 0) & bit:
            key.append(Ellipsis)
        elif node.attribute("new_axis_mask", 0) & bit:
            key.append(None)
        elif node.attribute("shrink_axis_mask", 0) & bit:
            key.append(begin)
        else:
            first = None if node.attribute("begin_mask", 0) & bit else begin
            last = None if node.attribute("end_mask", 0) & bit else end
            if place == 0 and first in (None, 0) and (last is None or last == b.fixed_batch):
                first = last = None
            elif None in (begin, end) and not (first is None and last is None):
                return None
            key.append(slice(first, last, None if step == 1 else step))
    if not key or not (key[0] is Ellipsis or key[0] == slice(None)):
        return None
    if key[0] is Ellipsis and sum(part is not None for part in key[1:]) >= len(value.tensor.shape):
        return None
    return [Symbol(value.tensor[tuple(key)])]


def part(b: Builder, number: int, node: Node) -> list[Value] | None:
    """As many values as it says, from a place on."""
    value = _symbol(b, node.inputs[0])
    begins, sizes = (listed(b.value(out)) for out in node.inputs[1:3])
    if value is None or begins is None or sizes is None or None in begins:
        return None
    if begins[0] != 0 or sizes[0] not in (None, -1, b.fixed_batch):
        return None
    key: list[slice] = [slice(None)]
    for begin, size in zip(begins[1:], sizes[1:], strict=True):
        if size is None or begin is None:
            return None
        key.append(slice(begin or None, None if size == -1 else begin + size))
    return [Symbol(value.tensor[tuple(key)])]


def split(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Into several tensors along an axis."""
    sized = node.op == "SplitV"
    value = _symbol(b, node.inputs[0 if sized else 1])
    axis = b.known(node.inputs[2 if sized else 0])
    if value is None or axis is None:
        return None
    rank = len(value.tensor.shape)
    place, size = int(axis.array.ravel()[0]) % rank, None
    size = value.tensor.shape[place]
    if place == 0 or size is None:
        return None
    if sized:
        known = listed(b.value(node.inputs[1]))
        if known is None or None in known:
            return None
        lengths = [int(n or 0) for n in known]
        lengths = [size - sum(n for n in lengths if n >= 0) if n < 0 else n for n in lengths]
    else:
        lengths = [size // node.attribute("num_split")] * node.attribute("num_split")
    return _slices(value, place, np.cumsum([0, *lengths]).tolist())


def _slices(value: Symbol, place: int, ends: Sequence[int]) -> list[Value]:
    keys = [_key(place, slice(begin, end)) for begin, end in itertools.pairwise(ends)]
    return [Symbol(value.tensor[key]) for key in keys]


def _key(place: int, part: Any) -> tuple[Any, ...]:
    return (*[slice(None)] * place, part)


def unstack(b: Builder, number: int, node: Node) -> list[Value] | None:
    """One tensor for every place along an axis, without that axis."""
    value = _symbol(b, node.inputs[0])
    if value is None:
        return None
    place = int(node.attribute("axis", 0)) % len(value.tensor.shape)
    if place == 0:
        return None
    return [Symbol(value.tensor[_key(place, index)]) for index in range(node.attribute("num"))]


def stack(b: Builder, number: int, node: Node) -> list[Value] | None:
    """Tensors side by side along a new axis."""
    values = [_symbol(b, out) for out in node.inputs]
    tensors = [value.tensor for value in values if value is not None]
    if len(tensors) < len(values):
        return None
    place = int(node.attribute("axis", 0)) % (len(tensors[0].shape) + 1)
    if place == 0:
        return None
    return [Symbol(b.flavour.function("stack")(tensors, axis=place))]


def pad(b: Builder, number: int, node: Node) -> list[Value] | None:
    """With one number, on any axes but the batch."""
    value, pairs = _symbol(b, node.inputs[0]), b.known(node.inputs[1])
    filled = b.known(node.inputs[2]) if len(node.inputs) > 2 else Known(np.zeros(()))
    if value is None or pairs is None or filled is None or pairs.array[0].any():
        return None
    x, widths, number_ = value.tensor, pairs.array.tolist(), float(filled.array.reshape(()))
    return [Symbol(b.flavour.function("pad")(x, widths, constant_values=number_))]
