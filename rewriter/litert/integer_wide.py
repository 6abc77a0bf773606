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
from rewriter.grid import WIDE
from rewriter.litert import integer_wide_tables as tables
from rewriter.litert.integer_elementwise import operands
from rewriter.litert.integer_fixed_point import (
    activation_limits,
    multiply_by,
    multiply_sums,
    multiply_tensor,
    quantize_multiplier,
)
from rewriter.litert.integer_tables import FILLERS
from rewriter.litert.integer_wide_tables import HIGHEST, LOWEST, grids
from rewriter.program import Operator, Quantization

_VECTOR = 16  # elements


def is_wide(operator: Operator) -> bool:
    """Whether one of an operator's tensors has 16 bits."""
    found = [grid for grid in (*operator.inputs, operator.output) if grid is not None]
    return any(grid.bits == WIDE for grid in found)


def compute(operator: Operator, *q: tf.Tensor) -> tf.Tensor | None:
    """An operator with 16 bits, on raw integers, int32; None: as the kernel of 8 bits does it.

    Raises:
      RewriterError: LiteRT does not take it, or computes something else.
    """
    if operator.kind in ALIKE or None in operator.inputs:
        return None
    if operator.kind not in _KERNELS:
        raise RewriterError(
            f"No integer kernel for {operator.kind!r} in 16 bits. Supported: "
            f"{sorted({*ALIKE, *_KERNELS})}."
        )
    return _KERNELS[operator.kind](operator, *q)


