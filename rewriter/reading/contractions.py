"""Products of two tensors that sum over axes of both: matrix products, ``einsum``, ``Dot``.

All of them read as ``Operation("contract", (x, y), {"x": "abc", "y": "adc", "output": "abd"})``: a
letter for each axis, as in ``einsum``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rewriter.reading.operations import Operation, is_tensor
from rewriter.reading.stock_moves import Reader

if TYPE_CHECKING:
    from rewriter.reading.graph import Call, Ref

_LETTERS = string.ascii_letters


def _contract(x: Any, y: Any, equation: str) -> Operation | None:
    """``equation``: as ``"abc,adc->abd"``; None where LiteRT's batched product does not fit."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    letters = [*inputs.split(","), output]
    if not arrow or len(letters) != 3 or "." in equation:
        return None
    first, second, third = letters
    plain = all(len(set(each)) == len(each) for each in letters)
    summed = (set(first) & set(second)) - set(third)
    # Each sample by itself, every axis of the output from an input, none summed by itself.
    batch = first[:1] == second[:1] == third[:1] != ""
    whole = set(first) ^ set(second) <= set(third) <= set(first) | set(second)
    if not (plain and batch and whole and summed and is_tensor(x) and is_tensor(y)):
        return None
    return Operation("contract", (x, y), {"x": first, "y": second, "output": third})


def _einsum(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    operands = call.args[1:] if isinstance(call.args[0], str) else call.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    return _contract(*operands, arguments["equation"]) if len(operands) == 2 else None


def _matmul(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """Of the last two axes; all others are the same in both."""
    x, y = arguments["x"], arguments["y"]
    shapes = call.input_shapes
    if not (is_tensor(x) and is_tensor(y)) or len({len(shape) for shape in shapes}) != 1:
        return None
    rank = len(shapes[0])
    if rank < 3 or shapes[0][1:-2] != shapes[-1][1:-2] or None in shapes[0][1:-2]:
        return None
    batch, (m, k, n) = _LETTERS[: rank - 2], tuple(_LETTERS[rank - 2 : rank + 1])
    first = k + m if arguments.get("transpose_x") else m + k
    second = n + k if arguments.get("transpose_y") else k + n
    return _contract(x, y, f"{batch}{first},{batch}{second}->{batch}{m}{n}")


def dot(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    """The stock layer ``Dot``: one axis of each of two tensors, without their batch."""
    ranks = [len(shape) for shape in call.input_shapes]
    if len(x) != 2 or layer.normalize or not set(ranks) <= {2, 3}:
        return None
    given = [layer.axes] * 2 if isinstance(layer.axes, int) else list(layer.axes)
    axes = [axis % rank for axis, rank in zip(given, ranks, strict=True)]
    if 0 in axes:
        return None
    first, second = ["a", *"bc"[: ranks[0] - 1]], ["a", *"de"[: ranks[1] - 1]]
    first[axes[0]] = second[axes[1]] = "k"
    output = ["a", *(letter for letter in first[1:] + second[1:] if letter != "k")]
    return _contract(*x, f"{''.join(first)},{''.join(second)}->{''.join(output)}")


READERS: dict[str, Reader] = {"einsum": _einsum, "matmul": _matmul}
