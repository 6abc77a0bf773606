"""The network as a graph: what is drawn of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from rewriter.program import Program
from rewriter.report.layout import Layout, layered

# Signal to noise in dB: below the first bound, below the second, and so on; the last is for equal
# tensors. Red to blue (ColorBrewer RdYlBu), which the colour-blind can tell apart too.
COLOURS = (
    (10.0, "#d73027", "#fff"),
    (20.0, "#fc8d59", "#000"),
    (30.0, "#fee090", "#000"),
    (40.0, "#e0f3f8", "#000"),
    (math.inf, "#91bfdb", "#000"),
)
EQUAL, UNKNOWN = ("#4575b4", "#fff"), ("#e8e8e8", "#000")
MOST = 1500  # nodes: more are not drawn


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator of the program, or an input.

    Attributes:
      name, layer, kind: its tensor, the Keras layer, the LiteRT operator (``"INPUT"``).
      snr_db: as in :class:`rewriter.report.tensors.TensorRow`.
      reads: the names of the nodes that it reads.
    """

    name: str
    layer: str
    kind: str
    snr_db: float | None
    reads: tuple[str, ...]


def nodes(program: Program, snr: Mapping[str, float]) -> tuple[Node, ...]:
    """Inputs and operators in the order of execution."""
    made = [Node(name, name, "INPUT", snr.get(name), ()) for name in program.inputs]
    made += [
        Node(step.output, step.layer, step.operator.kind, snr.get(step.output), step.inputs)
        for step in program.steps
    ]
    return tuple(made)


def laid_out(found: tuple[Node, ...]) -> Layout:
    """Where the nodes stand."""
    known = {node.name for node in found}
    return layered({n.name: [r for r in n.reads if r in known] for n in found})


def colour(snr_db: float | None) -> tuple[str, str]:
    """The colours of a node and of its text."""
    if snr_db is None:
        return UNKNOWN
    if math.isinf(snr_db):
        return EQUAL
    return next((own, text) for bound, own, text in COLOURS if snr_db < bound)
