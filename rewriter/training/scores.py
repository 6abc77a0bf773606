"""Scores whose range holds a mask, so that rounding leaves nothing of them."""

from __future__ import annotations

from typing import Any

from rewriter import grid as grids
from rewriter.reading.graph import Graph, Ref
from rewriter.reading.operations import REARRANGES, Operation

# A step of what a softmax reads: exp(4) is 55.
_COARSE = 4.0


def coarse(graph: Graph) -> str | None:
    """What to say of softmaxes that read steps too coarse to tell anything apart; None if none do.

    Args:
      graph: of a rewritten model whose ranges are set.
    """
    for call in graph.calls:
        role = call.role
        if not isinstance(role, Operation) or role.name != "softmax":
            continue
        before = _quantizer(graph, role.operands[0])
        if not getattr(before, "range_is_set", False):
            continue
        low, high = (float(before.range_variables[key].numpy()) for key in ("min_var", "max_var"))
        step = (high - low) / grids.of(before.quantizer).steps
        if step > _COARSE:
            return (
                f"The softmax {call.path!r} reads values from {low:.3g} to {high:.3g}, in steps of "
                f"{step:.3g}: of what lies within a step, nothing is left. If that is a mask by a "
                "large negative number, add a constant, as tf.where with constant places and "
                "use_causal_mask=True do, or take about -30 for the number."
            )
    return None


def _quantizer(graph: Graph, ref: Ref) -> Any:
    """The layer that puts a tensor on its grid."""
    call = graph.calls[ref.call]
    if isinstance(call.role, Operation) and call.role.name in REARRANGES:
        return _quantizer(graph, call.role.operands[0])
    return getattr(call.layer, "output_quantizer", None) or call.layer
