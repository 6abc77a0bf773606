"""The arithmetic of training in public TensorFlow: the specification of the fast kernels.

Every function is the formula of its docstring, with conditions by ``tf.switch_case`` and
straight-through gradients by ``tf.custom_gradient``; TensorFlow differentiates all else, as often
as it is asked to. A layer whose phase, or whether it is frozen, is known has no condition.

Where the fast kernels return a tensor whose gradient is still to be connected, these return an
ordinary tensor: :func:`tensor` and :func:`connected` have nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter.grid import NEGLIGIBLE, Grid
from rewriter.kernels.codes import QUANTIZE, QUANTIZE_FROZEN

# The range of a tensor that holds values from -1 to 1: LiteRT's for L2_NORMALIZATION's output.
UNIT = -1.0, 127.0 / 128.0

_CLAMPS = {"none": tf.identity, "relu": tf.nn.relu, "relu6": tf.nn.relu6}
_INSIDE = {
    "none": tf.ones_like,
    "relu": lambda y: tf.cast(y > 0, y.dtype),
    "relu6": lambda y: tf.cast((y > 0) & (y < 6), y.dtype),
}


def tensor(x: Any) -> Any:
    """The tensor that ``x`` is, without a gradient where ``x`` is pending (fast kernels only)."""
    return x


def connected(x: Any) -> Any:
    """The tensor that ``x`` is, with its gradient."""
    return x


def connect(value: Any, gradient: Callable[..., Sequence[Any]], *inputs: Any) -> Any:
    """``value`` as a function of ``inputs`` with the gradient given.

    Args:
      value: a tensor, or a list of them.
      gradient: the gradients for the inputs, given that for ``value``, or those for its tensors.
      inputs: the tensors that gradients are for.
    """

    def function(*_: Any) -> Any:
        return value, lambda *upstream: list(gradient(*upstream))

    return tf.custom_gradient(function)(*inputs)


def read_variable(variable: Any) -> Any:
    """The value of a variable, as a tensor; gradients do not go there."""
    return tf.stop_gradient(tf.convert_to_tensor(variable))


def assign_variable(variable: Any, value: Any) -> None:
    """Set a ``tf.Variable`` to a tensor of its dtype."""
    variable.assign(value, read_value=False)


def convolution(
    x: Any, kernel: Any, strides: Sequence[int], padding: str, dilations: Sequence[int]
) -> Any:
    """``y[n, i, d] = sum over k, c of x[n, i * stride + k * dilation, c] * kernel[k, c, d]``.

    Args:
      x: (N, W, C) or (N, H, W, C), floating point.
      kernel: (w, C, D) or (h, w, C, D), the dtype of ``x``; may be pending.
      strides, dilations: one for each spatial axis.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      (N, W', D) or (N, H', W', D); may be pending.
    """
    # Without a data format, TensorFlow has no second gradient outside of a function.
    options = {"dilations": list(dilations), "data_format": "NWC" if len(x.shape) == 3 else "NHWC"}
    return tf.nn.convolution(x, kernel, list(strides), padding, **options)


def depthwise_convolution(x: Any, kernel: Any, stride: int, padding: str) -> Any:
    """``y[n, i, c * M + m] = sum over k of x[n, i * stride + k, c] * kernel[k, c, m]``.

    Args:
      x: (N, H, W, C), floating point.
      kernel: (h, w, C, M), the dtype of ``x``; may be pending.
      stride: along both axes.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      (N, H', W', C * M); may be pending.
    """
    strides = [1, stride, stride, 1]
    return tf.nn.depthwise_conv2d(x, kernel, strides, padding, data_format="NHWC")


def moved(y: Any, add: Callable[[Any, Any], Any], bias: Any) -> Any:
    """``add(y, bias)``, connected to ``y`` but not to the bias: :func:`batch_norm` is given that.

    Args:
      y: floating point; may be pending.
      add: adds the bias to every pixel.
      bias: (C,).

    Returns:
      The shape of ``y``; may be pending.
    """
    return add(y, tf.stop_gradient(bias))


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
    """``gamma * (x - m) / sqrt(v + epsilon) + beta`` (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Args:
      x: (N, H, W, C), float16, bfloat16 or float32; may be pending.
      gamma, beta, mean, variance: float32, (C,).
      frozen: int32 scalar. 1: m and v are ``mean`` and ``variance``, and the averages are kept;
        0: they are the batch's, and the averages move: ``a + (1 - momentum) * (batch's - a)``.
      epsilon, momentum: Python floats.
      bessel: move the variance's average towards the batch's times n/(n-1), n elements a channel.
      averages: the moving mean and variance, float32, (C,), where ``mean`` and ``variance`` are
        something made of them; these then get gradients too, where they are used.
      bias: (C,), what :func:`moved` has added to ``x``. Its gradient is 0 with the batch's mean,
        which takes it out again, and ``gamma / sqrt(v + epsilon)`` times beta's with a given one.

    Returns:
      The output, which may be pending, and the moving mean and variance as they are from now on.
    """
    old = (mean, variance) if averages is None else averages
    options = {"x": x, "scale": gamma, "epsilon": epsilon}

    def by_batch() -> tuple[Any, Any, Any]:
        none = tf.zeros([0])
        y, m, v, *_ = tf.raw_ops.FusedBatchNormV3(offset=beta, mean=none, variance=none, **options)
        if not bessel:  # the kernel has multiplied it
            n = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
            v = v * (n - 1.0) / n
        new = (a + (1.0 - momentum) * (b - a) for a, b in zip(old, (m, v), strict=True))
        return y, *map(tf.stop_gradient, new)

    def by_given() -> tuple[Any, Any, Any]:
        offset = beta
        if bias is not None:  # adds nothing but a gradient
            nothing = tf.cast(bias - tf.stop_gradient(bias), tf.float32)
            offset += gamma * tf.math.rsqrt(variance + epsilon) * nothing
        if averages is not None:  # TensorFlow's kernel has no gradients for its statistics
            wide = tf.cast(x, tf.float32)
            y = tf.nn.batch_normalization(wide, mean, variance, offset, gamma, epsilon)
            return tf.cast(y, x.dtype), *map(tf.stop_gradient, old)
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            offset=offset, mean=mean, variance=variance, is_training=False, **options
        )
        return y, *map(tf.stop_gradient, old)

    y, *new = _chosen(frozen, by_batch, by_given)
    y.set_shape(x.shape)
    return y, new[0], new[1]


def clamped(x: Any, clamp: str) -> Any:
    """``x`` itself, ``max(x, 0)`` or ``min(max(x, 0), 6)``: the activations that LiteRT fuses.

    Args:
      x: floating point, any shape.
      clamp: ``"none"``, ``"relu"`` or ``"relu6"``.
    """
    return _CLAMPS[clamp](x)


def activation(
    x: Any,
    low: Any,
    high: Any,
    phase: Any,
    *,
    rate: float,
    follow: Any,
    clamp: str = "none",
    grid: Grid = grids.ACTIVATION,
    before: Any = None,
) -> tuple[Any, Any]:
    """Activate and quantize a tensor as its phase says (Jacob et al. 2018, arXiv:1712.05877).

    ``float``: ``y = clamp(x)``. ``observe``: that, and the range becomes the hull of itself and the
    batch's. ``quantize``: the range moves by ``rate`` of the way to the batch's, and y is the
    nearest value to x on the grid that divides it into equal steps. The batch's range is that of
    ``clamp(x)`` and 0. The gradient is the clamp's at y, straight through the rounding and the
    ends of the range (Bengio et al. 2013, arXiv:1308.3432).

    Args:
      x: float32, any shape; may be pending.
      low, high: the range, scalar ``tf.Variable`` of float32, updated in place; ``low > high`` if
        nothing has been observed. An unset range in phase ``quantize`` becomes the batch's own.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      rate: share of a batch's range in the moving average.
      follow: bool or bool scalar: whether the range follows this batch in phase ``quantize``.
      clamp: ``"none"``, ``"relu"`` or ``"relu6"``: applied first.
      grid: the integers.
      before: where the range serves several tensors of a batch, for all but the first: what this
        function returned for that. The range then follows the smallest and the largest of them all;
        one moving average after the other would end at the mean of theirs, and cut the widest off.

    Returns:
      The shape of ``x``, which may be pending; and the range before this batch.
    """
    follows = tf.get_static_value(follow)
    if follows is None:
        phase = tf.where(follow | (phase != QUANTIZE), phase, QUANTIZE_FROZEN)
    ends = low.value(), high.value()
    start = ends if before is None else before

    def batch() -> tuple[Any, Any]:
        y = clamped(x, clamp)
        return tf.minimum(tf.reduce_min(y), 0.0), tf.maximum(tf.reduce_max(y), 0.0)

    def hull(a: Any, b: Any) -> tuple[Any, Any]:
        return tf.minimum(a[0], b[0]), tf.maximum(a[1], b[1])

    def in_float() -> tuple[Any, ...]:
        return clamped(x, clamp), *ends

    def observing() -> tuple[Any, ...]:
        return clamped(x, clamp), *hull(ends, batch())

    def following() -> tuple[Any, ...]:
        new = [
            tf.where(start[0] > start[1], end, old + rate * (end - old))
            for old, end in zip(start, batch(), strict=True)
        ]
        # Of several tensors, one moving average of all that the batch has.
        low, high = new if before is None else hull(ends, new)
        return _on_grid(x, grid, low, high), low, high

    def frozen() -> tuple[Any, ...]:
        # There may be no range to keep: the batch's becomes it.
        new = tf.cond(start[0] > start[1], lambda: hull(ends, batch()), lambda: ends)
        return _on_grid(x, grid, *new), *new

    def fixed() -> tuple[Any, ...]:
        return _on_grid(x, grid, *ends), *ends

    moving = frozen if follows is not None and not follows else following
    y, *new = _chosen(phase, in_float, observing, moving, frozen, fixed)
    for variable, value in zip((low, high), new, strict=True):
        variable.assign(value, read_value=False)
    return _through_clamp(y, x, clamp), start


def fixed_activation(
    x: Any,
    low: float,
    high: float,
    phase: Any,
    *,
    clamp: str = "none",
    grid: Grid = grids.ACTIVATION,
) -> Any:
    """As :func:`activation`, with a range that is known beforehand."""

    def in_float() -> tuple[Any]:
        return (clamped(x, clamp),)

    def quantized() -> tuple[Any]:
        return (_on_grid(x, grid, low, high),)

    (y,) = _chosen(phase, in_float, in_float, quantized)
    return _through_clamp(y, x, clamp)


def quantized_kernel(kernel: Any, phase: Any, grid: Grid) -> Any:
    """``round(w / s) * s`` with ``s = max|w| / qmax`` for every channel, in phase ``quantize``.

    Rounding is half to even (Krishnamoorthi 2018, arXiv:1806.08342, section 2.4). Nothing is
    clipped, since the range is the kernel's own: the straight-through gradient is the identity in
    every phase. A channel of nothing, or too small to have an inverse, has the scale 1.

    Args:
      kernel: float32, any rank.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
      grid: a symmetric, narrow-range one; its axes index the output channels, of which each has a
        scale.

    Returns:
      The shape of ``kernel``; may be pending.
    """

    def quantized() -> tuple[Any]:
        rank, top = len(kernel.shape), float(grid.qmax)
        kept = {axis % rank for axis in grid.axes}
        rest = [axis for axis in range(rank) if axis not in kept]
        largest = tf.reduce_max(tf.abs(kernel), rest, keepdims=True)
        largest = tf.where(largest > NEGLIGIBLE, largest, top)
        return (tf.round(kernel * (top / largest)) * (largest / top),)

    (value,) = _chosen(phase, lambda: (tf.identity(kernel),), lambda: (tf.identity(kernel),),
                       quantized)  # fmt: skip
    return connect(value, lambda upstream: (upstream,), kernel)


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

    (found,) = _chosen(phase, lambda: (tf.zeros_like(tf.reduce_max(x, over, True)),), mean)
    found.set_shape(few)
    return tf.stop_gradient(found)


def layer_norm_deviations(x: Any, mean: Any, phase: Any) -> Any:
    """``x - mean`` from phase ``observe`` on; ``x`` in ``float``. No gradient.

    Args:
      x: float32, of a known rank.
      mean: of :func:`layer_norm_mean`.
      phase: int32 scalar of :mod:`rewriter.kernels.codes`.
    """
    (found,) = _chosen(phase, lambda: (tf.identity(x),), lambda: (x - mean,))
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
        unit = _on_grid(centred * tf.math.rsqrt(squares + count * epsilon), grids.ACTIVATION, *UNIT)
        return (unit * (tf.sqrt(count) * gamma) + beta,)

    def stock() -> tuple[Any]:
        return (tf.identity(original),)

    (value,) = _chosen(phase, stock, stock, normalized)
    return connect(value, lambda upstream: (upstream,), original)


def _chosen(index: Any, *branches: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """What the branch of that index returns, the last one for all larger ones."""
    known = tf.get_static_value(index)
    if known is not None:
        return branches[min(int(known), len(branches) - 1)]()
    return tf.switch_case(index, list(branches))


def _on_grid(x: Any, grid: Grid, low: Any, high: Any) -> Any:
    """The nearest value on the grid over ``[low, high]``, nudged so that 0 is exact."""
    quantize = tf.quantization.fake_quant_with_min_max_vars
    return quantize(x, low, high, num_bits=grid.bits, narrow_range=grid.narrow)


def _through_clamp(y: Any, x: Any, clamp: str) -> Any:
    """``y`` as a function of ``x`` whose slope is 1 where y is inside of the clamp, and else 0."""
    y.set_shape(x.shape)
    return connect(y, lambda upstream: (upstream * _INSIDE[clamp](y),), x)
