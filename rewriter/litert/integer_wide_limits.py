"""Operators of 16 bits that LiteRT has not, or computes wrongly, and how far off its tables are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from rewriter.grid import BITS
from rewriter.litert.integer_wide import SUPPORTED, is_wide
from rewriter.litert.integer_wide_tables import grids
from rewriter.program import Operator, Quantization

UNIT = Quantization(1 / 32768, 0, 16)  # of LOGISTIC, TANH and SOFTMAX


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

    None for any operator without such.

    What it accepts and computes wrongly, it does so without a word.
    """
    given = (*operator.inputs, operator.output)
    found = [grid for grid in given if grid is not None and not grid.whole]
    if not is_wide(operator):
        return None
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
    if len(found) == 2 and found[0].scale / found[1].scale >= 2.0**15:
        return f"a step of its input is 32,768 of its output, beyond 32 bits. Received: {found}"
    return None


def _table_problem(operator: Operator, found: list[Quantization]) -> str | None:
    """The output's grid is prescribed; at some input scales the default kernel is another."""
    scale = found[0].scale
    if found[-1] != UNIT:
        return f"its output must be on {UNIT}. Received: {found[-1]}"
    if operator.kind == "SOFTMAX":
        return None
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
    "SOFTMAX": _table_problem,
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
