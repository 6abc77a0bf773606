"""Operators on one int8 tensor, element by element: a table of the 256 possible outputs.

The table is filled in NumPy when the graph is built, by the arithmetic of the kernel that LiteRT
runs on its default CPU path: XNNPACK's for LOGISTIC, TANH, ELU, LEAKY_RELU and QUANTIZE, the
builtin kernel's for the others, which the XNNPACK delegate does not take as int8.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.grid import BITS
from rewriter.litert import affine
from rewriter.litert.integer_fixed_point import (
    activation_range,
    multiply,
    quantize_multiplier,
    rounding_shift,
)
from rewriter.litert.integer_norm import reciprocal_roots
from rewriter.program import Operator, Quantization

Filler = Callable[[Operator, np.ndarray, Quantization, Quantization], np.ndarray]


def lookup(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """Any kind in ``FILLERS``. Raises RewriterError for tensors that are not quantized."""
    source, output = operator.inputs[0], operator.output
    if source is None or output is None:
        raise RewriterError(
            f"{operator.kind} is computed on int8 tensors only. Received: input {source}, "
            f"output {output}. Quantize both."
        )
    x = np.arange(source.qmin, source.qmax + 1, dtype=np.int64)
    table = np.clip(FILLERS[operator.kind](operator, x, source, output), output.qmin, output.qmax)
    return tf.gather(tf.constant(table, tf.int32), q - source.qmin)


def quantize(operator: Operator, x: tf.Tensor) -> tf.Tensor:
    """``QUANTIZE``, from float32 (``inputs[0]`` is ``None``) or from another int8 grid.

    Raises:
      RewriterError: the output has no quantization.
    """
    output = operator.output
    if operator.inputs[0] is not None:
        return lookup(operator, x)
    if output is None:
        raise RewriterError("QUANTIZE needs an output quantization. Received: None.")
    return affine.quantize(x, output)


def dequantize(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``DEQUANTIZE``: the float32 values. Raises RewriterError if the input has no grid."""
    source = operator.inputs[0]
    if source is None:
        raise RewriterError("DEQUANTIZE needs an input quantization. Received: None.")
    return tf.cast(q - source.zero_point, tf.float32) * np.float32(source.scale)


def _relu(activation: str) -> Filler:
    """LiteRT's ``QuantizedReluX``: rescales, then clamps to the rounded bounds."""

    def fill(
        operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
    ) -> np.ndarray:
        ratio = float(np.float32(source.scale) / np.float32(output.scale))
        rescaled = multiply(x - source.zero_point, *quantize_multiplier(ratio))
        bounds = [
            bound
            if math.isinf(bound)
            else _round_half_away(np.float32(bound) / np.float32(output.scale))
            for bound in activation_range(activation)
        ]
        return np.clip(rescaled, bounds[0], bounds[1]) + output.zero_point

    return fill


def _round_half_away(value: float) -> float:
    return float(np.copysign(np.floor(np.abs(value) + np.float32(0.5)), value))


def _convert(
    operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
) -> np.ndarray:
    """XNNPACK's ``qs8-vcvt``; outside its range of scales, the builtin requantization."""
    ratio = np.float32(source.scale) / np.float32(output.scale)
    centred = x - source.zero_point
    if 2.0**-8 <= ratio <= 2.0**7:
        return _eight_bit_multiply(centred, ratio) + output.zero_point
    return multiply(centred, *quantize_multiplier(float(ratio))) + output.zero_point


def _leaky_relu(
    operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
) -> np.ndarray:
    """XNNPACK's ``qs8-vlrelu``; outside its range of scales, the builtin kernel."""
    alpha = np.float32(operator.attributes["alpha"])
    positive = np.float32(source.scale) / np.float32(output.scale)
    negative = positive * alpha
    centred = x - source.zero_point
    narrow = output.bits == BITS  # XNNPACK takes no other
    if (
        narrow
        and 2.0**-8 <= positive <= 2.0**7
        and abs(negative) >= 2.0**-8
        and -127.99 < negative <= 2.0**7
    ):
        scaled = np.where(
            centred > 0,
            _eight_bit_multiply(centred, positive),
            _eight_bit_multiply(centred, negative),
        )
        return scaled + output.zero_point
    negative = np.float32(source.scale) * alpha / np.float32(output.scale)
    sign, size = (-1 if negative < 0 else 1), abs(float(negative))
    scaled = np.where(
        centred >= 0,
        multiply(centred, *quantize_multiplier(float(positive))),
        sign * multiply(centred, *quantize_multiplier(size)),
    )
    return scaled + output.zero_point


def _eight_bit_multiply(x: np.ndarray, ratio: np.float32) -> np.ndarray:
    """An 8.8 fixed-point multiplier, rounded half up."""
    return (x * int(np.rint(np.float32(256) * ratio)) + 128) >> 8