def _quantize(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    source, output = grids(operator)
    result = multiply_tensor(q - source.zero_point, _ratio(source, output)) + output.zero_point
    return tf.clip_by_value(result, output.lowest, output.qmax)


def _add(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``ADD``: sixteen elements at a time where nothing is broadcast, and the rest by themselves.

    Which those are depends on the elements in all: here on those of a sample, as with one sample
    at a time.
    """
    plain = _sum(operator, 1, *q)
    if len(q) < 2 or q[0].shape[1:] != q[1].shape[1:] or q[0].shape.rank is None:
        return plain
    size = math.prod(int(n) for n in q[0].shape[1:])
    vectors = _vector_sum(operator, *q)
    if size % _VECTOR == 0:
        return vectors
    inside = np.arange(size).reshape(q[0].shape[1:]) < size // _VECTOR * _VECTOR
    return tf.where(tf.constant(inside), vectors, plain)


def _vector_sum(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """Each input is rounded once, not twice."""
    values, quantizations, output = operands(operator, *q)
    coarsest = float(2 * max(np.float32(s.scale) for s in quantizations))
    terms = []
    for x, source in zip(values, quantizations, strict=True):
        multiplier, shift = quantize_multiplier(float(np.float32(source.scale)) / coarsest)
        x = tf.cast(x, tf.int64) * 2**15
        x = tf.bitwise.right_shift(x, tf.constant(-shift, tf.int64))  # cuts off below 2**-15
        terms.append(_high_half(x * multiplier))
    step = float(np.float32(2**15) * np.float32(output.scale))
    multiplier, shift = quantize_multiplier(coarsest / step)
    total = tf.cast(_high_half((terms[0] + terms[1]) * multiplier), tf.int32)
    result = multiply_by(total * 2, 2**30, shift)  # rounds what is shifted out
    return tf.clip_by_value(result, *activation_limits(operator.activation, output))


def _high_half(product: tf.Tensor) -> tf.Tensor:
    """``product / 2**31`` in int64, halves up."""
    return tf.bitwise.right_shift(product + 2**30, tf.constant(31, tf.int64))


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
    return tf.clip_by_value(result, *activation_limits(operator.activation, output))


def _product(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    (a, b), (first, second), output = operands(operator, *q)
    scale = np.float32(first.scale) * np.float32(second.scale) / np.float32(output.scale)
    limits = activation_limits(operator.activation, output)
    return tf.clip_by_value(multiply_tensor(a * b, float(scale)), *limits)


def _batch_matmul(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """Sums in int64, and a multiplier of 15 bits, halves up."""
    (a, b), (first, second), output = operands(operator, *q)
    sums = tf.matmul(
        tf.cast(a, tf.int64), tf.cast(b, tf.int64), transpose_b=operator.attributes["transposed"]
    )
    step = float(np.float32(first.scale) * np.float32(second.scale))
    result = multiply_sums(sums, step / float(np.float32(output.scale)))
    return tf.clip_by_value(result, LOWEST, HIGHEST)


def _mean(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """An integer sum, and one fixed-point multiplication that divides by the count, too."""
    source, output = grids(operator)
    axes = [axis % q.shape.rank for axis in operator.attributes["axes"]]
    count = math.prod(int(q.shape[axis]) for axis in axes)
    sums = tf.reduce_sum(q, axis=axes, keepdims=operator.attributes.get("keepdims", False))
    multiplier, shift = quantize_multiplier(_ratio(source, output))
    more = min(count.bit_length() - 1, 32, 31 + shift)
    result = multiply_by(sums, (multiplier << more) // count, shift - more)
    return tf.clip_by_value(result, LOWEST, HIGHEST)


def _reciprocal_root(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``RSQRT``: the highest for 0 and below."""
    source, output = grids(operator)
    return tables.read(root_table(source.scale, output.scale), q)


def root_of(q: int, scale: float, output_scale: float) -> int:
    """What ``RSQRT`` makes of one integer, on grids of these scales."""
    table = root_table(scale, output_scale)
    place, rest = (q >> 7) + 256, q & 127
    slope = int(table[place + 1] - table[place])
    return int(table[place]) + ((slope * rest + 64) >> 7)


def root_table(scale: float, output_scale: float) -> np.ndarray:
    """LiteRT's table of ``1 / sqrt(x)``, int64 (513,), in its float32."""
    most = np.float32(HIGHEST) * np.float32(output_scale)

    def function(x: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(x <= 0, most, np.float32(1) / np.sqrt(x)).astype(np.float32)

    return tables.table(function, scale, output_scale)


def _ratio(source: Quantization, output: Quantization) -> float:
    return float(np.float32(source.scale)) / float(np.float32(output.scale))


def _pointwise(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``RELU``, ``RELU6``, ``LEAKY_RELU``, ``ABS``: fixed point, no table in LiteRT."""
    source, output = grids(operator)
    x = np.arange(LOWEST, HIGHEST + 1, dtype=np.int64)
    found = FILLERS[operator.kind](operator, x, source, output)
    values = np.clip(found, LOWEST, HIGHEST).astype(np.int32)
    return tf.gather(tf.constant(values), q - LOWEST)


# What reads and writes integers without arithmetic that depends on their width, or does it alike.
ALIKE = frozenset(
    (
        *("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "DEQUANTIZE"),
        *("MAXIMUM", "MINIMUM", "AVERAGE_POOL_2D", "MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN"),
        *("RESHAPE", "CONCATENATION", "PAD", "PADV2", "MIRROR_PAD", "TRANSPOSE", "STRIDED_SLICE"),
        *("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR", "GATHER", "SQRT", "CAST"),
    )
)
_KERNELS: dict[str, Callable[..., tf.Tensor]] = {
    "QUANTIZE": _quantize,
    "ADD": _add,
    "SUB": _subtract,
    "MUL": _product,
    "BATCH_MATMUL": _batch_matmul,
    "MEAN": _mean,
    "RSQRT": _reciprocal_root,
    "LOGISTIC": tables.logistic,
    "TANH": tables.tanh,
    "SOFTMAX": tables.softmax,
    "GELU": tables.gelu,
    **dict.fromkeys(("RELU", "RELU6", "LEAKY_RELU", "ABS"), _pointwise),
}
SUPPORTED = ALIKE | _KERNELS.keys()
