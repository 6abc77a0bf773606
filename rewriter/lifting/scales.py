"""The row of what multiplies, divides, adds or subtracts a constant number or vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.lifting.builder import Builder
from rewriter.lifting.graph import Node
from rewriter.lifting.values import Symbol, Value


def scaled(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``x * a``, ``x / a``, ``x + a``, ``x - a``, ``a - x`` with a constant number or vector."""
    first, second = node.inputs
    out, other = (first, second) if b.domains.symbolic(first) else (second, first)
    known = b.known(other)
    if known is None or known.variable is not None or known.array.dtype.kind != "f":
        return None
    value = b.value(out)
    if not isinstance(value, Symbol):
        return None
    array = known.array.astype(np.float64)
    if array.size > 1 and (
        any(s != 1 for s in array.shape[:-1]) or array.ndim > len(value.tensor.shape)
    ):
        return None
    factor, offset = OPERATORS[node.op](array, out == first)
    if factor is None:
        return None
    if node.op == "RealDiv" and (made := _divided(b, node, value.tensor, array)) is not None:
        return [Symbol(made, value.rows)]
    if np.all(factor == 1) and np.all(offset == 0):
        return [value]
    options: dict[str, Any] = {"scale": _plain(factor), "offset": _plain(offset)}
    return [Symbol(b.apply(node, b.layers.Rescaling, value.tensor, **options), value.rows)]


def _divided(b: Builder, node: Node, x: Any, array: np.ndarray) -> Any:
    """``x / array`` where ``x * (1 / array)`` is rounded otherwise: the layer that divides, too.

    None if it multiplies as well, or if no such layer has that divisor.
    """
    divisor = array.astype(np.float32)
    squared = (array**2).astype(np.float32)
    halves = np.frexp(array)[0] == 0.5  # powers of two
    if halves.all() or not np.array_equal(np.sqrt(squared), divisor) or divisor.min() < 1e-6:
        return None
    one = array.size == 1
    options: dict[str, Any] = {"axis": None if one else -1, "variance": _plain(squared)}
    options["mean"] = 0.0 if one else [0.0] * array.size
    return b.apply(node, b.layers.Normalization, x, **options)


OPERATORS: Mapping[str, Callable[[np.ndarray, bool], tuple[Any, Any]]] = {
    "Mul": lambda a, first: (a, 0.0),
    "RealDiv": lambda a, first: (1.0 / a, 0.0) if first and np.all(a != 0) else (None, None),
    "AddV2": lambda a, first: (1.0, a),
    "Add": lambda a, first: (1.0, a),
    "BiasAdd": lambda a, first: (1.0, a),
    "Sub": lambda a, first: (1.0, -a) if first else (-1.0, a),
}


def _plain(value: Any) -> float | list[float]:
    array = np.asarray(value, np.float64).ravel()
    return float(array[0]) if array.size == 1 else array.tolist()
