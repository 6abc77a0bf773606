"""TensorFlow's fused batch-norm kernel with a switch for its statistics.

Whether the batch's or the moving statistics are used is an attribute of the kernel. The
condition on a variable therefore chooses between two kernels (:mod:`.switch`), with gradients by
hand.

oneDNN's kernels cannot be in a condition. Where it is in use, the one for the batch's statistics is
outside, and the condition chooses between its results and those of the other one. Where frozen, it
is given a single pixel forward; backward, only its gradient for the input is not the right one, and
a second condition chooses it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.fast import machine, norm_kernels, private
from rewriter.kernels.fast.gradients import Pending, tensor
from rewriter.kernels.fast.switch import Switch

_VECTOR = tf.TensorSpec([None], tf.float32)
_REST = tf.TensorSpec(None, tf.float32)


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
    return tuple(norm_kernels.kernel(x, *values, epsilon=epsilon, factor=factor))


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
        y, *_, rest = norm_kernels.kernel(
            x, gamma, beta, mean, variance, epsilon=epsilon, factor=None
        )
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
        return _averaged(arguments[:5], arguments[5], arguments[-2:], momentum, bessel)

    def by_moving(*arguments: Any) -> Any:
        x, gamma, beta, mean, variance = arguments[5:10]
        y, *_ = norm_kernels.kernel(x, gamma, beta, mean, variance, epsilon=epsilon, factor=None)
        return y, *arguments[-2:], mean, variance

    image, vectors = _image(dtype), [_VECTOR] * (6 if averaged else 4)
    return Switch([image, *[_VECTOR] * 4, image, *vectors], by_batch, by_moving)


@functools.cache
def _backward(dtype: tf.DType, epsilon: float, statistics: bool) -> Switch:
    """Gradients for x, gamma and beta, and where ``statistics`` for mean and variance.

    Arguments: the upstream gradient, x, gamma, and what :func:`_forward` keeps.
    """

    def by_batch(dy: Any, x: Any, gamma: Any, *kept: Any) -> Any:
        none = (tf.zeros_like(gamma), tf.zeros_like(gamma)) if statistics else ()
        return *norm_kernels.kernel_gradients(True, epsilon, dy, x, gamma, *kept), *none

    def by_moving(dy: Any, x: Any, gamma: Any, mean: Any, variance: Any, rest: Any) -> Any:
        found = norm_kernels.kernel_gradients(False, epsilon, dy, x, gamma, mean, variance, rest)
        if not statistics:
            return tuple(found)
        return *found, *norm_kernels.statistics_gradients(gamma, variance, epsilon, *found[1:])

    image = _image(dtype)
    return Switch([image, image, _VECTOR, _REST, _REST, _REST], by_batch, by_moving)


@functools.cache
def _corrected(dtype: tf.DType, epsilon: float, statistics: bool) -> Switch:
    """As :func:`_backward`, but for gamma and beta, of what the kernel outside has found.

    That is right for gamma and beta in any case. For x it is right by the batch's statistics; by
    the moving ones it is ``dy`` times what ``x`` was multiplied by.

    Arguments: the gradients that the kernel found for x, gamma and beta; the upstream gradient,
    gamma, and the variance that was used.
    """

    def by_batch(dx: Any, dgamma: Any, *_: Any) -> Any:
        return dx, *[tf.zeros_like(dgamma)] * (2 * statistics)

    def by_moving(_: Any, dgamma: Any, dbeta: Any, dy: Any, gamma: Any, variance: Any) -> Any:
        zeros = tf.zeros_like(gamma)
        dx, *_ = norm_kernels.kernel(
            dy, gamma, zeros, zeros, variance, epsilon=epsilon, factor=None
        )
        if not statistics:
            return (dx,)
        return dx, *norm_kernels.statistics_gradients(gamma, variance, epsilon, dgamma, dbeta)

    image, vector = _image(dtype), _VECTOR
    return Switch([image, vector, vector, image, vector, vector], by_batch, by_moving)


def _outside(frozen: Any) -> bool:
    """Whether the kernel by the batch's statistics stands outside of the condition."""
    if tf.get_static_value(frozen) is not None or machine.on_gpu():
        return False
    return machine.onednn() and not private.compiled_by_xla()


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
    """As :func:`rewriter.kernels.plain.batch_norm`; the output is pending."""
    source, x = x, tensor(x)
    variables = gamma, beta, mean, variance
    arguments = x, *variables, *(averages or ())
    others = () if bias is None else (bias,)
    statistics = bool(averages or others)
    outside = _outside(frozen)
    options = x.dtype, epsilon, momentum, bessel, averages is not None
    shapes = (x.shape, gamma.shape, gamma.shape, None, None, None)
    if outside:
        values = gamma, beta, *arguments[-2:]
        part = norm_kernels.seen(x, frozen)
        *found, rest = _by_batch(part, values, epsilon, momentum, bessel)
        chosen = *_chosen(*options)(frozen, (*found, *arguments), shapes[:5]), rest
    else:
        chosen = _forward(*options)(frozen, arguments, shapes)
    y, new_mean, new_variance, *saved = chosen
    wanted = (source, gamma, beta) if averages is None else (source, *variables)

    def gradient(dy: Any) -> Any:
        vectors = [gamma.shape] * (2 * statistics)
        if outside:
            dx, *scaling = norm_kernels.kernel_gradients(True, epsilon, dy, x, gamma, *saved)
            given = dx, *scaling, dy, gamma, saved[1]
            shapes = x.shape, *vectors
            dx, *more = _corrected(x.dtype, epsilon, statistics)(frozen, given, shapes)
            found = [dx, *scaling, *more]
        else:
            shapes = x.shape, gamma.shape, gamma.shape, *vectors
            given = dy, x, gamma, *saved
            found = list(_backward(x.dtype, epsilon, statistics)(frozen, given, shapes))
        # What has been added to x is taken out again by the batch's mean; by the given one, its
        # gradient is minus the mean's. Neither needs a sum over the gradient for x.
        return *found[: len(wanted)], *(tf.cast(-found[3], each.dtype) for each in others)

    return Pending(y, gradient, (*wanted, *others)), new_mean, new_variance
