"""What the operations that are not linear layers become on the device.

One row for every operation of :mod:`rewriter.reading.operations`: a function of the lowerer, the
call, the operation and its operands that returns a value, or one for each output.
"""

from __future__ import annotations

from rewriter.lowering.operators import (
    activations,
    arithmetic,
    contractions,
    indexes,
    moves,
    normalizations,
    pooling,
    roots,
)
from rewriter.lowering.operators.activations import activate
from rewriter.lowering.operators.rows import Row

ROWS: dict[str, Row] = {
    **activations.ROWS,
    **arithmetic.ROWS,
    **contractions.ROWS,
    **indexes.ROWS,
    **moves.ROWS,
    **normalizations.ROWS,
    **pooling.ROWS,
    **roots.ROWS,
}

__all__ = ["ROWS", "activate"]
