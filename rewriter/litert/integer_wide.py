"""Operators on int16 tensors, and QUANTIZE between the widths: LiteRT's builtin kernels.

XNNPACK takes none of them. Grids of 16 bits are symmetric. The second rounding of the fixed-point
multiplication takes halves away from zero (``reference/integer_ops``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import BITS
from rewriter.litert.integer_elementwise import operands
from rewriter.litert.integer_fixed_point import multiply_by, multiply_tensor, quantize_multiplier
from rewriter.program import Operator, Quantization

_LOWEST, _HIGHEST = -(2**15), 2**15 - 1
_SEGMENTS, _IN_SEGMENT = 512, 128  # of the table of a function of int16


def takes(operator: Operator) -> bool:
    """Whether an operator computes with 16 bits in a way of its own."""
    grids = [grid for grid in (*operator.inputs, operator.output) if grid is not None]
    return operator.kind in _KERNELS and any(grid.bits > BITS for grid in grids)


def compute(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """One of the operators that :func:`takes` names, on raw integers, int32."""
    return _KERNELS[operator.kind](operator, *q)


def _quantize(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    source, output = _grids(operator)
    result = multiply_tensor(q - source.zero_point, _ratio(source, output)) + output.zero_point
    lowest = _LOWEST if output.bits > BITS else output.qmin
    return tf.clip_by_value(result, lowest, output.qmax)


def _add(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    return _sum(operator, 1, *q)


def _subtract(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    return _sum(operator, -1, *q)


def _sum(operator: Operator, sign: int, *q: tf.Tensor) -> tf.Tensor:
    """Both inputs on half the coarser scale, in Q15, then summed."""
    values, quantizations, output = operands(operator, *q)
    coarsest = float(2 * max(np.float32(s.scale) for s in quantizations))
    first, second = (
        multiply_tensor(x * 2**15, float(np.float32(s.scale)) / coarsest)
        for x, s in zip(values, quantizations, strict=True)
    )
    step = float(np.float32(2**15) * np.float32(output.scale))
    result = multiply_tensor(first + sign * second, coarsest / step)
    return tf.clip_by_value(result, _LOWEST, _HIGHEST)


def _product(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    (a, b), (first, second), output = operands(operator, *q)
    scale = np.float32(first.scale) * np.float32(second.scale) / np.float32(output.scale)
    return tf.clip_by_value(multiply_tensor(a * b, float(scale)), _LOWEST, _HIGHEST)


def _batch_matmul(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """Sums in int64, and a multiplier of 15 bits, halves up."""
    (a, b), (first, second), output = operands(operator, *q)
    sums = tf.matmul(
        tf.cast(a, tf.int64), tf.cast(b, tf.int64), transpose_b=operator.attributes["transposed"]
    )
    step = float(np.float32(first.scale) * np.float32(second.scale))
    multiplier, shift = quantize_multiplier(step / float(np.float32(output.scale)))
    reduced = (multiplier + 2**15) >> 16 if multiplier < 0x7FFF0000 else 0x7FFF
    right = 15 - shift
    result = tf.bitwise.right_shift(
        sums * reduced + (1 << (right - 1)), tf.constant(right, tf.int64)
    )
    return tf.cast(tf.clip_by_value(result, _LOWEST, _HIGHEST), tf.int32)


def _mean(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """An integer sum, and one fixed-point multiplication that divides by the count, too."""
    source, output = _grids(operator)
    axes = [axis % q.shape.rank for axis in operator.attributes["axes"]]
    count = math.prod(int(q.shape[axis]) for axis in axes)
    sums = tf.reduce_sum(q, axis=axes, keepdims=operator.attributes.get("keepdims", False))
    multiplier, shift = quantize_multiplier(_ratio(source, output))
    more = min(count.bit_length() - 1, 32, 31 + shift)
    result = multiply_by(sums, (multiplier << more) // count, shift - more)
    return tf.clip_by_value(result, _LOWEST, _HIGHEST)


def _reciprocal_root(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``RSQRT``: a table of 513 places with lines between them; the highest for 0 and below."""
    source, output = _grids(operator)
    table = tf.constant(root_table(source.scale, output.scale), tf.int32)
    place = tf.bitwise.right_shift(q, tf.constant(7)) + _SEGMENTS // 2
    base = tf.gather(table, place)
    slope = tf.gather(table, place + 1) - base
    delta = slope * tf.bitwise.bitwise_and(q, tf.constant(_IN_SEGMENT - 1))
    return base + tf.bitwise.right_shift(delta + _IN_SEGMENT // 2, tf.constant(7))


def root_of(q: int, scale: float, output_scale: float) -> int:
    """What ``RSQRT`` makes of one integer, on grids of these scales."""
    table = root_table(scale, output_scale)
    place, rest = (q >> 7) + _SEGMENTS // 2, q & (_IN_SEGMENT - 1)
    slope = int(table[place + 1] - table[place])
    return int(table[place]) + ((slope * rest + _IN_SEGMENT // 2) >> 7)


def root_table(scale: float, output_scale: float) -> np.ndarray:
    """LiteRT's ``LUTPopulateInt16`` of ``1 / sqrt(x)``, int64 (513,), in its float32."""
    f = np.float32
    step_out = f(output_scale)
    low, high = f(scale) * f(_LOWEST), f(scale) * f(_HIGHEST)
    step = (high - low) / f(_SEGMENTS)
    span = step_out * f(_HIGHEST) - step_out * f(_LOWEST)
    inverse = f(_HIGHEST - _LOWEST + 1) / span
    places = low + np.arange(_SEGMENTS + 1, dtype=np.float32) * step
    places[-1] = low + f(_SEGMENTS) * step
    most = f(_HIGHEST) * step_out

    def function(x: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(x <= 0, most, f(1) / np.sqrt(x)).astype(np.float32)

    value, following = function(places[:-1]), function(places[1:])
    middle = function(places[:-1] + step / f(2))
    sample = _away(value * inverse)
    between = _away((following * inverse + sample) / f(2))
    bias = _away((between - _away(middle * inverse)) / f(2))
    last = _away(function(np.asarray([high])) * inverse)
    found = np.concatenate([sample - bias, last])
    return np.clip(found, f(_LOWEST), f(_HIGHEST)).astype(np.int64)


def _away(x: np.ndarray) -> np.ndarray:
    """Rounded, halves away from zero; float32."""
    return (np.sign(x) * np.floor(np.abs(x) + np.float32(0.5))).astype(np.float32)


def _ratio(source: Quantization, output: Quantization) -> float:
    return float(np.float32(source.scale)) / float(np.float32(output.scale))


def _grids(operator: Operator) -> tuple[Quantization, Quantization]:
    source, output = operator.inputs[0], operator.output
    if source is None or output is None:
        raise RewriterError(
            f"{operator.kind} of 16 bits is computed on integers only. Received: {source} and "
            f"{output}."
        )
    return source, output


_KERNELS: dict[str, Callable[..., tf.Tensor]] = {
    "QUANTIZE": _quantize,
    "ADD": _add,
    "SUB": _subtract,
    "MUL": _product,
    "BATCH_MATMUL": _batch_matmul,
    "MEAN": _mean,
    "RSQRT": _reciprocal_root,
}
