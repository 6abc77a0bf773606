"""The calls of the new model: each stands for one of the original's, or for two."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rewriter.reading.graph import Graph
from rewriter.reading.roles import Role
from rewriter.rewriting import rules


@dataclasses.dataclass(eq=False)
class Job:
    """One call of the new model: which original layers it stands for."""

    call: int
    role: Role
    layer: Any
    batch_norm: Any
    args: tuple
    kwargs: dict[str, Any]
    path: str


def jobs(graph: Graph, decisions: Sequence[rules.Decision]) -> list[Job]:
    """The calls of the new model, in the order of the original's.

    Args:
      graph: of the original.
      decisions: about its normalizations; those that are fused are called with their hosts.
    """
    fused = {}
    hosts = set()
    for decision in decisions:
        for index, host_index in zip(decision.calls, decision.hosts, strict=False):
            fused[index] = host_index
            hosts.add(host_index)
    made = []
    for index, call in enumerate(graph.calls):
        if index in hosts:
            continue
        if index in fused:
            host = graph.calls[fused[index]]
            kwargs = {
                **dict(zip(("training", "mask"), call.args[1:], strict=False)),
                # Without `inputs`: the normalization's own do not exist any more.
                **{key: v for key, v in call.kwargs.items() if key in ("training", "mask")},
            }
            job = Job(index, host.role, host.layer, call.layer, host.args, kwargs, host.path)
            job.args = (host.refs[0],)  # it may have been called with `inputs=`
        else:
            job = Job(index, call.role, call.layer, None, call.args, call.kwargs, call.path)
        made.append(job)
    return made
