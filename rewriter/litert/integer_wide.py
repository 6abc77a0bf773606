"""Operators on int16 tensors, and QUANTIZE between the widths: LiteRT's builtin kernels.

XNNPACK takes none of them. Grids of 16 bits are symmetric. The second rounding of the fixed-point
multiplication takes halves away from zero (``reference/integer_ops``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import BITS
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


def is_wide(operator: Operator) -> bool:
    """Whether one of an operator's tensors has 16 bits."""
    found = [grid for grid in (*operator.inputs, operator.output) if grid is not None]
    return any(grid.bits > BITS for grid in found)


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
    "CONV_2D DEPTHWISE_CONV_2D FULLY_CONNECTED TRANSPOSE_CONV MAXIMUM MINIMUM AVERAGE_POOL_2D "
    "MAX_POOL_2D REDUCE_MAX REDUCE_MIN RESHAPE CONCATENATION PAD PADV2 MIRROR_PAD TRANSPOSE "
    "STRIDED_SLICE RESIZE_NEAREST_NEIGHBOR RESIZE_BILINEAR DEQUANTIZE".split()
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


def table_steps(operator: Operator, shape: Sequence[int | None]) -> int:
    """By how many steps LiteRT's table of 16 bits may be off the function that it stands for.

    Lines between places ``h`` apart are off by ``h**2 / 16`` of the second derivative. LOGISTIC and
    TANH round their argument to steps of 1/12288, and its factor to 15 bits. SOFTMAX takes what is
    below ``exp(-10)`` for that: up to one and a half steps for each of the elements of a row.

    Args:
      operator: of any width and kind; 0 without a table.
      shape: of its output.
    """
    if not is_wide(operator) or operator.kind not in ("LOGISTIC", "TANH", "SOFTMAX", "GELU"):
        return 0
    source, output = grids(operator)
    if operator.kind == "GELU":
        return math.ceil(0.8 * (128 * source.scale) ** 2 / 16 / output.scale) + 1
    if operator.kind == "SOFTMAX":
        return 4 + math.ceil(1.5 * int(shape[-1] or 1))
    return {"LOGISTIC": 2, "TANH": 4}[operator.kind]


def problem(operator: Operator) -> str | None:
    """Why LiteRT refuses an operator with 16 bits, or computes something else; None: neither.

    What it accepts and computes wrongly, it does so without a word.
    """
    found = [grid for grid in (*operator.inputs, operator.output) if grid is not None]
    if operator.kind in ("QUANTIZE", "DEQUANTIZE"):
        return _ratio_problem(found)
    if operator.kind not in SUPPORTED:
        wrongly = "computes that of 16 bits wrongly" if operator.kind == "PRELU" else "has none"
        return f"LiteRT {wrongly}"
    if len({grid.bits for grid in found}) > 1:
        wrongly = " and computes others wrongly" if operator.kind == "FULLY_CONNECTED" else ""
        return f"LiteRT takes inputs and outputs of one width{wrongly}. Received: {found}"
    if any(grid.zero_point for grid in found):
        return f"zero points of 16 bits are 0. Received: {found}"
    return (_CHECKS.get(operator.kind) or (lambda operator, found: None))(operator, found)


def _ratio_problem(found: list[Quantization]) -> str | None:
    if len(found) == 2 and _ratio(*found) >= 2.0**15:
        return f"a step of its input is 32,768 of its output, beyond 32 bits. Received: {found}"
    return None


def _table_problem(operator: Operator, found: list[Quantization]) -> str | None:
    """At such a scale of its own LiteRT's default kernel is another, and its reference has none."""
    scale = found[0].scale
    if scale in (2.0**-11, 2.0**-12):
        return f"LiteRT's kernels differ at an input scale of {scale}. Widen the input's range"
    if scale >= 5:
        return f"an input scale of {scale} is beyond 32 bits. Narrow the input's range"
    return None


def _sum_problem(operator: Operator, found: list[Quantization]) -> str | None:
    scales = [grid.scale for grid in found[:-1]]
    if "constant" in operator.attributes:
        scales.append(operator.attributes["constant_quantization"]["scale"])
    if max(scales) / found[-1].scale >= 2.0**14:
        return "a step of an input is 16,384 of the output. Widen the output's range"
    return None


def _product_problem(operator: Operator, found: list[Quantization]) -> str | None:
    """The product of two int16 has 31 bits, and LiteRT shifts it to the left in 32."""
    second = found[1].scale if len(found) == 3 else 0.0
    if "constant" in operator.attributes:
        second = operator.attributes["constant_quantization"]["scale"]
    if found[0].scale * second / found[-1].scale >= 1:
        return "a step of the product is one of the output, or more. Widen the output's range"
    return None


def _kernel_problem(operator: Operator, found: list[Quantization]) -> str | None:
    if (operator.kernel_storage_bits or BITS) < BITS:
        return "LiteRT computes kernels of less than 8 bits beside it wrongly"
    scale = np.asarray(operator.kernel_scale, np.float64)
    if scale.max(initial=0.0) * found[0].scale / found[-1].scale >= 2.0**7:
        return "a step of its sums is 128 of the output. Widen the output's range"
    return None


_CHECKS: dict[str, Callable[[Operator, list[Quantization]], str | None]] = {
    "LOGISTIC": _table_problem,
    "TANH": _table_problem,
    "ADD": _sum_problem,
    "SUB": _sum_problem,
    "MUL": _product_problem,
    **dict.fromkeys(
        ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"), _kernel_problem
    ),
    **dict.fromkeys(
        ("RELU", "RELU6", "LEAKY_RELU", "ABS"), lambda operator, found: _ratio_problem(found)
    ),
}
