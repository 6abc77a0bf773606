"""One step of a program, computed: on integers where tensors are quantized."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from rewriter.litert import affine, integer
from rewriter.program import Program, Step

_MOST = 2**31  # bytes that all tensors of the samples at a time take, as numbers of 4 bytes


def at_once(program: Program, batch: int) -> int:
    """How many samples' tensors to hold at a time: 1 to ``batch``, fewer the larger they are."""
    sizes = (math.prod(size or 1 for size in t.shape[1:]) for t in program.tensors.values())
    return max(1, min(batch, _MOST // (4 * max(sum(sizes), 1))))


def last_reads(program: Program) -> list[set[str]]:
    """For each step: the tensors that nothing needs after it, its own among them if nothing does.

    Outputs of the program are needed to the end.
    """
    last = {step.output: place for place, step in enumerate(program.steps)}
    for place, step in enumerate(program.steps):
        last.update(dict.fromkeys(step.inputs, place))
    found: list[set[str]] = [set() for _ in program.steps]
    for name, place in last.items():
        if name not in program.outputs:
            found[place].add(name)
    return found


def twofold(
    step: Step, a: list[tf.Tensor], b: list[tf.Tensor], samples: int, batch: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """One step on two sets of raw values, as :func:`evaluate` would do for a few samples at a time.

    Args:
      step: what to compute.
      a, b: its inputs, samples first, maybe several rows a sample.
      samples: how many there are in each.
      batch: how many are computed at a time in what this is compared with. A layer in float may
        mix them, put them in another order, or return one row for all.
    """
    if step.operator.function is None:
        both = evaluate(step, [tf.concat(pair, axis=0) for pair in zip(a, b, strict=True)])
        first, second = tf.split(both, 2)
        return first, second
    return _in_batches(step, a, samples, batch), _in_batches(step, b, samples, batch)


def _in_batches(step: Step, values: list[tf.Tensor], samples: int, batch: int) -> tf.Tensor:
    def part(start: int, stop: int) -> tf.Tensor:
        cut = [
            v[len(v) * start // samples : len(v) * stop // samples] if v.shape.rank else v
            for v in values  # a number belongs to all samples
        ]
        return for_all(evaluate(step, cut), stop - start)

    whole = part(0, samples)
    if samples <= batch or not whole.shape.rank:
        return whole
    first = part(0, batch)
    # Nearly all layers treat every sample by itself, and are faster with all of them at once.
    if len(whole) * batch == len(first) * samples and _near(whole[: len(first)], first):
        return whole
    starts = range(0, samples, batch)
    return tf.concat([part(start, min(start + batch, samples)) for start in starts], axis=0)


def _near(a: tf.Tensor, b: tf.Tensor) -> bool:
    sizes = np.abs(b)
    largest = sizes.max(initial=0, where=np.isfinite(sizes))
    return np.allclose(a, b, rtol=1e-4, atol=1e-4 * largest, equal_nan=True)


def for_all(value: tf.Tensor, samples: int) -> tf.Tensor:
    """A row for every sample, where there is one for all of them."""
    value = tf.convert_to_tensor(value)  # a layer may return a variable of its own
    single = value.shape.rank and len(value) == 1
    return tf.repeat(value, samples, axis=0) if single else value


def evaluate(step: Step, values: list[tf.Tensor]) -> tf.Tensor:
    """One step on raw values: int32 where quantized, float32 where not."""
    op = step.operator
    if op.function is None:
        return integer.compute(op, *values)
    reals = [
        value if q is None else affine.dequantize(value, q)
        for value, q in zip(values, op.inputs, strict=True)
    ]
    result = op.real(*reals)
    if op.output is not None and op.output.whole:
        return affine.quantize(result, op.output)
    result = tf.cast(result, tf.float32)  # layers may return numbers of other types
    return result if op.output is None else affine.quantize(result, op.output)


def same_order(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Whether tensors of these shapes have the same elements in the same order.

    So they do where neighbouring axes of one are a single axis of the other. That there are as
    many elements says nothing: the axes may be in another order.
    """
    if None in (*a, *b):
        return False
    ends = [set(itertools.accumulate((1, *shape), operator.mul)) for shape in (a, b)]
    return max(ends[0]) == max(ends[1]) and (ends[0] <= ends[1] or ends[1] <= ends[0])
