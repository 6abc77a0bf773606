"""TensorFlow's fused batch-norm kernels, as nodes with gradients by hand."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.kernels.fast import nodes


def kernel(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float, factor: float | None
) -> Any:
    """The forward kernel, by the batch's statistics; with ``factor`` None by those given.

    ``factor``: what the batch's count in the averages that the kernel returns; 0 keeps those given,
    as a layer of momentum 1 does.
    """
    training = factor is not None
    given = factor != 1.0
    inputs = {
        "x": x,
        "scale": gamma,
        "offset": beta,
        "mean": mean if given else nodes.zeros(0),
        "variance": variance if given else nodes.zeros(0),
    }
    return nodes.operator(
        "FusedBatchNormV3",
        inputs,
        [x.dtype, *[tf.float32] * 5],
        {"T": x.dtype, "U": tf.float32},
        epsilon=epsilon,
        exponential_avg_factor=1.0 if factor is None else factor,
        is_training=training,
    )


def kernel_gradients(training: bool, epsilon: float, *arguments: Any) -> Any:
    """For x, gamma and beta, of the upstream gradient, x, gamma, and what the kernel has kept."""
    names = "y_backprop", "x", "scale", "reserve_space_1", "reserve_space_2", "reserve_space_3"
    x = arguments[1]
    found = nodes.operator(
        "FusedBatchNormGradV3",
        dict(zip(names, arguments, strict=True)),
        [x.dtype, *[tf.float32] * 4],
        {"T": x.dtype, "U": tf.float32},
        epsilon=epsilon,
        is_training=training,
    )
    return found[:3]


def statistics_gradients(
    gamma: Any, variance: Any, epsilon: float, dgamma: Any, dbeta: Any
) -> tuple[Any, Any]:
    """For the mean and the variance that are given."""
    inverse = tf.math.rsqrt(variance + epsilon)
    return -gamma * inverse * dbeta, -0.5 * gamma * tf.square(inverse) * dgamma


def seen(x: Any, frozen: Any) -> Any:
    """What a kernel by the batch's statistics has to compute: a pixel where frozen, or all.

    A slice copies nothing where it takes all, and costs less than a condition.

    Args:
      x: (N, H, W, C).
      frozen: int32 scalar, 0 or 1.
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
