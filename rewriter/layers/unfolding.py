"""A kernel that was quantized with its normalization folded in, with that taken out again."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.custom_gradient
def unfold(kernel: Any, factor: Any, folded: Any) -> Any:
    """``Q(W * s) / s``, straight through the rounding; ``W`` where s is 0.

    With ``dQ(u) = du`` the gradient of ``Q(W * s) / s`` is that of ``W`` for the kernel, and
    ``(W - Q(W * s) / s) / s`` for s: without it a channel whose folded kernel rounds to 0 would
    never come back. Where s is 0, what the kernel is does not matter, but gamma's gradient does.

    Args:
      kernel: W.
      factor: s, the shape of W with 1 for all axes but the channels.
      folded: ``Q(W * s)``.
    """
    value = tf.where(factor == 0, kernel, tf.math.divide_no_nan(folded, factor))

    def gradient(upstream: Any) -> Any:
        slope = tf.math.divide_no_nan(upstream * (kernel - value), factor)
        rest = [axis for axis, size in enumerate(factor.shape) if size == 1]
        return upstream, tf.reduce_sum(slope, rest, keepdims=True), None

    return value, gradient
