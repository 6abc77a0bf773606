"""Variables that several layers of the original hold, and that the new layers hold in common too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter import layers
from rewriter.keras_compat import Flavour, sharing
from rewriter.reading.graph import Graph
from rewriter.rewriting.jobs import Job
from rewriter.rewriting.layer_factory import LayerFactory


@dataclasses.dataclass(eq=False)
class Shared:
    """A variable that several layers hold.

    Attributes:
      name: as Keras says it.
      layers: the layers that the graph calls, in the order of their first calls.
      reason: why the new layers do not hold one; "" if they do.
    """

    name: str
    layers: list[Any]
    reason: str = ""


def shared(graph: Graph) -> dict[int, Shared]:
    """The variables that several layers of a graph hold, by TensorFlow's variable."""
    flavour, found = graph.flavour, {}  # type: ignore[var-annotated]
    called = {id(call.layer): call.layer for call in graph.calls if flavour.is_layer(call.layer)}
    for layer in called.values():
        for variable in {id(flavour.tf_variable(v)): v for v in layer.variables}.values():
            key = id(flavour.tf_variable(variable))
            found.setdefault(key, Shared(variable.name, [])).layers.append(layer)
    return {key: each for key, each in found.items() if len(each.layers) > 1}


class Ties:
    """Puts a layer after the last of the new layers that are to hold variables in common.

    Args:
      graph: of the original.
      jobs: the calls of the new model.
      factory: makes its layers, and says which variable of theirs is whose.
      free: of a name: one that no layer has.
    """

    def __init__(
        self,
        graph: Graph,
        jobs: Sequence[Job],
        factory: LayerFactory,
        free: Callable[[str], str],
    ):
        self._flavour, self._factory, self._free = graph.flavour, factory, free
        found = shared(graph)
        factory.shared = found
        first: dict[int, int] = {}  # by the identity of an original: the call that makes its copy
        firsts: dict[int, int] = {}  # the same, by the identity that the new layer is known by
        for job in jobs:
            made = firsts.setdefault(id(job.layer), job.call)
            for original in (job.layer, job.batch_norm):
                first.setdefault(id(original), made)
        self._at: dict[int, dict[int, list[int]]] = {}  # last call -> variable -> all calls
        for key, each in found.items():
            calls = sorted({first[id(layer)] for layer in each.layers if id(layer) in first})
            if calls:
                self._at.setdefault(calls[-1], {})[key] = calls
        self._needed = {call for at in self._at.values() for calls in at.values() for call in calls}
        self._made: dict[int, tuple[Any, Any]] = {}  # by call: the new layer, a tensor it makes

    def stand_at(self, job: Job) -> bool:
        """Whether something is put after this call."""
        return job.call in self._at

    def through(self, job: Job, layer: Any, made: list[Any], name: str | None) -> list[Any]:
        """What a new layer makes, with the variables in common that it is the last to hold.

        Args:
          job: the call.
          layer: the new layer.
          made: its tensors.
          name: of the layer that has them in common; None for one of its own.
        """
        if job.call not in self._needed:
            return made
        self._factory.finish_copies()
        self._made[job.call] = layer, made[0]
        at = self._at.get(job.call)
        if at is None:
            return made
        calls = list(dict.fromkeys([job.call, *(call for all_ in at.values() for call in all_)]))
        groups = [self._places(key, all_, calls) for key, all_ in at.items()]
        tie = layers.of(self._flavour).Tie(
            [group for group in groups if len(group) > 1],
            name=name or self._free(f"{layer.name}_tie"),
            dtype=tf.as_dtype(made[0].dtype).name,
        )
        return [tie([self._made[call][1] for call in calls]), *made[1:]]

    def _places(
        self, key: int, calls: Sequence[int], order: Sequence[int]
    ) -> list[tuple[int, str]]:
        """Where the new layers hold a variable, the first of them first."""
        wanted = {id(variable) for variable in self._factory.made_of.get(key, ())}
        found = []
        for call in calls:
            held = sharing.places(self._flavour, self._made[call][0])
            number = order.index(call)
            found += [(number, place) for place, each in held.items() if id(each) in wanted]
        return found


def tie(flavour: Flavour, new_layers: Sequence[Any], made_of: Mapping[int, Sequence[Any]]) -> None:
    """Have new layers hold what their originals did, without a layer that says so.

    Args:
      flavour: the Keras.
      new_layers: all that may hold one.
      made_of: by each variable of the original: those that were made of it, the first one first.
    """
    for first, *others in made_of.values():
        for other in others:
            for layer in new_layers:
                if any(each is other for each in layer.variables):
                    sharing.put(layer, other, first)
