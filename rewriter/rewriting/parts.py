"""Handles for the models that were nested in the original, among whose layers they stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from rewriter import layers
from rewriter.reading.graph import Graph, Ref
from rewriter.reading.operations import is_floating


def unique(base: str, taken: Container[str]) -> str:
    """``base``, or where that is taken, with a number after it."""
    names = itertools.chain([base], (f"{base}_{i}" for i in itertools.count(1)))
    return next(name for name in names if name not in taken)


class Parts:
    """Puts a layer of the name of every nested model with weights on a tensor inside it.

    Args:
      graph: of the original.
      made: the calls of the original that have a tensor in the new model.
      free: of a name: one that no layer has.
    """

    def __init__(self, graph: Graph, made: Sequence[int], free: Callable[[str], str]):
        self._graph = graph
        self._at: dict[Ref, list[tuple[Any, list[int]]]] = {}
        outputs, read = set(graph.output_refs()), graph.consumers()
        cls = layers.of(graph.flavour).ModelPart
        for part in graph.parts:
            inside = set(part.calls)
            dtypes = {call: graph.calls[call].dtypes for call in made if call in inside}
            able = [call for call, own in dtypes.items() if len(own) == 1 and is_floating(own[0])]
            places = [ref for ref in map(Ref, able) if ref in read and ref not in outputs]
            if not places:
                continue  # a single layer: there is no tensor inside
            ref = places[-1]
            dtype = graph.calls[ref.call].dtypes[0]
            handle = cls(name=free(part.name), dtype=dtype, trainable=part.trainable)
            self._at.setdefault(ref, []).append((handle, part.calls))

    def mark(self, ref: Ref, tensors: dict[Ref, Any]) -> None:
        """Have a tensor of the new model be what the handles there pass on of it."""
        for handle, _ in self._at.get(ref, ()):
            tensors[ref] = handle(tensors[ref])

    def name_members(self, new_layers: Mapping[int, Any]) -> None:
        """Tell the handles their layers.

        Args:
          new_layers: by the identity of the original layer.
        """
        for handles in self._at.values():
            for handle, calls in handles:
                found = [new_layers.get(id(self._graph.calls[call].layer)) for call in calls]
                handle.members = tuple(dict.fromkeys(new.name for new in found if new is not None))
