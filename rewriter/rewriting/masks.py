"""Masks that are large negative numbers added to what a softmax reads, as of causal attention.

Softmax makes 0 of what is far below the rest, and how far does not matter. A range that held such a
number would leave nothing of the others: one that ends a little below them does the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rewriter.reading.graph import Graph, Ref
from rewriter.reading.operations import REARRANGES, Operation

# So far below the largest number that is added, another is a mask: exp(-50) is 2e-22. Windows that
# are shifted have -100 (Liu et al. 2021, arXiv:2103.14030), others -1e4 to -1e9.
_FAR = 50.0


def floors(graph: Graph) -> Mapping[Ref, float]:
    """For each tensor with masked values that softmax alone reads: all below this are masked."""
    readers = graph.consumers()
    outputs = {*graph.output_refs()}

    def alone(ref: Ref) -> bool:
        after = readers.get(ref, ())
        return ref not in outputs and bool(after) and all(map(softens, after))

    def softens(index: int) -> bool:
        role = graph.calls[index].role
        name = role.name if isinstance(role, Operation) else ""
        return name == "softmax" or (name in REARRANGES and alone(Ref(index)))

    found = {}
    for index, call in enumerate(graph.calls):
        ref, role = Ref(index), call.role
        if not isinstance(role, Operation) or role.name != "affine":
            continue
        floor = _floor(np.asarray(role.options["offset"]))
        if floor is not None and alone(ref):
            found[ref] = floor
    return found


def _floor(offset: np.ndarray) -> float | None:
    """Half-way between the numbers of a mask and the others; None without a mask."""
    masked = offset < offset.max() - _FAR
    if not masked.any() or not np.isfinite(offset).all():
        return None
    return float((offset[masked].max() + offset[~masked].min()) / 2)
