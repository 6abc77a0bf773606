"""What is known of tensors before a model runs: constants, variables, sizes; and what is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.lifting.graph import Graph, Node, Out


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that the graph and its variables alone decide.

    Attributes:
      array: the value.
      variable: of which it is a view; None for anything else.
      view: how its axes lie otherwise there; "" if they do not.
      computed: what a graph that trains computes it from variables as; None for anything else.
      order: of the axes of that; empty if it is as they are.
    """

    array: np.ndarray
    variable: tf.Variable | None = None
    view: str = ""
    computed: Out | None = None
    order: tuple[int, ...] = ()

    def turned(self, perm: Sequence[int]) -> Known:
        """The same with its axes in another order."""
        perm = tuple(int(axis) for axis in perm)
        if perm == tuple(range(self.array.ndim)):
            return self
        array = np.ascontiguousarray(self.array.transpose(perm))
        if self.computed is not None:
            before = self.order or tuple(range(len(perm)))
            order = tuple(before[axis] for axis in perm)
            return Known(array, computed=self.computed, order=order)
        return Known(array, self.variable, f"{self.view}{list(perm)}")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a tensor, or what is computed of them: an integer, or None where it depends on the
    batch. Scalars have no axis.

    Attributes:
      values: flat.
      scalar: whether it is a single number.
    """

    values: tuple[int | None, ...]
    scalar: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Symbol:
    """A tensor that depends on the inputs.

    Attributes:
      tensor: of Keras.
      rows: whether the graph has its leading axes as one, for a product of matrices.
    """

    tensor: Any
    rows: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated:
    """A value that is the same for every sample.

    Attributes:
      row: of one sample, with a leading axis of size 1.
    """

    row: Known


def identity(known: Known) -> Any:
    """Equal for views of the same variable, or for equal values."""
    if known.variable is not None:
        return id(known.variable)
    return known.array.shape, known.array.dtype.str, known.array.tobytes()


Value = Known | Sizes | Symbol | Repeated


class Domains:
    """Which tensors depend on the inputs, which on their sizes only, and which on neither."""

    def __init__(self, graph: Graph):
        self.graph = graph
        inputs = {number for number, _, _ in graph.inputs.values()}
        self._symbolic: list[bool] = []
        self._sized: list[bool] = []
        for number, node in enumerate(graph.nodes):
            before = {out.node for out in node.inputs}
            symbolic = number in inputs or any(self._symbolic[b] for b in before)
            sized = any(self._sized[b] for b in before)
            if node.op in ("Shape", "ShapeN", "Size", "Rank"):
                symbolic, sized = False, symbolic or sized
            self._symbolic.append(symbolic)
            self._sized.append(sized and not symbolic)

    def symbolic(self, out: Out) -> bool:
        """Whether it depends on the values of the inputs."""
        return self._symbolic[out.node]

    def known(self, out: Out) -> bool:
        """Whether it depends on constants and variables alone."""
        return not self._symbolic[out.node] and not self._sized[out.node]


def sizes_of(node: Node, inputs: list[Value], shape: Callable[[Symbol], Any]) -> Sizes | None:
    """What an operator makes of sizes; None if it is not known here.

    Args:
      node: the operator.
      inputs: its operands.
      shape: of a symbolic tensor: a tuple with None for the batch.
    """
    if node.op == "Shape" and isinstance(inputs[0], Symbol) and not inputs[0].rows:
        return Sizes(tuple(shape(inputs[0])))
    if node.op == "Size" and isinstance(inputs[0], Symbol):
        return Sizes((None,), True)
    if node.op == "Rank" and isinstance(inputs[0], Symbol):
        return Sizes((len(shape(inputs[0])),), True)
    made = _SIZES.get(node.op)
    return made(node, inputs) if made else None


def makes_sizes(node: Node) -> bool:
    """Whether :func:`sizes_of` may know what an operator makes."""
    if node.op in ("Shape", "Size", "Rank"):
        return True
    of = (node.attribute(name) for name in ("T", "Tparams", "SrcT"))
    return node.op in _SIZES and all(dtype in (None, tf.int32, tf.int64) for dtype in of)


def listed(value: Value) -> tuple[int | None, ...] | None:
    """A vector or scalar of integers, with None where it depends on the batch; None for others."""
    if isinstance(value, Sizes):
        return value.values
    if isinstance(value, Known) and value.array.dtype.kind in "iu" and value.array.ndim <= 1:
        return tuple(int(v) for v in np.atleast_1d(value.array))
    return None


def _same(node: Node, inputs: list[Value]) -> Sizes | None:
    return inputs[0] if isinstance(inputs[0], Sizes) else None


def _strided(node: Node, inputs: list[Value]) -> Sizes | None:
    values = listed(inputs[0])
    bounds = [listed(value) for value in inputs[1:]]
    if values is None or any(b is None or len(b) != 1 for b in bounds):
        return None
    (begin,), (end,), (step,) = (b for b in bounds if b is not None)
    if begin is None or end is None or step is None:
        return None
    if node.attribute("shrink_axis_mask"):
        return Sizes((values[begin],), True)
    first = None if node.attribute("begin_mask") else begin
    last = None if node.attribute("end_mask") else end
    return Sizes(values[first:last:step])


def _reshaped(node: Node, inputs: list[Value]) -> Sizes | None:
    """A number as a vector of one, or the other way round; a vector stays one."""
    values, wanted = listed(inputs[0]), listed(inputs[1])
    return None if values is None or wanted is None else Sizes(values, not wanted)


def _packed(node: Node, inputs: list[Value]) -> Sizes | None:
    parts = [listed(value) for value in inputs]
    if any(part is None or len(part) != 1 for part in parts):
        return None
    return Sizes(tuple(part[0] for part in parts if part is not None))


def _concatenated(node: Node, inputs: list[Value]) -> Sizes | None:
    parts = [listed(value) for value in inputs[:-1]]
    if any(part is None for part in parts):
        return None
    return Sizes(tuple(v for part in parts if part is not None for v in part))


def _gathered(node: Node, inputs: list[Value]) -> Sizes | None:
    values, places = listed(inputs[0]), inputs[1]
    if values is None or not isinstance(places, Known):
        return None
    flat = tuple(values[int(i)] for i in np.atleast_1d(places.array))
    return Sizes(flat, places.array.ndim == 0)


def _product(node: Node, inputs: list[Value]) -> Sizes | None:
    values = listed(inputs[0])
    if values is None:
        return None
    return Sizes((None if None in values else int(np.prod([v for v in values if v])),), True)


def _arithmetic(function: Callable[[int, int], int]) -> Callable[..., Sizes | None]:
    def run(node: Node, inputs: list[Value]) -> Sizes | None:
        a, b = (listed(value) for value in inputs)
        if a is None or b is None:
            return None
        length = max(len(a), len(b))
        a, b = (v * length if len(v) == 1 else v for v in (a, b))
        scalar = all((isinstance(v, Sizes) and v.scalar) or _is_scalar(v) for v in inputs)
        pairs = zip(a, b, strict=True)
        return Sizes(
            tuple(None if x is None or y is None else function(x, y) for x, y in pairs), scalar
        )

    return run


def _is_scalar(value: Value) -> bool:
    return isinstance(value, Known) and value.array.ndim == 0


_SIZES: dict[str, Callable[[Node, list[Value]], Sizes | None]] = {
    "Identity": _same,
    "Cast": _same,
    "Reshape": _reshaped,
    "StridedSlice": _strided,
    "Pack": _packed,
    "ConcatV2": _concatenated,
    "GatherV2": _gathered,
    "Prod": _product,
    "Mul": _arithmetic(lambda a, b: a * b),
    "AddV2": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "FloorDiv": _arithmetic(lambda a, b: a // b),
}
