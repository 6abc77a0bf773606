"""Layer normalization by L2_NORMALIZATION, for models that were saved with it.

``rewrite`` keeps the stock layer, which :mod:`rewriter.lowering.operators.normalizations` lowers.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from rewriter import kernels
from rewriter.keras_compat import paths
from rewriter.layers.phased import PhasedMixin
from rewriter.quantization import phases
from rewriter.reading import layer_norms


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
            part.state_scope, part.owner = name, self.name
            with self.flavour.part_scope(paths.scope(part)):
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
        mean = self.mean(kernels.layer_norm_mean(inputs, phase, over), training=training)
        centred = kernels.layer_norm_deviations(inputs, mean, phase)
        centred = self.centred(centred, training=training)
        self._widen(math.sqrt(epsilon))
        gamma, beta = (
            tf.constant(default) if v is None else tf.reshape(tf.convert_to_tensor(v), sizes)
            for v, default in ((self.norm.gamma, 1.0), (self.norm.beta, 0.0))
        )
        return kernels.layer_norm_output(original, centred, gamma, beta, phase, over, epsilon)

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
