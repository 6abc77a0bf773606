"""The plan: what :func:`rewriter.rewrite` would do to a model, as a value that people can read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from rewriter.reading import reasons
from rewriter.reading.graph import Graph
from rewriter.rewriting import behaviours, left_behind, retracing, rules, sizes
from rewriter.rewriting.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class PlanEntry:
    """What happens to one BatchNormalization.

    Attributes:
      name: the layer's name, with the names of nested models before it.
      action: ``"fused"``, ``"standalone"`` or ``"refused"``.
      host: for fused: the name of the layer that it is fused into.
      reason: why.
    """

    name: str
    action: str
    host: str | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan for one model.

    Attributes:
      model: the model's name.
      keras: ``"tf_keras"`` or ``"keras"``.
      entries: one for every BatchNormalization.
      float_layers: layers that have no integer form here; they train as they are, and
        ``export_tflite`` refuses them unless float is allowed.
      float_reasons: by name, why each of them has none, and what to do.
      notes: what the model has and the rewritten one will not, with what to do; ``rewrite`` warns
        of it.
    """

    model: str
    keras: str
    entries: tuple[PlanEntry, ...]
    float_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    float_reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def count(self, action: str) -> int:
        """How many entries have this action."""
        return sum(entry.action == action for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        head = (
            f"{self.model} ({self.keras}): {len(self.entries)} BatchNormalization: "
            f"{self.count(rules.FUSED)} fused, {self.count(rules.STANDALONE)} standalone, "
            f"{self.count(rules.REFUSED)} refused"
        )
        rows = [("BatchNormalization", "action", "host", "reason")]
        rows += [(e.name, e.action, e.host or "-", e.reason) for e in self.entries]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [head] + [
            "  " + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        if self.float_layers:
            lines.append(f"  stay in float: {', '.join(self.float_layers)}")
            lines += [f"    {name}: {reason}" for name, reason in self.float_reasons.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def plan(model: Any, recipe: Recipe | None = None, *, input_shape: Any = None) -> Plan:
    """What :func:`rewriter.rewrite` would do to every BatchNormalization; changes nothing.

    Args:
      model: a tf_keras or Keras 3 model.
      recipe, input_shape: as for ``rewrite``.

    Raises:
      UnsupportedModelError: if the model's graph cannot be read, or ``input_shape`` does not fit.
    """
    original, model = model, sizes.settled(model, input_shape)
    read, graph = retracing.channels_last(model)
    made = make_plan(graph, rules.decide(graph))
    return dataclasses.replace(made, notes=left_behind.notes(original, graph, read))


def make_plan(graph: Graph, decisions: list[rules.Decision]) -> Plan:
    """The plan that states ``decisions``."""
    entries = tuple(
        PlanEntry(d.path, d.action, graph.calls[d.hosts[0]].path if d.hosts else None, d.reason)
        for d in decisions
    )
    unknown: dict[str, str] = {}
    masks = reasons.read_masks(graph)
    for index, call in enumerate(graph.calls):
        float_ = behaviours.stays_float(call) or index in masks
        if float_ and not graph.flavour.is_added_loss(call.layer):
            unknown[call.path] = call.closed
    told = {path: reason for path, reason in unknown.items() if reason}
    names = graph.name, graph.flavour.name
    return Plan(*names, entries, tuple(unknown), float_reasons=told)
