"""Where the Quantize layers go: the places at which LiteRT has an integer tensor.

Works on the rewritten calls. Tensors that LiteRT wants on one scale (the inputs and output of a
concatenation, of a pooling, ...) form a group and share one Quantize layer, called wherever a
value of the group is made. There is none between an operator and the ReLU that fuses into it.
"""

from __future__ import annotations

import dataclasses

from rewriter.reading.graph import Ref
from rewriter.rewriting import behaviours


@dataclasses.dataclass(eq=False)
class Unit:
    """A call of the rewritten model.

    Attributes:
      call: index of the original call whose output this unit makes.
      behaviour: how the output is quantized.
      inputs: the tensors it reads.
      outputs: those of its outputs that are floating-point tensors.
      absorbs: whether a ReLU right after it becomes its fused activation.
      layer: identifies the layer.
      repeated: whether all calls of the layer have one range.
    """

    call: int
    behaviour: behaviours.Behaviour
    inputs: list[Ref]
    outputs: tuple[Ref, ...]
    absorbs: bool
    layer: int = 0
    repeated: bool = False


@dataclasses.dataclass(eq=False)
class Group:
    """Tensors that share one scale.

    Attributes:
      name: the first tensor's layer.
      fixed: the range that LiteRT prescribes, or None for an observed one.
      done: the layer that quantizes it already, if there is one.
    """

    name: str
    fixed: tuple[float, float] | None = None
    parent: Group | None = None
    done: int | None = None

    @property
    def joins(self) -> tuple[object, object]:
        """Groups where this is the same can be one."""
        return self.fixed, self.done

    def root(self) -> Group:
        """The group that this one has been united with."""
        node = self
        while node.parent is not None:
            if node.parent.parent is not None:
                node.parent = node.parent.parent  # shortens the way for the next who asks
            node = node.parent
        return node


@dataclasses.dataclass(eq=False)
class Placement:
    """Where to quantize.

    Attributes:
      after: for the output of a call: its group.
      edges: for ``(call, tensor)``: the group that the call's argument must be brought to.
    """

    after: dict[Ref, Group]
    edges: dict[tuple[int, Ref], Group]


def place(units: list[Unit], outputs: list[Ref], names: dict[int, str]) -> Placement:
    """Decide the places for ``units`` in topological order.

    Args:
      units: the calls of the rewritten model.
      outputs: the model's output tensors.
      names: layer name for a call index.

    Returns:
      The placement. Every group is a root.
    """
    units = [unit for unit in units if unit.behaviour.kind != behaviours.WITHIN]
    alias: dict[Ref, Ref] = {}  # through layers that do nothing in inference

    def resolve(ref: Ref) -> Ref:
        while ref in alias:
            ref = alias[ref]
        return ref

    for unit in units:
        if unit.behaviour.kind == behaviours.IDENTITY:
            alias[Ref(unit.call)] = unit.inputs[0]
    readers: dict[Ref, list[Unit]] = {}
    for unit in units:
        if unit.behaviour.kind != behaviours.IDENTITY:
            for ref in unit.inputs:
                readers.setdefault(resolve(ref), []).append(unit)
    model_outputs = {resolve(ref) for ref in outputs}

    groups: dict[Ref, Group] = {}
    after: dict[Ref, Group] = {}
    edges: dict[tuple[int, Ref], Group] = {}
    done: dict[int, Group] = {}
    common: dict[tuple[int, int], Group] = {}  # of all calls of a layer
    for unit in units:
        kind = unit.behaviour.kind
        if kind == behaviours.IDENTITY or not unit.outputs:
            continue
        if kind in (behaviours.QUANTIZES, behaviours.DONE):
            group = done.setdefault(unit.layer, Group(names[unit.call], done=unit.layer))
            groups.update((ref, group) for ref in unit.outputs)
            continue
        if _quantized_next(unit, readers, model_outputs):
            continue
        if kind in (behaviours.SAME, behaviours.ROUNDED):
            rounds = kind == behaviours.ROUNDED
            shared = _unite(unit, [resolve(r) for r in unit.inputs], groups, edges, names, rounds)
            if shared is None:
                continue
            for ref in unit.outputs:
                groups[ref] = shared
                if rounds:
                    after[ref] = shared
            continue
        for ref in unit.outputs:
            read_by = readers.get(ref, [])
            kinds = {reader.behaviour.kind for reader in read_by}
            inner = ref not in model_outputs and bool(read_by)
            if inner and unit.absorbs and len(read_by) == 1 and kinds == {behaviours.CLAMP}:
                continue
            if inner and kind == behaviours.FLOAT and kinds == {behaviours.FLOAT}:
                continue  # from one layer in float to the next
            group = Group(names[unit.call], unit.behaviour.fixed)
            if unit.repeated:
                group = common.setdefault((unit.layer, ref.index), group)
            groups[ref] = group
            # A prescribed range at the end of the model needs no emulation: the loss would only
            # see rounded probabilities.
            if not (kind == behaviours.FIXED and not read_by):
                after[ref] = group
    return Placement(
        {ref: group.root() for ref, group in after.items()},
        {key: group.root() for key, group in edges.items()},
    )


def _quantized_next(unit: Unit, readers: dict[Ref, list[Unit]], model_outputs: set[Ref]) -> bool:
    """Whether all that is read of a unit is read by Quantize layers that are there already."""
    kinds = [{reader.behaviour.kind for reader in readers.get(ref, ())} for ref in unit.outputs]
    inner = not model_outputs & set(unit.outputs)
    found = set().union(*kinds)
    return inner and found == {behaviours.QUANTIZES}


def _unite(
    unit: Unit,
    refs: list[Ref],
    groups: dict[Ref, Group],
    edges: dict[tuple[int, Ref], Group],
    names: dict[int, str],
    rounds: bool,
) -> Group | None:
    found = [groups[ref].root() for ref in refs if ref in groups]
    if not found:
        return None
    # What has been quantized by a layer that is there can be rounded again by none but that.
    alike = len({group.joins for group in found}) == 1
    if alike and not (rounds and found[0].done is not None):
        target = found[0]
    else:
        # A prescribed range beside another one: bring the odd ones to a scale of their own.
        free = [group for group in found if group.joins == (None, None)]
        target = free[0] if free else Group(names[unit.call])
    for original, ref in zip(unit.inputs, refs, strict=True):
        group = groups.get(ref)
        if group is None:
            continue
        root = group.root()
        if root.joins == target.joins:
            if root is not target:
                root.parent = target
        else:
            edges[unit.call, original] = target
    return target
