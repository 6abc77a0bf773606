"""What a function with a pole at 0 reads, away from it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter.layers import neighbours
from rewriter.layers.phased import PhasedMixin
from rewriter.quantization import phases

# Of a step: what 0 stands for, which is all that lies within half a step of it.
SHARE = 0.25


class OffZeroMixin(PhasedMixin):
    """Passes on what is divided by; in phase ``quantize`` zeros may be a quarter of a step.

    Rounding makes zeros where a float model has none. There a reciprocal would be infinite, or as
    good as that, and so would its gradient: where a step is more than what is added to keep it
    from that.

    Input: floating point, of any shape, on the grid of one Quantize layer. Output: the same shape.

    Args:
      width: the largest step that leaves zeros as they are.
    """

    def __init__(self, width: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.width = float(width)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.add_phase()
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and tracing is slower
    def call(self, inputs: Any, training: Any = None) -> Any:
        symbolic = self.signature(inputs)
        if symbolic is not None:
            return symbolic
        before = neighbours.quantizer_before(self.flavour, self)
        ends = [] if before is None else neighbours.range_of(before)
        if before is None or len(ends) != 2:
            return tf.identity(inputs)  # on a grid that is not known
        low, high = (tf.cast(end, tf.float32) for end in ends)
        steps = grids.of(before.quantizer).steps
        step = (tf.maximum(high, 0.0) - tf.minimum(low, 0.0)) / float(steps)
        if grids.of(before.quantizer).symmetric:
            step = tf.maximum(high, -low) * 2 / float(steps)
        coarse = tf.logical_and(phases.read(self.phase) >= phases.QUANTIZE, step > self.width)
        zero = tf.logical_and(coarse, tf.abs(tf.cast(inputs, tf.float32)) < step / 2)
        outputs = tf.where(zero, tf.cast(step * SHARE, inputs.dtype), inputs)
        outputs.set_shape(inputs.shape)
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}
