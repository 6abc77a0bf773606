"""How LiteRT operators with a kernel store it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an operator with a kernel stores it.

    Attributes:
      to_file: from Keras's kernel layout to the file's.
      axis: the axis of the output channels in the file's kernel.
      channels: how many output channels a kernel in Keras's layout has.
      kernel, bias: their positions among the operator's inputs in the file.
    """

    to_file: Callable[[np.ndarray], np.ndarray]
    axis: int
    channels: Callable[[np.ndarray], int]
    kernel: int = 1
    bias: int = 2


LAYOUTS = {
    "CONV_2D": Layout(lambda w: w.transpose(3, 0, 1, 2), 0, lambda w: w.shape[3]),  # to OHWI
    "DEPTHWISE_CONV_2D": Layout(  # HWIM to 1HW(I*M)
        lambda w: w.reshape(1, *w.shape[:2], -1), 3, lambda w: w.shape[2] * w.shape[3]
    ),
    "TRANSPOSE_CONV": Layout(  # HWOI to OHWI; its first input is the shape of the output
        lambda w: w.transpose(2, 0, 1, 3), 0, lambda w: w.shape[2], bias=3
    ),
    "FULLY_CONNECTED": Layout(lambda w: w.transpose(1, 0), 0, lambda w: w.shape[1]),  # to OI
}
