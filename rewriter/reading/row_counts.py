"""How many rows of a tensor one sample has: where a reshaping may change it.

``reshape(x, (-1, 7, 7, c))`` of images of 56 x 56 makes 64 windows of each, as rows beside those of
the other images; ``reshape(x, (-1, 56, 56, c))`` puts them together again. The second is right
where a sample has 64 rows, or a multiple: otherwise it would mix samples.
"""

from __future__ import annotations

import math
from fractions import Fraction

from rewriter.reading.graph import Call, Graph, Ref
from rewriter.reading.operations import Operation
from rewriter.reading.roles import Opaque

_MIXES = (
    "it reshapes rows of several samples into one, and a file treats each sample by itself. Keep "
    "the samples on the first axis"
)


def settle(graph: Graph) -> None:
    """Take the role of every reshaping that would mix samples."""
    counts: dict[Ref, Fraction] = {}
    for index, call in enumerate(graph.calls):
        refs = call.role.operands if isinstance(call.role, Operation) else call.refs
        count = counts[refs[0]] if refs else Fraction(1)
        if isinstance(call.role, Operation) and call.role.name == "reshape":
            count *= _more(call)
            if count.denominator != 1:
                call.role, call.closed = Opaque(), _MIXES
        if isinstance(call.role, Operation) and call.role.name == "repeat_samples":
            count *= call.role.options["count"]
        counts.update((Ref(index, i), count) for i in range(len(call.shapes)))


def _more(call: Call) -> Fraction:
    """The rows of the output that are made of one row of the input."""
    before, after = call.input_shapes[0][1:], call.shapes[0][1:]
    if None in (*before, *after):
        return Fraction(1)
    sizes = [math.prod(size or 0 for size in shape) for shape in (before, after)]
    return Fraction(*sizes) if all(sizes) else Fraction(1)
