"""The integers that a tensor may take: one value from the recipe to the file.

A quantizer makes the :class:`Grid` from its arguments and the host's row; training, lowering, the
twin, the writer and the reports read it, so that a width or an axis cannot mean two things. What a
file can store is in the tables at the end: to carry another width, add it there.

Formulas: the affine grid of Jacob et al. 2018 (arXiv:1712.05877), and LiteRT's 8-bit
specification (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.errors import RecipeError

BITS = 8  # where nobody says otherwise
# A channel of a kernel that stays below is one of zeros: its scale would have no inverse.
NEGLIGIBLE = 2.0**-110
# TensorFlow widens any range below 1e-6 (kNearZeroTolerance in its quantization_utils.h).
NARROWEST = np.float32(2e-6)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which integers stand for the values of a tensor, and along which axes scales differ.

    Attributes:
      bits: width of the integers, sign included.
      symmetric: whether the zero point is 0.
      narrow: whether the smallest integer is left out, so that the range is ``[-qmax, qmax]``.
      axes: the axes of the tensor that index its scales; empty: one scale for the whole tensor.
    """

    bits: int = BITS
    symmetric: bool = False
    narrow: bool = False
    axes: tuple[int, ...] = ()

    @property
    def qmin(self) -> int:
        """The smallest integer."""
        return -(2 ** (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    @property
    def steps(self) -> int:
        """How many steps lie between the smallest and the largest integer."""
        return self.qmax - self.qmin


def kernel(bits: int = BITS, axes: Sequence[int] = ()) -> Grid:
    """The grid of kernels: symmetric, and narrow so that a sign can be folded in."""
    return Grid(bits, symmetric=True, narrow=True, axes=tuple(axes))


def activation(bits: int = BITS) -> Grid:
    """The grid of activations: affine for 8 bits, symmetric and narrow for 16, as LiteRT has it."""
    wide = bits > BITS  # whole numbers, too
    return Grid(bits, symmetric=wide, narrow=wide)


def width(num_bits: Any, widest: int, owner: str, field: str = "num_bits") -> int:
    """``num_bits`` itself if it is a width from 2 to ``widest``.

    Raises:
      RecipeError: otherwise, naming ``owner`` and the ``field`` of it.
    """
    whole = isinstance(num_bits, int) and not isinstance(num_bits, bool)
    if not whole or not 2 <= num_bits <= widest:
        raise RecipeError(f"{owner}: {field} must be in 2..{widest}. Received: {num_bits!r}.")
    return num_bits


def of(quantizer: Any) -> Grid:
    """The grid that a quantizer puts its tensor on.

    Ours say it themselves. Of a quantizer of TFMOT it is read from the attributes that those have;
    what a user's quantizer does not say is taken to be as LiteRT's 8-bit specification has it.
    """
    own = getattr(quantizer, "grid", None)
    if isinstance(own, Grid):
        return own
    return Grid(
        int(getattr(quantizer, "num_bits", BITS)),
        symmetric=bool(getattr(quantizer, "symmetric", False)),
        narrow=bool(getattr(quantizer, "narrow_range", False)),
        axes=(-1,) if getattr(quantizer, "per_axis", False) else (),
    )


ACTIVATION = activation()
WIDE = 16  # bits of the activations that are not of 8

# What LiteRT prescribes. LOGISTIC and SOFTMAX: scale 1/256, zero point -128; TANH: scale 1/128,
# zero point 0.
UNIT_RANGE = (0.0, ACTIVATION.steps / (ACTIVATION.steps + 1))
TANH_RANGE = (-1.0, ACTIVATION.qmax / (ACTIVATION.qmax + 1))
# Saturation at both ends of this range is the clipping of a hard sigmoid.
HARD_RANGE = (0.0, 1.0)

# Inputs of these types are integers already, with steps of 1.
BYTES = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0)}

# Tensors of these types are integers themselves, such as the numbers of words or classes: a file
# stores them as they are, and nothing quantizes them. Their widths.
WHOLE = {"int32": 32, "int64": 64}

# The same on grids of 16 bits, which are symmetric. LOGISTIC, SOFTMAX, TANH: scale 1/32768. A hard
# sigmoid has its lower end from an activation. Bytes: the finest power of two that holds them.
_WIDE_UNIT = (1 / 32768 - 1, 1 - 1 / 32768)
_WIDE_BYTES = (-32767 / 128, 32767 / 128)
_WIDE_RANGES: dict[tuple[float, float], tuple[float, float]] = {
    UNIT_RANGE: _WIDE_UNIT,
    TANH_RANGE: _WIDE_UNIT,
    HARD_RANGE: (-1.0, 1.0),
    **dict.fromkeys(BYTES.values(), _WIDE_BYTES),
}


def prescribed(ends: tuple[float, float], bits: int) -> tuple[float, float]:
    """A range that LiteRT prescribes, one of those above, for activations of this width."""
    return _WIDE_RANGES[ends] if bits == WIDE else ends


# The activations that LiteRT fuses into an operator: the smallest and the largest output.
FUSED_ACTIVATIONS: dict[str, tuple[float, float]] = {
    "none": (-math.inf, math.inf),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "relu_n1_to_1": (-1.0, 1.0),
}

# Of what a file stores, the widths that it can have. A tensor takes the smallest that holds it.
KERNEL_WIDTHS = (4, 8)
ACTIVATION_WIDTHS = (8, 16)

# By operator, the widths in which LiteRT has a kernel that reads them.
KERNEL_STORAGE: dict[str, tuple[int, ...]] = {
    "CONV_2D": (4, 8),
    "DEPTHWISE_CONV_2D": (4, 8),
    "FULLY_CONNECTED": (4, 8),
    "TRANSPOSE_CONV": (8,),
}


def storage(kind: str, grid: Grid) -> int:
    """The width in which the kernel of an operator is stored.

    The smallest that holds the grid's integers: 2 to 4 bits lie in 4, 5 to 8 in 8.

    Args:
      kind: the operator's name in the LiteRT schema.
      grid: of its kernel.

    Raises:
      ValueError: the operator is not in the table, or takes no kernel of that width; the message
        says which it takes.
    """
    if kind not in KERNEL_STORAGE:
        raise ValueError(f"{kind} has no kernel. With one: {sorted(KERNEL_STORAGE)}.")
    width = _stored(grid)
    taken = KERNEL_STORAGE[kind]
    if width in taken:
        return width
    carried = [
        f"{below + 1} to {own} bits"
        for below, own in zip((1, *KERNEL_WIDTHS), KERNEL_WIDTHS, strict=False)
        if own in taken
    ]
    raise ValueError(
        f"{kind} takes kernels of {' or '.join(carried)}. Received: one of {grid.bits} bits."
    )


def is_coarse(kind: str, grid: Grid) -> bool:
    """Whether an operator keeps such a kernel in so few bits that the steps of its bias matter.

    A bias lies on steps of its input's scale times the kernel's, which are 18 times coarser where
    the largest integer is 7 than where it is 127.
    """
    width = _stored(grid)
    return width is not None and width < BITS and width in KERNEL_STORAGE.get(kind, ())


def _stored(grid: Grid) -> int | None:
    """The smallest width of a file that holds the grid's integers."""
    return next((width for width in KERNEL_WIDTHS if width >= grid.bits), None)
