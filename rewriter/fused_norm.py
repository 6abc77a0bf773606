"""TensorFlow's fused batch-norm kernel with a switch for its statistics.

Whether the batch's or the moving statistics are used is an attribute of the kernel. The
condition on a variable therefore chooses between two kernels (:mod:`rewriter.switch`), with
gradients by hand.

oneDNN's kernels cannot be in a condition. Where it is in use, the one for the batch's statistics is
outside, and the condition chooses between its results and those of the other one. Where frozen, it
is given a single pixel forward; backward, only its gradient for the input is not the right one, and
that choice is made in the graph itself.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter import devices, nodes, onednn
from rewriter.gradients import Pending, tensor
from rewriter.switch import Switch

_VECTOR = tf.TensorSpec([None], tf.float32)
_REST = tf.TensorSpec(None, tf.float32)


def _kernel(
    x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, *, epsilon: float, factor: float
) -> Any:
    """The forward kernel, by the batch's statistics; with ``factor`` 0 by those given."""
    training = factor > 0.0
    given = factor < 1.0
    inputs = {
        "x": x,
        "scale": gamma,
        "offset": beta,
        "mean": mean if given else tf.zeros([0]),
        "variance": variance if given else tf.zeros([0]),
    }
    return nodes.operator(
        "FusedBatchNormV3",
        inputs,
        [x.dtype, *[tf.float32] * 5],
        {"T": x.dtype, "U": tf.float32},
        epsilon=epsilon,
        exponential_avg_factor=factor if training else 1.0,
        is_training=training,
    )


def _kernel_gradients(training: bool, epsilon: float, *arguments: Any) -> Any:
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


def _image(dtype: tf.DType) -> tf.TensorSpec:
    return tf.TensorSpec([None] * 4, dtype)


def _by_batch(
    x: Any, values: Sequence[Any], epsilon: float, momentum: float, bessel: bool
) -> tuple[Any, ...]:
    """The kernel by the batch's statistics, for gamma, beta and moving statistics.

    The second and third result are the moving statistics from now on if ``bessel``: the kernel
    averages by itself, with the corrected variance. Otherwise they are the batch's.
    """
    factor = 1.0 - momentum if bessel else 1.0
    return tuple(_kernel(x, *values, epsilon=epsilon, factor=factor))


def _averaged(
    results: Sequence[Any], x: Any, statistics: Sequence[Any], momentum: float, bessel: bool
) -> tuple[Any, ...]:
    """The results of :func:`_by_batch` with the moving statistics from now on in any case."""
    if bessel:
        return tuple(results)
    mean, variance = statistics
    y, batch_mean, batch_variance, *saved = results
    n = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
    uncorrected = batch_variance * (n - 1.0) / n
    new_mean = mean + (1.0 - momentum) * (batch_mean - mean)
    new_variance = variance + (1.0 - momentum) * (uncorrected - variance)
    return y, new_mean, new_variance, *saved


