"""Layer normalization as the integer operators that it becomes on the device."""

from __future__ import annotations

import functools
import math
from typing import Any

import tensorflow as tf

from rewriter.gradients import connect
from rewriter.grid import TANH_RANGE
from rewriter.layers.quantize import PhasedMixin
from rewriter.reading import layer_norms
from rewriter.switch import Switch
from rewriter.training import phases

_ANY = tf.TensorSpec(None, tf.float32)


@functools.cache
def _switches(rank: int, over: tuple[int, ...], epsilon: float) -> tuple[Switch, Switch, Switch]:
    """By phase: the mean, the deviations from it, and the output.

    Nothing is computed where nobody looks: in phase ``float`` the first is zeros, the second its
    first argument, and up to ``observe`` the third is.
    """
    kept = [int(axis not in over) for axis in range(rank)]

    def mean(x: Any) -> tuple[Any]:
        return (tf.reduce_mean(x, over, keepdims=True),)

    def no_mean(x: Any) -> tuple[Any]:
        return (tf.zeros(tf.shape(x) ** kept),)

    def deviations(x: Any, mean: Any) -> tuple[Any]:
        return (x - mean,)

    def first(x: Any, *_: Any) -> tuple[Any]:
        return (tf.identity(x),)

    def normalized(original: Any, centred: Any, gamma: Any, beta: Any) -> tuple[Any]:
        count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(centred), over)), tf.float32)
        squares = tf.reduce_sum(tf.square(centred), over, keepdims=True)
        unit = centred * tf.math.rsqrt(squares + count * epsilon)
        unit = tf.quantization.fake_quant_with_min_max_args(unit, *TANH_RANGE)
        return (unit * (tf.sqrt(count) * gamma) + beta,)

    return (  # as rewriter.phases counts
        Switch([_ANY], no_mean, mean, mean, mean),
        Switch([_ANY, _ANY], first, deviations, deviations, deviations),
        Switch([_ANY] * 4, first, first, normalized, normalized),
    )


class QuantizedLayerNormalizationMixin(PhasedMixin):
    """A ``LayerNormalization`` (Ba et al. 2016, arXiv:1607.06450) made quantization-aware.

    In phases ``float`` and ``observe`` it computes what the stock layer in it computes, by that
    layer. In phase ``quantize`` it emulates LiteRT's operators on int8 tensors, ``Q`` being their
    grids and ``n`` the number of elements that are normalized together::

        m = Q(mean(x));  d = Q(x - m);  u = Q(d / sqrt(sum(d * d) + n * epsilon))
        y = gamma * sqrt(n) * u + beta

    L2_NORMALIZATION makes ``u`` of ``d``, with its sum of squares and reciprocal root in 32 bits.
    (Squares, a variance and a reciprocal root of 256 levels each would lose every position whose
    deviations are small beside the largest.) The step of ``u`` is 1/128, that of ``y`` so
    ``gamma * sqrt(n) / 128``. The gradient is the stock layer's, straight through the roundings
    (Bengio et al. 2013, arXiv:1308.3432).

    Input shape: any rank from 2; float32. Output shape: the same.

    Args:
      norm: the stock layer (or its serialized form): configuration and variables.
      mean, centred: Quantize layers for ``m`` and ``d``.
    """

    def __init__(self, norm: Any, mean: Any, centred: Any, **kwargs: Any):
        super().__init__(**kwargs)
        self.norm, self.mean, self.centred = (
            self.flavour.deserialize(part) if isinstance(part, dict) else part
            for part in (norm, mean, centred)
        )
        self._frozen = not self.norm.trainable
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if self._frozen:  # see QuantizedHost
            self.norm.trainable = False
        self.add_phase()
        shape = tuple(input_shape)
        over = layer_norms.axes(self.norm, len(shape))
        shapes = {
            "norm": shape,
            "mean": tuple(1 if axis in over else size for axis, size in enumerate(shape)),
            "centred": shape,
        }
        for name, given in shapes.items():
            part = getattr(self, name)
            part.state_scope = name
            with self.flavour.part_scope(part.name):
                part.build(given)
                part.built = True
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and tracing is slower
    def call(self, inputs: Any, training: Any = None) -> Any:
        symbolic = self.signature(inputs)
        if symbolic is not None:
            return symbolic
        training = self.flavour.static_training(training)
        phase = phases.read(self.phase)
        original = self.norm.call(inputs)
        shape = inputs.shape
        over = layer_norms.axes(self.norm, len(shape))
        sizes = [size if axis in over else 1 for axis, size in enumerate(shape)]
        epsilon = float(self.norm.epsilon)
        means, deviations, normalized = _switches(len(shape), tuple(over), epsilon)

        few = [1 if axis in over else size for axis, size in enumerate(shape)]
        (mean,) = means(phase, (inputs,), (few,))
        mean = self.mean(mean, training=training)
        (centred,) = deviations(phase, (inputs, mean), (shape,))
        centred = self.centred(centred, training=training)
        self._widen(math.sqrt(epsilon))
        gamma, beta = (
            tf.constant(default) if v is None else tf.reshape(tf.convert_to_tensor(v), sizes)
            for v, default in ((self.norm.gamma, 1.0), (self.norm.beta, 0.0))
        )
        (value,) = normalized(phase, (original, centred, gamma, beta), (shape,))
        return connect(value, lambda upstream: (upstream,), original)

    def _widen(self, bound: float) -> None:
        """Have the grid of the deviations hold ``bound``, unless it is not set yet.

        Constants on it stand for epsilon on the device.
        """
        high = self.centred.range_variables.get("max_var")
        if high is not None:
            high.assign(tf.maximum(tf.convert_to_tensor(high), bound))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("norm", "mean", "centred"):
            config[name] = self.flavour.serialize(getattr(self, name))
        return config
