"""What a normalization of single samples reads, without gradients that mean nothing."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.kernels import moments
from rewriter.layers.phased import PhasedMixin
from rewriter.quantization import phases


class StillRowsMixin(PhasedMixin):
    """Passes on the input of a layer, group or root-mean-square normalization.

    In phase ``quantize`` the gradient of what is normalized together is 0 where nothing in it
    varies: see :func:`rewriter.kernels.moments.still`.

    Input: floating point, of a known rank. Output: the same.

    Args:
      centred: whether the mean is subtracted.
      epsilon: what is added to the variance.
      outer: how many axes after the batch are not normalized over; None: see ``groups``.
      groups: of the last axis, each normalized over it and all axes but the batch.
    """

    def __init__(
        self,
        centred: bool = True,
        epsilon: float = 1e-3,
        outer: int | None = None,
        groups: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.centred, self.epsilon = bool(centred), float(epsilon)
        self.outer, self.groups = outer, groups

    def build(self, input_shape: Any) -> None:
        self.add_phase()
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and tracing is slower
    def call(self, inputs: Any, training: Any = None) -> Any:
        symbolic = self.signature(inputs)
        if symbolic is not None:
            return symbolic
        phase = phases.read(self.phase)

        @tf.custom_gradient
        def passed(x: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                return tf.cond(
                    phase >= phases.QUANTIZE,
                    lambda: tf.where(self._still(x, phase), tf.zeros_like(upstream), upstream),
                    lambda: tf.identity(upstream),
                )

            return tf.identity(x), gradient

        outputs = passed(inputs)
        outputs.set_shape(inputs.shape)
        return outputs

    def _still(self, x: Any, phase: Any) -> Any:
        """Of each element, whether what it is normalized with does not vary."""
        shape = tf.shape(x)
        if self.groups is not None:
            rows = tf.reshape(x, [shape[0], -1, self.groups, x.shape[-1] // self.groups])
            over = [1, 3]
        else:
            rows, over = x, list(range((self.outer or 0) + 1, len(x.shape)))
        mean = tf.reduce_mean(rows, over, keepdims=True)
        mean = mean if self.centred else tf.zeros_like(mean)
        variance = tf.reduce_mean(tf.math.squared_difference(rows, mean), over, keepdims=True)
        found = moments.still(mean, variance, self.epsilon, phase)
        return tf.reshape(tf.broadcast_to(found, tf.shape(rows)), shape)

    def get_config(self) -> dict[str, Any]:
        names = ("centred", "epsilon", "outer", "groups")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