@functools.cache
def _forward(
    dtype: tf.DType, epsilon: float, momentum: float, bessel: bool, averaged: bool
) -> Switch:
    """The output, the moving statistics from now on, and what the gradient needs.

    Arguments: x, gamma, beta, mean, variance, and where ``averaged`` the moving statistics that
    go on.
    """

    def by_batch(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        moving = statistics[-2:]
        results = _by_batch(x, (gamma, beta, *moving), epsilon, momentum, bessel)
        return _averaged(results, x, moving, momentum, bessel)

    def by_moving(x: Any, gamma: Any, beta: Any, *statistics: Any) -> Any:
        mean, variance = statistics[:2]
        y, *_, rest = _kernel(x, gamma, beta, mean, variance, epsilon=epsilon, factor=0.0)
        return y, *statistics[-2:], mean, variance, rest

    return Switch([_image(dtype), *[_VECTOR] * (6 if averaged else 4)], by_batch, by_moving)


@functools.cache
def _chosen(
    dtype: tf.DType, epsilon: float, momentum: float, bessel: bool, averaged: bool
) -> Switch:
    """As :func:`_forward` but for the last result, given the first five of :func:`_by_batch`.

    Arguments: those five, and the ones of :func:`_forward`.
    """

    def by_batch(*arguments: Any) -> Any:
        results, (x, *_), moving = arguments[:5], arguments[5:], arguments[-2:]
        return _averaged(results, x, moving, momentum, bessel)

    def by_moving(*arguments: Any) -> Any:
        x, gamma, beta, mean, variance = arguments[5:10]
        y, *_ = _kernel(x, gamma, beta, mean, variance, epsilon=epsilon, factor=0.0)
        return y, *arguments[-2:], mean, variance

    image, vectors = _image(dtype), [_VECTOR] * (6 if averaged else 4)
    return Switch([image, *[_VECTOR] * 4, image, *vectors], by_batch, by_moving)


def _seen(x: Any, frozen: Any) -> Any:
    """What the kernel by the batch's statistics has to compute: a pixel where frozen, or all.

    A slice copies nothing where it takes all, and costs less than a condition.
    """
    every = (tf.int32.max,) * 3
    rows = nodes.integers(every, (1, 1, 1))
    given, types = {"params": rows, "indices": frozen}, ("Tparams", "Tindices")
    (ends,) = nodes.operator("Gather", given, [tf.int32], dict.fromkeys(types, tf.int32))
    begin, strides = nodes.integers(0, 0, 0), nodes.integers(1, 1, 1)
    inputs = {"input": x, "begin": begin, "end": ends, "strides": strides}
    (seen,) = nodes.operator("StridedSlice", inputs, [x.dtype], {"T": x.dtype, "Index": tf.int32})
    seen.set_shape([None, None, None, x.shape[-1]])
    return seen


@functools.cache
def _backward(dtype: tf.DType, epsilon: float, statistics: bool) -> Switch:
    """Gradients for x, gamma and beta, and where ``statistics`` for mean and variance.

    Arguments: the upstream gradient, x, gamma, and what :func:`_forward` keeps.
    """

    def by_batch(dy: Any, x: Any, gamma: Any, *kept: Any) -> Any:
        none = (tf.zeros_like(gamma), tf.zeros_like(gamma)) if statistics else ()
        return *_kernel_gradients(True, epsilon, dy, x, gamma, *kept), *none

    def by_moving(dy: Any, x: Any, gamma: Any, mean: Any, variance: Any, rest: Any) -> Any:
        found = _kernel_gradients(False, epsilon, dy, x, gamma, mean, variance, rest)
        if not statistics:
            return tuple(found)
        return *found, *_statistics_gradients(gamma, variance, epsilon, *found[1:])

    image = _image(dtype)
    return Switch([image, image, _VECTOR, _REST, _REST, _REST], by_batch, by_moving)


def _statistics_gradients(
    gamma: Any, variance: Any, epsilon: float, dgamma: Any, dbeta: Any
) -> tuple[Any, Any]:
    """For the mean and the variance that are given."""
    inverse = tf.math.rsqrt(variance + epsilon)
    return -gamma * inverse * dbeta, -0.5 * gamma * tf.square(inverse) * dgamma


def _corrected(
    dx: Any,
    dy: Any,
    gamma: Any,
    variance: Any,
    scaling: Any,
    frozen: Any,
    epsilon: float,
    count: int,
) -> list[Any]:
    """The gradients for x, and for the first ``count`` of mean and variance.

    The kernel's own for x is right by the batch's statistics; by the moving ones it is ``dy`` times
    what ``x`` was multiplied by. The graph itself has both, of which one is alive: a condition in
    the way of every gradient is 2 to 3 % of a step where kernels are small.

    Args:
      dx, scaling: what the kernel found for x, and for gamma and beta.
      dy: the upstream gradient.
      variance: that :func:`_forward` keeps.
      frozen: int32 scalar.
      gamma, epsilon: as in :func:`batch_norm`.
    """
    is_frozen = tf.cast(frozen, tf.bool)
    free, _ = nodes.parted(dx, is_frozen)
    _, upstream = nodes.parted(dy, is_frozen)
    zeros = tf.zeros_like(gamma)
    right, *_ = _kernel(upstream, gamma, zeros, zeros, variance, epsilon=epsilon, factor=0.0)
    found = [nodes.joined(free, right)]
    if count:
        none, _ = nodes.parted(zeros, is_frozen)
        _, used = nodes.parted(variance, is_frozen)
        given = _statistics_gradients(gamma, used, epsilon, *scaling)
        found += [nodes.joined(none, value) for value in given[:count]]
    return found


def _outside(frozen: Any) -> bool:
    """Whether the kernel by the batch's statistics stands outside of the condition."""
    if tf.get_static_value(frozen) is not None or devices.on_gpu():
        return False
    return onednn.in_use() and not devices.compiled_by_xla()


def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    mean: Any,
    variance: Any,
    frozen: Any,
    *,
    epsilon: float,
    momentum: float,
    bessel: bool,
    averages: tuple[Any, Any] | None = None,
    bias: Any = None,
) -> tuple[Any, Any, Any]:
    """``gamma * (x - m) / sqrt(v + epsilon) + beta`` on the fused kernel.

    Args:
      x: (N, H, W, C), float16, bfloat16 or float32; may be pending.
      gamma, beta, mean, variance: float32, (C,).
      frozen: int32 scalar. 1: normalize by ``mean`` and ``variance`` and keep the averages; 0:
        by the batch's statistics, and move the averages towards those.
      epsilon, momentum: Python floats.
      bessel: move the variance's average towards the batch's times n/(n-1).
      averages: the moving mean and variance, float32, (C,), where ``mean`` and ``variance`` are
        something made of them; these then get gradients too, where they are used.
      bias: (C,), what has been added to ``x`` behind a ``stop_gradient``. Its gradient is known
        here without a sum over ``x``: 0 where the batch's mean takes it out again, and minus
        the mean's where the moving one is used.

    Returns:
      The output, pending, and the moving mean and variance as they are from now on.
    """
    given, x = x, tensor(x)
    variables = gamma, beta, mean, variance
    arguments = x, *variables, *(averages or ())
    outside = _outside(frozen)
    options = x.dtype, epsilon, momentum, bessel, averages is not None
    shapes = (x.shape, gamma.shape, gamma.shape, None, None, None)
    if outside:
        values = gamma, beta, *arguments[-2:]
        *found, rest = _by_batch(_seen(x, frozen), values, epsilon, momentum, bessel)
        chosen = *_chosen(*options)(frozen, (*found, *arguments), shapes[:5]), rest
    else:
        chosen = _forward(*options)(frozen, arguments, shapes)
    y, new_mean, new_variance, *saved = chosen
    wanted = (given, gamma, beta) if averages is None else (given, *variables)
    others = () if bias is None else (bias,)

    def gradient(dy: Any) -> Any:
        if outside:
            count = 2 if averages else len(others)
            dx, *scaling = _kernel_gradients(True, epsilon, dy, x, gamma, *saved)
            right = _corrected(dx, dy, gamma, saved[1], scaling, frozen, epsilon, count)
            found = (right[0], *scaling, *right[1:])
        else:
            statistics = bool(averages or others)
            shapes = (x.shape, *[gamma.shape] * (4 if statistics else 2))
            found = _backward(x.dtype, epsilon, statistics)(frozen, (dy, x, gamma, *saved), shapes)
        dbias = [tf.cast(-found[3], bias.dtype) for bias in others]
        return (*found[: len(wanted)], *dbias)

    return Pending(y, gradient, (*wanted, *others)), new_mean, new_variance
