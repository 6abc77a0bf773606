"""Emulated quantization under conditions that all layers share (:mod:`rewriter.switch`).

Gradients are given by hand (straight-through, Bengio et al. 2013, arXiv:1308.3432), so nothing is
differentiated through a condition.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from rewriter import devices
from rewriter.gradients import Pending, tensor
from rewriter.phases import QUANTIZE, QUANTIZE_FROZEN
from rewriter.switch import Switch

_ANY = tf.TensorSpec(None, tf.float32)
_SCALAR = tf.TensorSpec((), tf.float32)


# Activations that LiteRT fuses into the operator before them: forward, and the gradient from the
# output. (The input need not be kept for it: a second copy of every activation would cost more
# time, in page faults, than the arithmetic.)
CLAMPS: dict[str, tuple[Any, Any]] = {
    "none": (tf.identity, lambda g, y: g),
    "relu": (tf.nn.relu, lambda g, y: tf.raw_ops.ReluGrad(gradients=g, features=y)),
    "relu6": (tf.nn.relu6, lambda g, y: tf.raw_ops.Relu6Grad(gradients=g, features=y)),
}
_UPPER = {"none": None, "relu": None, "relu6": 6.0}


def _extremes(x: Any, clamp: str) -> tuple[Any, Any]:
    """The batch's smallest and largest activated value; 0 is always inside."""
    x = tf.reshape(x, [-1])  # of an unknown rank, the axes would be found at every step
    high = tf.maximum(tf.reduce_max(x), 0.0)
    if clamp == "none":
        return tf.minimum(tf.reduce_min(x), 0.0), high
    upper = _UPPER[clamp]
    return tf.zeros_like(high), high if upper is None else tf.minimum(high, upper)


@functools.cache
def _activation_switch(clamp: str, num_bits: int, rate: float) -> Switch:
    """By phase: an activation and its range, the new range with it."""
    activate, _ = CLAMPS[clamp]

    def quantized(x: Any, low: Any, high: Any) -> Any:
        # A range that starts at 0 clamps like a ReLU, one that ends at 6 like a ReLU6.
        return tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=num_bits)

    def in_float(x: Any, low: Any, high: Any) -> Any:
        return activate(x), low, high

    def observing(x: Any, low: Any, high: Any) -> Any:
        batch_low, batch_high = _extremes(x, clamp)
        return activate(x), tf.minimum(low, batch_low), tf.maximum(high, batch_high)

    def following(x: Any, low: Any, high: Any) -> Any:
        batch_low, batch_high = _extremes(x, clamp)
        unset = low > high
        low = tf.where(unset, batch_low, low + rate * (batch_low - low))
        high = tf.where(unset, batch_high, high + rate * (batch_high - high))
        return quantized(x, low, high), low, high

    def frozen(x: Any, low: Any, high: Any) -> Any:
        return quantized(x, low, high), low, high

    branches = in_float, observing, following, frozen  # as rewriter.phases counts
    return Switch([_ANY, _SCALAR, _SCALAR], *branches)


def activation(
    x: Any,
    low: Any,
    high: Any,
    phase: Any,
    *,
    rate: float,
    follow: Any,
    clamp: str = "none",
    num_bits: int = 8,
) -> tuple[Any, Any, Any]:
    """Activate and quantize a tensor as its phase says.

    Args:
      x: float32, any shape; may be pending.
      low, high: the range, float32 scalars; ``low > high`` if nothing has been observed.
      phase: int32 scalar of :mod:`rewriter.phases`.
      rate: share of a batch's range in the moving average.
      follow: bool or bool scalar: whether the range follows this batch in phase ``quantize``.
      clamp: ``"none"``, ``"relu"`` or ``"relu6"``: applied first.
      num_bits: width of the integers.

    Returns:
      The output (shape of ``x``), pending, and the range as it is from now on. An unset range in
      phase ``quantize`` is the batch's own.
    """
    given, x = x, tensor(x)
    known = tf.get_static_value(phase)
    if follow is not True and known in (None, QUANTIZE):
        still = tf.cast(tf.logical_not(follow), tf.int32) * (QUANTIZE_FROZEN - QUANTIZE)
        phase = tf.where(phase == QUANTIZE, phase + still, phase)
    if known in (None, QUANTIZE, QUANTIZE_FROZEN):
        # There is no range to keep: the batch's becomes it.
        phase = tf.minimum(phase, tf.where(low > high, QUANTIZE, QUANTIZE_FROZEN))
    switch = _activation_switch(clamp, num_bits, rate)
    y, new_low, new_high = switch(phase, (x, low, high), (x.shape, (), ()))
    _, activation_gradient = CLAMPS[clamp]
    return Pending(y, lambda g: (activation_gradient(g, y),), (given,)), new_low, new_high


def _channel_scale(kernel: Any, channel_axes: tuple[int, ...], top: Any) -> Any:
    """``max|w| / top`` for every channel, other axes kept as 1; 1 for zeros only."""
    rank = len(kernel.shape)
    kept = {axis % rank for axis in channel_axes}
    reduced = [axis for axis in range(rank) if axis not in kept]
    largest = tf.reduce_max(tf.abs(kernel), axis=reduced, keepdims=True)
    scale = largest / top
    return tf.where(scale > 0, scale, tf.ones_like(scale))


# XLA makes two passes over memory of the seven of TensorFlow's operators, for the same values. It
# compiles for every shape in the first step, for some 40 ms.
_COMPILED_FROM = 2**19  # elements of a kernel


@functools.cache
def _kernel_switch(
    rank: int, channel_axes: tuple[int, ...], num_bits: int, compiled: bool
) -> Switch:
    def rounded(kernel: Any, top: Any) -> Any:
        scale = _channel_scale(kernel, channel_axes, top)
        return tf.round(kernel / scale) * scale

    if compiled:
        rounded = tf.function(rounded, jit_compile=True, autograph=False)

    def quantized(kernel: Any) -> tuple[Any]:
        # As an argument: XLA would multiply by the inverse of a constant, which is a rounding off.
        return (rounded(kernel, tf.constant(2.0 ** (num_bits - 1) - 1.0)),)

    def in_float(kernel: Any) -> tuple[Any]:
        return (tf.identity(kernel),)

    branches = in_float, in_float, quantized, quantized  # as rewriter.phases counts
    return Switch([tf.TensorSpec([None] * rank, tf.float32)], *branches)


def kernel(kernel: Any, phase: Any, channel_axes: Any, num_bits: int = 8) -> Pending:
    """A kernel on its symmetric, narrow-range, per-channel grid in phase ``quantize``, pending.

    Nothing is clipped, since the range is the kernel's own maximum: the straight-through gradient
    is the identity in every phase.

    Args:
      kernel: float32, any rank.
      phase: int32 scalar of :mod:`rewriter.phases`.
      channel_axes: axes that index the output channels; one scale for each.
      num_bits: width of the integers.
    """
    large = (kernel.shape.num_elements() or 0) >= _COMPILED_FROM
    compiled = large and tf.get_static_value(phase) is None and not devices.on_gpu()
    switch = _kernel_switch(len(kernel.shape), tuple(channel_axes), num_bits, compiled)
    (value,) = switch(phase, (kernel,), (kernel.shape,))
    return Pending(value, lambda upstream: (upstream,), (kernel,))
