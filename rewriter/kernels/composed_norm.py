"""Batch normalization without the fused kernel, and the re-estimation of its statistics.

The kernel has no float64, no masks and no statistics across replicas, and cannot normalize by the
batch while it averages with a share of its own.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Collection, Iterator
from typing import Any

import tensorflow as tf

from rewriter.kernels import moments

# While statistics are re-estimated: the share of the present batch in them, and whose they are; and
# which normalizations compute as in training. Read when a function is traced, so they cost other
# functions nothing.
_share: contextvars.ContextVar[Any] = contextvars.ContextVar("share", default=(None, None))
_trained: contextvars.ContextVar[Collection[int]] = contextvars.ContextVar("trained", default=())


@contextlib.contextmanager
def reestimating(share: Any, norms: Collection[int] | None = None) -> Iterator[None]:
    """Within: batch normalizations use the batch's statistics and average them.

    Args:
      share: float scalar: share of this batch in the average, 1/(k+1) for the k-th from 0.
      norms: the ids of the layers that do so; None: all do.
    """
    token = _share.set((share, norms))
    try:
        yield
    finally:
        _share.reset(token)


def share(norm: Any) -> Any:
    """The share of the present batch in a layer's statistics within :func:`reestimating`, or None.

    Args:
      norm: the layer.
    """
    found, norms = _share.get()
    return found if norms is None or id(norm) in norms else None


@contextlib.contextmanager
def as_in_training(norms: Collection[int]) -> Iterator[None]:
    """Within: batch normalizations return what they would in training, and move nothing.

    Args:
      norms: the ids of the layers that do so; the others are as they are called.
    """
    token = _trained.set(norms)
    try:
        yield
    finally:
        _trained.reset(token)


def is_as_in_training(norm: Any) -> bool:
    """Whether a layer returns what it would in training, see :func:`as_in_training`."""
    return id(norm) in _trained.get()


def by_moving(x: Any, values: Any, epsilon: float) -> Any:
    """``gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    Args:
      x: (N, H, W, C), floating point.
      values: gamma, beta, mean and variance, (C,), all of one dtype.
      epsilon: Python float.

    Returns:
      The dtype and shape of ``x``.
    """
    gamma, beta, mean, variance = values
    wide = tf.cast(x, mean.dtype)
    y = tf.nn.batch_normalization(wide, mean, variance, beta, gamma, epsilon)
    return tf.cast(y, x.dtype)


def by_batch(
    x: Any,
    values: Any,
    averages: Any,
    frozen: Any,
    *,
    epsilon: float,
    momentum: float,
    bessel: bool,
    weights: Any = None,
    shared: bool = False,
) -> tuple[Any, Any, Any]:
    """Training: by the batch's statistics, or by those in ``values`` where frozen.

    Args:
      x, values, epsilon: as for :func:`by_moving`.
      averages: the moving mean and variance, (C,).
      frozen: bool scalar: keep ``averages``, and normalize by ``values``.
      momentum: of ``averages``, a Python float.
      bessel: average the batch's variance times n/(n-1).
      weights: the shape of ``x``, 1 for the elements that count; None: all do.
      shared: whether the statistics are those of all replicas.

    Returns:
      The output, and the moving mean and variance as they are from now on.
    """
    gamma, beta, mean, variance = values
    wide = tf.cast(x, mean.dtype)
    batch = moments.moments(wide, weights, shared)
    corrected = batch[0], batch[1] * _correction(x, mean.dtype, bessel)
    moved = [
        tf.where(frozen, old, old + (new - old) * (1.0 - momentum))
        for old, new in zip(averages, corrected, strict=True)
    ]
    mean = tf.where(frozen, mean, batch[0])
    variance = tf.where(frozen, variance, batch[1])
    return by_moving(x, (gamma, beta, mean, variance), epsilon), moved[0], moved[1]


def reestimated(
    x: Any, gamma: Any, beta: Any, averages: Any, share: Any, *, epsilon: float, bessel: bool
) -> tuple[Any, Any, Any]:
    """By the batch's statistics, with ``averages`` moved by ``share`` of the way to them.

    Args and returns: as for :func:`by_batch`; ``share`` as :func:`share` returns it.
    """
    mean, variance = tf.nn.moments(tf.cast(x, gamma.dtype), [0, 1, 2])
    y = by_moving(x, (gamma, beta, mean, variance), epsilon)
    part = tf.cast(share, gamma.dtype)
    corrected = mean, variance * _correction(x, gamma.dtype, bessel)
    # The first batch replaces what was there, whatever it was: not even a NaN stays.
    moved = [
        tf.math.multiply_no_nan(old, 1.0 - part) + new * part
        for old, new in zip(averages, corrected, strict=True)
    ]
    return y, moved[0], moved[1]


def _correction(x: Any, dtype: tf.DType, bessel: bool) -> Any:
    """n/(n-1) for n elements a channel, or 1."""
    if not bessel:
        return 1.0
    n = tf.cast(tf.size(x) // tf.shape(x)[-1], dtype)
    return n / tf.maximum(n - 1, 1)
