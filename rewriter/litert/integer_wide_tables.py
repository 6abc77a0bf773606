"""Functions of int16 tensors that LiteRT's builtin kernels read from tables.

A table of LiteRT's has 513 places over the whole range of the input, with lines between them, and
each place is moved so that the line is off by as much in its middle as at its ends
(``kernels/internal/common.h``, ``LUTPopulate``). LOGISTIC and TANH share one of the sigmoid.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.litert.integer_fixed_point import multiply_tensor
from rewriter.program import Operator, Quantization

LOWEST, HIGHEST = -(2**15), 2**15 - 1
_SEGMENTS, _IN_SEGMENT = 512, 128
_PLACES = 24  # of the sigmoid's table, for each unit of its argument
_TEN = 10.0 / 65535.0  # softmax: what is below exp(-10) counts as that

Table = Callable[[np.ndarray], np.ndarray]


def table(
    function: Table, scale: float, output_scale: float, dtype: type = np.float32, zero: int = 0
) -> np.ndarray:
    """LiteRT's ``LUTPopulate<int16_t>`` of a function, int64 (513,).

    Args:
      function: of real values.
      scale, zero: of the input's grid.
      output_scale: of the output's.
      dtype: in which LiteRT computes it.
    """
    f = dtype
    low, high = f(scale) * f(LOWEST - zero), f(scale) * f(HIGHEST - zero)
    step = (high - low) / f(_SEGMENTS)
    span = f(output_scale) * f(HIGHEST) - f(output_scale) * f(LOWEST)
    inverse = f(HIGHEST - LOWEST + 1) / span
    places = low + np.arange(_SEGMENTS + 1, dtype=f) * step
    value: np.ndarray = function(places[:-1]).astype(f)
    following: np.ndarray = function(places[1:]).astype(f)
    middle: np.ndarray = function(places[:-1] + step / f(2)).astype(f)
    sample = _away(value * inverse)
    between = _away((following * inverse + sample) / f(2))
    bias = _away((between - _away(middle * inverse)) / f(2))
    last = _away(function(np.asarray([high])).astype(f) * inverse)
    found = np.concatenate([sample - bias, last])
    return np.clip(found, f(LOWEST), f(HIGHEST)).astype(np.int64)


def read(found: np.ndarray, q: tf.Tensor) -> tf.Tensor:
    """``LUTLookup``: what a table has for int16 values; int32."""
    values = tf.constant(found, tf.int32)
    place = tf.bitwise.right_shift(q, tf.constant(7)) + _SEGMENTS // 2
    base = tf.gather(values, place)
    slope = tf.gather(values, place + 1) - base
    delta = slope * tf.bitwise.bitwise_and(q, tf.constant(_IN_SEGMENT - 1))
    return base + tf.bitwise.right_shift(delta + _IN_SEGMENT // 2, tf.constant(7))


def _away(x: np.ndarray) -> np.ndarray:
    """Rounded, halves away from zero; in the dtype of ``x``."""
    return (np.sign(x) * np.floor(np.abs(x) + x.dtype.type(0.5))).astype(x.dtype)


def lookup(function: Table) -> Callable[[Operator, tf.Tensor], tf.Tensor]:
    """A kernel that reads a table of a function of float32."""

    def kernel(operator: Operator, q: tf.Tensor) -> tf.Tensor:
        source, output = grids(operator)
        return read(table(function, source.scale, output.scale), q)

    return kernel


def gelu(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``GELU``."""
    return lookup(_gelu_tanh if operator.attributes.get("approximate") else _gelu_erfc)(operator, q)


