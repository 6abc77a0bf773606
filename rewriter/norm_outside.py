"""A frozen normalization whose kernel by the batch's statistics is outside of the condition.

Forward that kernel is given next to nothing. Backward it finds the right gradients for gamma and
beta; what else depends on being frozen is chosen here.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter import nodes, norm_kernels


def seen(x: Any, frozen: Any) -> Any:
    """What the kernel by the batch's statistics has to compute: a pixel where frozen, or all.

    A slice copies nothing where it takes all, and costs less than a condition.
    """
    every = (tf.int32.max,) * 3
    rows = nodes.integers(every, (1, 1, 1))
    given, types = {"params": rows, "indices": frozen}, ("Tparams", "Tindices")
    (ends,) = nodes.operator("Gather", given, [tf.int32], dict.fromkeys(types, tf.int32))
    begin, strides = nodes.integers(0, 0, 0), nodes.integers(1, 1, 1)
    inputs = {"input": x, "begin": begin, "end": ends, "strides": strides}
    (part,) = nodes.operator("StridedSlice", inputs, [x.dtype], {"T": x.dtype, "Index": tf.int32})
    part.set_shape([None, None, None, x.shape[-1]])
    return part


def corrected(dx: Any, dy: Any, gamma: Any, variance: Any, frozen: Any, epsilon: float) -> Any:
    """The gradient for x.

    The kernel's own is right by the batch's statistics; by the moving ones it is ``dy`` times
    what ``x`` was multiplied by. The graph itself has both, of which one is alive: a condition in
    the way of every gradient is 2 to 3 % of a step where kernels are small.

    Args:
      dx: what the kernel found for x.
      dy: the upstream gradient.
      variance: the one that was used, as the forward pass has kept it.
      frozen: bool scalar.
      gamma, epsilon: as in :func:`rewriter.fused_norm.batch_norm`.
    """
    free, _ = nodes.parted(dx, frozen)
    _, upstream = nodes.parted(dy, frozen)
    zeros = nodes.zeros(gamma.shape[0])
    right, *_ = norm_kernels.kernel(
        upstream, gamma, zeros, zeros, variance, epsilon=epsilon, factor=0.0
    )
    return nodes.joined(free, right)


def statistics_where_frozen(
    gamma: Any, variance: Any, scaling: Any, frozen: Any, epsilon: float
) -> list[Any]:
    """The gradients for the mean and the variance that are given; 0 by the batch's statistics."""
    none, _ = nodes.parted(nodes.zeros(gamma.shape[0]), frozen)
    _, used = nodes.parted(variance, frozen)
    return [
        nodes.joined(none, x)
        for x in norm_kernels.statistics_gradients(gamma, used, epsilon, *scaling)
    ]


def of_bias(dbeta: Any, factor: Any) -> Any:
    """The gradient for a bias in x: ``beta``'s times what ``x`` is multiplied by, or 0."""
    inputs = {"x": dbeta, "y": factor}  # 0 also where the gradient is infinite
    (result,) = nodes.operator("MulNoNan", inputs, [tf.float32], {"T": tf.float32})
    return result
