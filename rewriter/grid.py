"""The integers that a tensor may take: one value from the recipe to the file.

A quantizer makes the :class:`Grid` from its arguments and the host's row; training, lowering, the
twin, the writer and the reports read it, so that a width or an axis cannot mean two things.

Formulas: the affine grid of Jacob et al. 2018 (arXiv:1712.05877), and LiteRT's 8-bit
specification (https://ai.google.dev/edge/litert/models/quantization_spec).
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Grid:
    """Which integers stand for the values of a tensor, and along which axes scales differ.

    Attributes:
      bits: width of the integers, sign included.
      symmetric: whether the zero point is 0.
      narrow: whether the smallest integer is left out, so that the range is ``[-qmax, qmax]``.
      axes: the axes of the tensor that index its scales; empty: one scale for the whole tensor.
    """

    bits: int = 8
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


def kernel(bits: int = 8, axes: tuple[int, ...] = ()) -> Grid:
    """The grid of kernels: symmetric, and narrow so that a sign can be folded in."""
    return Grid(bits, symmetric=True, narrow=True, axes=tuple(axes))


def activation(bits: int = 8) -> Grid:
    """The grid of activations: affine for 8 bits, symmetric and narrow for 16, as LiteRT has it."""
    wide = bits > 8
    return Grid(bits, symmetric=wide, narrow=wide)
