"""The version of each operator kind in its place.

They are those that TensorFlow's own writer gives
(``compiler/mlir/lite/tools/versioning/op_version.cc``): a version that is too high is refused by
older runtimes for no reason, one that is too low is run wrongly by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from rewriter.grid import BITS
from rewriter.program import Operator


@dataclasses.dataclass(frozen=True)
class Use:
    """An operator in its place, as far as its version depends on that.

    Attributes:
      operator: what is computed.
      inputs: shapes of the activations that it reads, batch first.
    """

    operator: Operator
    inputs: tuple[tuple[int, ...], ...]

    @property
    def bits(self) -> int:
        """The width of the widest activation that it reads or writes."""
        grids = (*self.operator.inputs, self.operator.output)
        return max((grid.bits for grid in grids if grid is not None), default=8)

    @property
    def rank(self) -> int:
        """The largest rank of an input."""
        return max(len(shape) for shape in self.inputs)

    @property
    def broadcasts(self) -> bool:
        """Whether the two operands have different shapes."""
        shapes = [*self.inputs]
        if "constant" in self.operator.attributes:
            shapes.append(np.shape(self.operator.attributes["constant"]) or (1,))
        return len({*shapes}) > 1


def by_bits(narrow: int, wide: int) -> Callable[[Use], int]:
    """Versions for activations of 8 and of 16 bits."""
    return lambda use: wide if use.bits > 8 else narrow


def _small(use: Use) -> bool:
    """Whether the kernel is stored in less than a byte."""
    bits = use.operator.kernel_storage_bits
    return bits is not None and bits < BITS


def conv(use: Use) -> int:
    kernel = np.asarray(use.operator.kernel)
    if _small(use):
        return 7
    if kernel.shape[2] != use.inputs[0][-1]:
        return 6  # grouped
    return by_bits(3, 4)(use)


def depthwise(use: Use) -> int:
    return 7 if _small(use) else by_bits(3, 5)(use)


def fully_connected(use: Use) -> int:
    if _small(use):
        return 10
    kept = use.operator.attributes.get("keep_num_dims", False)
    return by_bits(5 if kept else 4, 7)(use)


def transpose_conv(use: Use) -> int:
    return 3 if use.operator.activation == "none" else 4


def mul(use: Use) -> int:
    if use.bits > 8:
        return 4
    scales = [grid.scale for grid in use.operator.inputs if grid is not None]
    constant = use.operator.attributes.get("constant_quantization")
    scales += [constant["scale"]] if constant else []
    output = use.operator.output
    ratio = np.prod(np.asarray(scales, np.float32)) / np.float32(output.scale if output else 1)
    return 3 if ratio >= 1 else 2


def extreme(use: Use) -> int:
    if use.bits > 8:
        return 4
    return 3 if use.broadcasts and use.rank > 4 else 2


def sub(use: Use) -> int:
    if use.bits > 8:
        return 5
    return 3 if use.broadcasts and use.rank > 4 else 2


def transpose(use: Use) -> int:
    by_rank = {5: 4, 6: 6}.get(use.rank, 8 if use.rank > 6 else 0)
    return max(by_rank, by_bits(2, 5)(use))


def pad(use: Use) -> int:
    return 4 if use.rank > 4 else by_bits(2, 3)(use)


def slice(use: Use) -> int:
    return 4 if use.rank > 4 else 2


def resize(use: Use) -> int:
    if use.bits > 8:
        return 4
    half = use.operator.attributes.get("half_pixel_centers", False)
    corners = use.operator.attributes.get("align_corners", False)
    nearest = use.operator.kind == "RESIZE_NEAREST_NEIGHBOR"
    return 3 if half or (corners and nearest) else 2
