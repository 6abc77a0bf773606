"""The grid of an activation as one operator that every converter knows."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.grid import BITS
from rewriter.keras_compat import Flavour


class FakeQuantizeMixin:
    """``tf.quantization.fake_quant_with_min_max_args`` as a layer: no condition, no variable.

    Input and output: any shape; 16-bit and float64 tensors are quantized in float32.

    Args:
      minimum, maximum: the smallest and the largest real value of the grid, which holds 0.
      num_bits: of the grid, 2 to 16.
    """

    flavour: Flavour

    def __init__(self, minimum: float, maximum: float, num_bits: int = BITS, **kwargs: Any):
        super().__init__(**kwargs)
        self.minimum, self.maximum = float(minimum), float(maximum)
        self.num_bits = int(num_bits)
        self.supports_masking = True

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        outputs = tf.quantization.fake_quant_with_min_max_args(
            tf.cast(inputs, tf.float32), self.minimum, self.maximum, self.num_bits
        )
        return tf.cast(outputs, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"minimum": self.minimum, "maximum": self.maximum, "num_bits": self.num_bits}
        return {**super().get_config(), **own}