def _xnnpack(function: Callable[[np.ndarray], np.ndarray]) -> Filler:
    """XNNPACK's reference kernel: dequantizes, evaluates in float32, rounds half to even.

    ``function`` is evaluated in float64 and rounded to float32 once, which is as near as the
    C library's float functions can be followed.
    """

    def fill(
        operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
    ) -> np.ndarray:
        real = (x - source.zero_point).astype(np.float32) * np.float32(source.scale)
        result = function(real.astype(np.float64)).astype(np.float32)
        inverse = np.float32(1) / np.float32(output.scale)
        rounded = np.rint(result * inverse + np.float32(output.zero_point))
        return np.clip(rounded, output.qmin, output.qmax).astype(np.int64)

    return fill


def _gelu(
    operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
) -> np.ndarray:
    """LiteRT's builtin table: float32, halves away from zero before the zero point is added."""
    one, half = np.float32(1), np.float32(0.5)
    real = np.float32(source.scale) * (x - source.zero_point).astype(np.float32)
    if operator.attributes.get("approximate", False):
        inner = np.float32(math.sqrt(2 / math.pi)) * (
            real + np.float32(0.044715) * real * real * real
        )
        result = half * real * (one + np.tanh(inner.astype(np.float64)).astype(np.float32))
    else:
        inner = real * np.float32(-math.sqrt(0.5))
        result = half * real * np.array([math.erfc(value) for value in inner], np.float32)
    scaled = result * (one / np.float32(output.scale))
    rounded = [_round_half_away(value) for value in scaled]
    return np.array(rounded, np.int64) + output.zero_point


def _builtin(function: Callable[[np.ndarray], np.ndarray]) -> Filler:
    """LiteRT's builtin table: float32, halves away from zero before the zero point is added."""

    def fill(
        operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
    ) -> np.ndarray:
        real = np.float32(source.scale) * (x - source.zero_point).astype(np.float32)
        result = function(real.astype(np.float64)).astype(np.float32)
        scaled = result * (np.float32(1) / np.float32(output.scale))
        ends = (
            np.float32(output.qmin - output.zero_point),
            np.float32(output.qmax - output.zero_point),
        )
        rounded = [_round_half_away(value) for value in np.clip(scaled, *ends)]
        return np.array(rounded, np.int64) + output.zero_point

    return fill


def _logarithm(x: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(x > 0, np.log(x), -np.inf)


def _absolute(
    operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
) -> np.ndarray:
    """LiteRT's builtin kernel; fixed point where the scales differ."""
    value = np.abs(x - source.zero_point)
    if source.scale != output.scale:
        ratio = float(np.float32(source.scale) / np.float32(output.scale))
        value = multiply(value, *quantize_multiplier(ratio))
    return value + output.zero_point


def _hard_swish(
    operator: Operator, x: np.ndarray, source: Quantization, output: Quantization
) -> np.ndarray:
    """LiteRT's builtin kernel: 16-bit fixed point (``reference/hard_swish.h``)."""
    fine_scale = np.float32(1 / 128) * np.float32(source.scale)
    out_multiplier, out_shift = quantize_multiplier(float(fine_scale / np.float32(output.scale)))
    relu_scale = np.float32(3) / np.float32(32768)
    relu_multiplier, relu_shift = quantize_multiplier(float(fine_scale / relu_scale))
    if out_shift > 0:
        raise RewriterError(
            "HARD_SWISH: LiteRT refuses an output scale below 1/128 of the input's. "
            f"Received: {source.scale} and {output.scale}."
        )
    fine = (x - source.zero_point) << 7
    scaled = _rounding_high_16(fine, _to_16_bits(out_multiplier))
    gate = np.clip(fine << max(relu_shift - 1, 0), -(2**15), 2**15 - 1)
    gate = _rounding_high_16(gate, _to_16_bits(relu_multiplier))
    if relu_shift > 0:
        gate = np.clip(gate << 1, -(2**15), 2**15 - 1)
    gate = rounding_shift(gate, max(-relu_shift, 0))
    gate = (gate + 2**15) >> 1  # [-1, 1] to [0, 1].
    product = gate * scaled
    truncated = np.sign(product) * (np.abs(product) >> 15)
    return rounding_shift(truncated, -out_shift) + output.zero_point


def _to_16_bits(multiplier: int) -> int:
    return min((multiplier + 2**15) >> 16, 2**15 - 1)


def _rounding_high_16(a: np.ndarray, b: int) -> np.ndarray:
    """gemmlowp's ``SaturatingRoundingDoublingHighMul`` for 16 bits."""
    product = a * b
    nudged = product + np.where(product >= 0, 2**14, 1 - 2**14)
    return np.sign(nudged) * (np.abs(nudged) >> 15)


FILLERS: dict[str, Filler] = {
    "QUANTIZE": _convert,
    "RELU": _relu("relu"),
    "RELU6": _relu("relu6"),
    "RELU_N1_TO_1": _relu("relu_n1_to_1"),
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _xnnpack(lambda x: 1 / (1 + np.exp(-x))),
    "TANH": _xnnpack(np.tanh),
    "ELU": _xnnpack(lambda x: np.where(x < 0, np.expm1(x), x)),
    "GELU": _gelu,
    "ABS": _absolute,
    "EXP": _builtin(np.exp),
    "LOG": _builtin(_logarithm),
    "HARD_SWISH": _hard_swish,
    "RSQRT": reciprocal_roots,
}
