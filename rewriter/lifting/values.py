"""What is known of tensors before a model runs: constants, variables, sizes; and what is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators
from rewriter.lifting.graph import Graph, Node, Out, constant

# Of a variable, they show the same values in another shape or type.
_VIEWS = words("Identity ReadVariableOp Reshape Squeeze ExpandDims Cast EnsureShape")
_REPEATS = words("Tile BroadcastTo")  # they show rows several times
_SEVERAL = 3  # samples


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A value that the graph and its variables alone decide.

    Attributes:
      array: the value.
      variable: of which it is a view; None for anything else.
    """

    array: np.ndarray
    variable: tf.Variable | None = None


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


class Evaluator:
    """Values of what does not depend on the inputs, each computed once."""

    def __init__(self, graph: Graph):
        self._graph = graph
        self._values: dict[Out, Known] = {}

    def known(self, out: Out) -> Known:
        """The value of a tensor that depends on constants and variables alone."""
        todo = [out]
        while todo:
            current = todo[-1]
            node = self._graph.nodes[current.node]
            missing = [i for i in node.inputs if i not in self._values]
            if current in self._values or not missing:
                todo.pop()
                if current not in self._values:
                    self._evaluate(current, node)
            else:
                todo += missing
        return self._values[out]

    def repeated(
        self, out: Out, domains: Domains, shape: Callable[[Out], tuple[int | None, ...]]
    ) -> Repeated | None:
        """A tensor that depends on the number of samples, if it is one row again and again.

        Args:
          out: the tensor.
          domains: of the graph.
          shape: of a tensor that depends on the inputs: None for the batch.

        Returns:
          None for anything else, or where the row is computed from a variable.
        """
        one, several = (self._for_batch(out, domains, shape, batch) for batch in (1, _SEVERAL))
        if one is None or several is None or one.array.dtype.kind != "f":
            return None
        row = one.array
        if row.shape[:1] != (1,) or not np.array_equal(row.repeat(_SEVERAL, 0), several.array):
            return None
        return Repeated(one)

    def _for_batch(
        self,
        out: Out,
        domains: Domains,
        shape: Callable[[Out], tuple[int | None, ...]],
        batch: int,
    ) -> Known | None:
        """The value for so many samples; ``variable`` is the one that it shows rows of."""
        found: dict[Out, Known] = {}
        todo = [out]
        while todo:
            current = todo[-1]
            node = self._graph.nodes[current.node]
            if current in found:
                todo.pop()
            elif domains.known(current):
                found[current] = self.known(current)
            elif node.op == "Shape":
                sizes = shape(node.inputs[0])
                if None in sizes[1:]:
                    return None
                found[current] = Known(np.array([batch, *sizes[1:]], np.int32))
            elif missing := [i for i in node.inputs if i not in found]:
                todo += missing
            else:
                inputs = [found[i] for i in node.inputs]
                shown = inputs[0].variable
                if node.op not in _VIEWS | _REPEATS and any(i.variable for i in inputs):
                    return None
                with tf.init_scope(), tf.device("cpu:0"):
                    results = operators.run(node.definition, [tf.constant(i.array) for i in inputs])
                made = enumerate(results)
                found |= {Out(current.node, i): Known(r.numpy(), shown) for i, r in made}
        return found[out]

    def _evaluate(self, out: Out, node: Node) -> None:
        if out.node in self._graph.variables:
            variable = self._graph.variables[out.node]
            self._values[out] = Known(variable.numpy(), variable)
            return
        if out.node in self._graph.constants:
            self._values[out] = Known(self._graph.constants[out.node])
            return
        if node.op == "Const":
            self._values[out] = Known(constant(node))
            return
        inputs = [self._values[i] for i in node.inputs]
        if node.op in ("ReadVariableOp", "Identity"):
            self._values[out] = inputs[0]
            return
        if node.op == "ResourceGather":
            self._values[out] = Known(inputs[0].array[inputs[1].array])
            return
        with tf.init_scope(), tf.device("cpu:0"):
            results = operators.run(node.definition, [tf.constant(i.array) for i in inputs])
        variable = inputs[0].variable if node.op in _VIEWS and inputs else None
        for index, result in enumerate(results):
            self._values[Out(out.node, index)] = Known(result.numpy(), variable)


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