def _gelu_erfc(x: np.ndarray) -> np.ndarray:
    """In the float32 operations of LiteRT's ``GeluTransform``."""
    return np.float32(0.5) * x * _in_c("erfcf", math.erfc, x * np.float32(-math.sqrt(0.5)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """In the float32 operations of LiteRT's ``GeluTransformApproximate``."""
    root = np.float32(2 / math.sqrt(math.pi) * math.sqrt(0.5))
    inner = root * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (np.float32(1) + _in_c("tanhf", math.tanh, inner))


def _in_c(name: str, exact: Callable[[float], float], x: np.ndarray) -> np.ndarray:
    """A float32 function as LiteRT calls it: that of the C library, which is off in its last bit.

    In one table of ten that moves a place by a step. Where there is no such library, ``exact``.
    """
    function: Callable[[float], float] = exact
    with contextlib.suppress(OSError, AttributeError, TypeError):
        function = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
        function.argtypes, function.restype = [ctypes.c_float], ctypes.c_float  # type: ignore
    return np.array([function(float(value)) for value in x], np.float32)


def sigmoid_table() -> np.ndarray:
    """The sigmoid of 0, 1/24, 2/24, ... in 16 bits, moved so that lines between are close to it."""
    value = 2.0**16 / (1 + np.exp(-np.arange(512) / (2 * _PLACES)))
    ends, middle = value[::2], value[1::2]
    following = np.append(ends[1:], 2.0**16)
    found = np.floor(ends - ((ends + following) / 2 - middle) / 2 + 0.5).astype(np.int64)
    found[-1] = 2**16 - 1
    return found


def finest(operator: Operator) -> tuple[int, int]:
    """Multiplier and shift that bring the input of LOGISTIC or TANH to steps of ``1 / 12288``."""
    scale = float(np.float32(grids(operator)[0].scale)) * 4096.0 * 3.0
    shift = 0
    while scale <= HIGHEST / 2 and shift <= 30:
        scale, shift = scale * 2, shift + 1
    return int(scale), shift


def _scaled(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    multiplier, shift = finest(operator)
    half = (1 << shift) >> 1
    product = tf.cast(q, tf.int64) * multiplier + half
    return tf.bitwise.right_shift(product, tf.constant(shift, tf.int64))


def _interpolated(x: tf.Tensor, bits: int) -> tf.Tensor:
    """The sigmoid's table at ``|x|`` of ``bits`` fractional bits, times ``2**bits``; int64."""
    values = tf.constant(sigmoid_table())
    size = tf.abs(x)
    place = tf.bitwise.right_shift(size, tf.constant(bits, tf.int64))
    inside = tf.minimum(place, 254)
    low, high = tf.gather(values, inside), tf.gather(values, inside + 1)
    rest = tf.bitwise.bitwise_and(size, tf.constant((1 << bits) - 1, tf.int64))
    return tf.where(
        place >= 255, tf.constant(-1, tf.int64), low * (1 << bits) + rest * (high - low)
    )


def logistic(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``LOGISTIC``, on 1/32768."""
    x = _scaled(operator, q)
    found = _interpolated(x, 9)
    found = tf.where(found < 0, tf.constant(0x7FFF << 10, tf.int64), found)
    found = tf.where(x >= 0, found + (1 << 9), (1 << 25) - found + (1 << 9) - 1)
    return tf.cast(tf.bitwise.right_shift(found, tf.constant(10, tf.int64)), tf.int32)


def tanh(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``TANH``, on 1/32768."""
    x = _scaled(operator, q)
    found = _interpolated(x, 8)
    found = tf.where(found < 0, tf.constant(0xFFFF << 8, tf.int64), found)
    found = tf.where(x >= 0, found - (1 << 23) + (1 << 7), -found + (1 << 23) + (1 << 7) - 1)
    return tf.cast(tf.bitwise.right_shift(found, tf.constant(8, tf.int64)), tf.int32)


def softmax(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``SOFTMAX`` over the last axis, on 1/32768: tables of the exponential and of 1 / (1 + x)."""
    source, _ = grids(operator)
    exponential = table(np.exp, 10.0 / 65535, 2.0 / 65535, np.float64, HIGHEST)
    reciprocal = table(lambda x: 1 / (1 + x), 1.0 / 65535, 2.0 / 65535, np.float64, LOWEST)
    below = multiply_tensor(
        q - tf.reduce_max(q, axis=-1, keepdims=True), float(np.float32(source.scale)) / _TEN
    )
    parts = tf.cast(read(exponential, tf.clip_by_value(below + HIGHEST, LOWEST, HIGHEST)), tf.int64)
    total = tf.reduce_sum(parts, axis=-1, keepdims=True)
    # Its highest bit: the sum is below 2**31, and exact in float64.
    bits = tf.cast(
        tf.floor(tf.math.log(tf.cast(total, tf.float64) + 0.5) / math.log(2.0)), tf.int64
    )
    shifted = tf.bitwise.left_shift(total, 30 - bits) + (1 << 13)
    shifted = tf.bitwise.right_shift(shifted, tf.constant(14, tf.int64)) - (2**15 + 2**16)
    scale = read(reciprocal, tf.cast(tf.clip_by_value(shifted, LOWEST, HIGHEST), tf.int32))
    product = parts * tf.cast(scale, tf.int64) + tf.bitwise.left_shift(tf.ones_like(bits), bits - 1)
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(product, bits), 0, HIGHEST), tf.int32)


def grids(operator: Operator) -> tuple[Quantization, Quantization]:
    """Those of the only input and of the output.

    Raises:
      RewriterError: one of them is in float.
    """
    source, output = operator.inputs[0], operator.output
    if source is None or output is None:
        raise RewriterError(
            f"{operator.kind} of 16 bits is computed on integers only. Received: {source} and "
            f"{output}."
        )
    return source, output
