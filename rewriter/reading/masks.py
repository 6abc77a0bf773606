"""Masks that are large negative numbers added to what a softmax reads, as of causal attention.

Softmax makes 0 of what is far below the rest, and how far does not matter. A range that held such a
number would leave nothing of the others: one that ends a little below them does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from rewriter.reading.graph import Graph, Ref
from rewriter.reading.operations import REARRANGES, Operation
from rewriter.reading.roles import Opaque, Ours

# So far below the largest number that is added, another is a mask: exp(-50) is 2e-22. Windows that
# are shifted have -100 (Liu et al. 2021, arXiv:2103.14030), others -1e4 to -1e9.
_FAR = 50.0


# From here on nothing else is left of a tensor in 8 bits.
_LARGE = -1e4


def floors(graph: Graph) -> Mapping[Ref, float]:
    """For each tensor with masked values that softmax alone reads: all below this are masked."""
    alone = _alone(graph)
    return {ref: _floor(offset) for ref, offset in _masked(graph) if alone(ref)}


def refuse(graph: Graph) -> None:
    """Take the integer form of a sum with large negative numbers that something else reads.

    A maximum, say: its range would have to hold them.
    """
    alone = _alone(graph)
    for ref, offset in list(_masked(graph)):
        call, least = graph.calls[ref.call], float(offset.min())
        if least <= _LARGE and not alone(ref):
            call.role = Opaque()
            call.closed = (
                f"it puts {least:.3g} into some places, and not only a softmax reads it: a range "
                "that holds that number leaves nothing of the others. Take one that is just below "
                "them"
            )


def _masked(graph: Graph) -> Iterator[tuple[Ref, np.ndarray]]:
    """The sums with constants some of which are a mask's, and those constants."""
    for index, call in enumerate(graph.calls):
        if isinstance(call.role, Operation) and call.role.name == "affine":
            offset = np.asarray(call.role.options["offset"])
            if _hidden(offset).any():
                yield Ref(index), offset


def _alone(graph: Graph) -> Callable[[Ref], bool]:
    """Whether nothing but softmax reads a tensor, in a rewritten model by its Quantize layer."""
    readers = graph.consumers()
    outputs = {*graph.output_refs()}

    def alone(ref: Ref) -> bool:
        after = readers.get(ref, ())
        return ref not in outputs and bool(after) and all(map(softens, after))

    def softens(index: int) -> bool:
        call = graph.calls[index]
        if not isinstance(call.role, Operation):
            ours = isinstance(call.role, Ours) and call.role.quantizes
            return ours and call.layer.floor is not None
        rearranges = call.role.name in REARRANGES
        return call.role.name == "softmax" or (rearranges and alone(Ref(index)))

    return alone


def _hidden(offset: np.ndarray) -> np.ndarray:
    return offset < offset.max() - _FAR


def _floor(offset: np.ndarray) -> float:
    """Half-way between the numbers of a mask and the others."""
    hidden = _hidden(offset)
    return float((offset[hidden].max() + offset[~hidden].min()) / 2)
