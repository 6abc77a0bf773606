"""The kernels: their scales by channel, and the channels that compute nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from rewriter import grid
from rewriter.program import Operator, Program

# Where the output channels of a kernel are, in Keras's layout; the last axis for all others.
_CHANNELS: dict[str, tuple[int, ...]] = {"DEPTHWISE_CONV_2D": (-2, -1), "TRANSPOSE_CONV": (-2,)}


@dataclasses.dataclass(frozen=True)
class KernelRow:
    """The kernel of one step.

    Attributes:
      layer, kind: the Keras layer, and the LiteRT operator.
      shape: in Keras's layout.
      bits: of its grid.
      channels: output channels.
      scales: of each channel, in order; a single one for a kernel with one scale for all.
      dead: the channels whose integers are all 0: their output is their bias.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    channels: int
    scales: tuple[float, ...]
    dead: tuple[int, ...]

    @property
    def spread(self) -> float:
        """The largest scale to the smallest; infinite if that is 0."""
        smallest = min(self.scales)
        return max(self.scales) / smallest if smallest else math.inf


def rows(program: Program) -> tuple[KernelRow, ...]:
    """The kernels of a program, in the order of execution."""
    made = []
    for step in program.steps:
        operator = step.operator
        if operator.kernel is None or operator.kernel_scale is None:
            continue
        magnitudes = _largest(operator)
        scales = np.atleast_1d(np.asarray(operator.kernel_scale, np.float64))
        made.append(
            KernelRow(
                step.layer,
                operator.kind,
                tuple(operator.kernel.shape),
                (operator.kernel_grid or grid.kernel()).bits,
                len(magnitudes),
                tuple(scales.reshape(-1).tolist()),
                tuple(np.flatnonzero(magnitudes == 0).tolist()),
            )
        )
    return tuple(made)


def _largest(operator: Operator) -> np.ndarray:
    """The largest magnitude of each output channel, int (C,)."""
    kernel = np.abs(np.asarray(operator.kernel, np.int32))
    axes = _CHANNELS.get(operator.kind, (-1,))
    kept = {axis % kernel.ndim for axis in axes}
    others = tuple(axis for axis in range(kernel.ndim) if axis not in kept)
    return kernel.max(axis=others, initial=0).reshape(-1)
