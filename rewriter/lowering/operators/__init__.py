"""What the operations that are not linear layers become on the device.

One row for every operation of :mod:`rewriter.reading.operations`: a function of the lowerer, the
call, the operation and its operands that returns a value, or one for each output.
"""

from __future__ import annotations

from rewriter.lowering.operators import (
    activations,
    arithmetic,
    contractions,
    functions,
    indexes,
    moves,
    normalizations,
    pooling,
    roots,
)
from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

ROWS: dict[str, Row] = {
    **activations.ROWS,
    **arithmetic.ROWS,
    **contractions.ROWS,
    **functions.ROWS,
    **indexes.ROWS,
    **moves.ROWS,
    **normalizations.ROWS,
    **pooling.ROWS,
    **roots.ROWS,
}


def activate(low: ProgramBuilder, call: Call, operation: Operation, x: Value) -> Value:
    """The activation that a host applies."""
    made: Value = ROWS[operation.name](low, call, operation, [x])
    return made
