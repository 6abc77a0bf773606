"""A tensor while a model is lowered, and the clamps that wait for its scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from rewriter.grid import FUSED_ACTIVATIONS
from rewriter.program import Operator, Quantization

Shape = tuple[int | None, ...]
_FUSED = {bounds: name for name, bounds in FUSED_ACTIVATIONS.items()}


def batched(shape: Sequence[int | None]) -> Shape:
    """A static shape whose batch is unknown, whatever it was called with."""
    return (None, *shape[1:])


@dataclasses.dataclass(eq=False)
class Value:
    """A tensor while lowering.

    Attributes:
      shape: static shape, batch first.
      name: its name in the program; None while pending.
      inputs: for pending: the names of the operator's inputs.
      layer: for pending: the Keras layer, for messages.
      raw_shape: for pending: the shape of the operator's own output.
      finish: for pending: makes the operator, given the output's quantization and activation.
      after: for pending: what brings the operator's output into :attr:`shape`.
      grid: for pending: the operator's own output quantization, given the final one.
      fusable: for pending: whether LiteRT fuses activations into the operator.
      low, high: for pending: bounds of the clamps so far.
      off_zero: where it is read by a function with a pole at 0: the largest step that leaves zeros
        as they are, see ``OffZero``.
    """

    shape: Shape
    name: str | None = None
    inputs: tuple[str, ...] = ()
    layer: str = ""
    raw_shape: Shape = ()
    finish: Callable[[Quantization, str], Operator] | None = None
    after: Callable[[Value, Quantization], Value] | None = None
    grid: Callable[[Quantization], Quantization] | None = None
    fusable: bool = True
    low: float = -math.inf
    high: float = math.inf
    off_zero: float = math.inf

    def clamp(self, low: float, high: float) -> None:
        """Add a clamp to a pending operator."""
        self.low, self.high = max(self.low, low), min(self.high, high)

    def activation(self) -> str:
        """The fused activation that does the clamp, or as much of it as one can."""
        if not self.fusable:
            return "none"
        exact = _FUSED.get((self.low, self.high))
        if exact is not None:
            return exact
        return "relu" if self.low == 0 else "none"

    def left_over(self, activation: str, grid: Quantization) -> tuple[float | None, float | None]:
        """The bounds that neither the fused activation nor the end of the grid enforces."""
        low, high = FUSED_ACTIVATIONS[activation]
        smallest, largest = grid.range
        half = grid.scale / 2
        return (
            self.low if max(low, smallest) < self.low - half else None,
            self.high if min(high, largest) > self.high + half else None,
        )
