"""The steps of a layer normalization in LiteRT's integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter.kernels.plain.quantization import on_grid
from rewriter.kernels.plain.tensors import chosen, connect

# LiteRT's for the output of L2_NORMALIZATION, as for that of TANH.
UNIT = grids.TANH_RANGE


def layer_norm_mean(x: Any, phase: Any, over: Sequence[int]) -> Any:
    """The mean over some axes, kept as 1, from phase ``observe`` on; zeros in ``float``.

    Args:
      x: float32, of a known rank.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      over: the axes, from 0 on.
    """
    few = [1 if axis in over else size for axis, size in enumerate(x.shape)]

    def mean() -> tuple[Any]:
        return (tf.reduce_mean(x, over, keepdims=True),)

    (found,) = chosen(phase, lambda: (tf.zeros_like(tf.reduce_max(x, over, True)),), mean)
    found.set_shape(few)
    return tf.stop_gradient(found)


def layer_norm_deviations(x: Any, mean: Any, phase: Any) -> Any:
    """``x - mean`` from phase ``observe`` on; ``x`` in ``float``. No gradient.

    Args:
      x: float32, of a known rank.
      mean: of :func:`layer_norm_mean`.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
    """
    (found,) = chosen(phase, lambda: (tf.identity(x),), lambda: (x - mean,))
    return tf.stop_gradient(found)


def layer_norm_output(
    original: Any,
    centred: Any,
    gamma: Any,
    beta: Any,
    phase: Any,
    over: Sequence[int],
    epsilon: float,
) -> Any:
    """``gamma * sqrt(n) * Q(d / sqrt(sum(d * d) + n * epsilon)) + beta`` in phase ``quantize``.

    d are the deviations, n how many are normalized together, Q the grid of steps of 1/128
    (Ba et al. 2016, arXiv:1607.06450, as LiteRT's L2_NORMALIZATION computes it).

    Args:
      original: what the stock layer computes: the output in the other phases. It gets the whole
        gradient, straight through.
      centred: the deviations, the shape of ``original``.
      gamma, beta: broadcast to that.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      over: the axes, from 0 on.
      epsilon: Python float.

    Returns:
      float32, the shape of ``original``.
    """

    def normalized() -> tuple[Any]:
        count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(centred), over)), tf.float32)
        squares = tf.reduce_sum(tf.square(centred), over, keepdims=True)
        unit = on_grid(centred * tf.math.rsqrt(squares + count * epsilon), grids.ACTIVATION, *UNIT)
        return (unit * (tf.sqrt(count) * gamma) + beta,)

    def stock() -> tuple[Any]:
        return (tf.identity(original),)

    (value,) = chosen(phase, stock, stock, normalized)
    return connect(value, lambda upstream: (upstream,), original)
