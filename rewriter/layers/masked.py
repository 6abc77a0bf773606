"""Values that a mask has made so small that softmax gives them nothing, while a range is found."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.quantization import phases

# Between masked values and the smallest of the others: exp(-10) is a hundredth of a step of 8 bits.
MARGIN = 10.0


def raised(inputs: Any, floor: float, phase: Any, training: Any) -> Any:
    """``inputs``; where a range moves, with masked ones just so far below the others.

    Args:
      inputs: floating point, of any shape.
      floor: values below it are masked.
      phase: an int32 scalar.
      training: as a layer is given it.
    """
    trains = tf.cast(False if training is None else training, tf.bool)
    moves = (phase == phases.OBSERVE) | ((phase == phases.QUANTIZE) & trains)
    hidden = inputs < tf.cast(floor, inputs.dtype)
    least = tf.reduce_min(tf.where(hidden, inputs.dtype.max, inputs))
    return tf.where(moves & hidden, least - tf.cast(MARGIN, inputs.dtype), inputs)
