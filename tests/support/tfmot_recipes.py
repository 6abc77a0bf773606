"""TFMOT's quantizers as recipes have them: in int8, for activations and for kernels."""

from __future__ import annotations

import tensorflow_model_optimization as tfmot

tfmot_quantizers = tfmot.quantization.keras.quantizers
LAST = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}
KERNEL = {"num_bits": 8, "per_axis": False, "symmetric": True, "narrow_range": True}


def last_value(**options):
    return tfmot_quantizers.LastValueQuantizer(**{**LAST, **options})


def moving_average():
    return tfmot_quantizers.MovingAverageQuantizer(**LAST)
