"""Matrix products of two activations: BATCH_MATMUL, between moves of their axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Shape, Value, batched
from rewriter.program import Quantization
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation


def _contract(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """(batch, M, K) times (batch, N, K): several axes of a kind are one, and none is 1."""
    first, second, output = (operation.options[key] for key in ("x", "y", "output"))
    sizes: dict[str, int] = {}
    for value, letters in zip(x, (first, second), strict=True):
        sizes.update(zip(letters[1:], low.static(value.shape, call), strict=True))
    batch = [c for c in output[1:] if c in first and c in second]
    rows = [c for c in first[1:] if c in output and c not in second]
    columns = [c for c in second[1:] if c in output and c not in first]
    summed = [c for c in first[1:] if c in second and c not in output]
    size = {
        key: int(np.prod([sizes[c] for c in letters], dtype=np.int64))
        for key, letters in {"m": rows, "n": columns, "k": summed}.items()
    }
    leading = [int(np.prod([sizes[c] for c in batch], dtype=np.int64))] if batch else []
    last = list(second[-len(summed) :]) == summed
    left = _moved(low, call, x[0], first, [*batch, *rows, *summed])
    left = low.reshape(call, left, (None, *leading, size["m"], size["k"]))
    order = [*batch, *columns, *summed] if last else [*batch, *summed, *columns]
    ends = (size["n"], size["k"]) if last else (size["k"], size["n"])
    right = _moved(low, call, x[1], second, order)
    right = low.reshape(call, right, (None, *leading, *ends))
    shape: Shape = (None, *leading, size["m"], size["n"])
    made = low.free("BATCH_MATMUL", call, [left, right], shape, transposed=last)
    made_order = [*batch, *rows, *columns]

    def after(done: Value, quantization: Quantization) -> Value:
        done = low.reshape(call, done, (None, *(sizes[c] for c in made_order)))
        done = _moved(low, call, done, output[0] + "".join(made_order), list(output[1:]))
        return low.reshape(call, done, batched(call.shapes[0]))

    made.shape, made.after = batched(call.shapes[0]), after
    return made


def _moved(low: ProgramBuilder, call: Call, x: Value, letters: str, order: Sequence[str]) -> Value:
    """``x``, whose axes are ``letters``, with those after the batch in another order."""
    perm = [0, *(letters.index(c) for c in order)]
    if perm == sorted(perm):
        return x
    return low.apply("TRANSPOSE", call, [x], tuple(x.shape[axis] for axis in perm), perm=perm)


ROWS: dict[str, Row] = {"contract": _contract}
