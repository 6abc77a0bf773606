"""Variables that several layers of the original hold, held in common by the new layers too."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter import layers
from rewriter.errors import RecipeError
from rewriter.keras_compat import Flavour, flat_layers, sharing
from rewriter.layers import preserved
from rewriter.reading.graph import UNQUANTIZED, Graph
from rewriter.rewriting.jobs import Job
from rewriter.rewriting.layer_factory import LayerFactory


def _holders(graph: Graph) -> dict[int, list[Any]]:
    """The layers that a graph calls, in the order of their first calls, by what they hold.

    The keys are the identities of TensorFlow's variables.
    """
    flavour, found = graph.flavour, collections.defaultdict(list)
    called = {id(call.layer): call.layer for call in graph.calls if flavour.is_layer(call.layer)}
    for layer in called.values():
        for key in {id(flavour.tf_variable(variable)): None for variable in layer.variables}:
            found[key].append(layer)
    return found


def shared(graph: Graph) -> dict[int, list[Any]]:
    """The layers of a graph that hold a variable which others hold too, by that variable."""
    return {key: held for key, held in _holders(graph).items() if len(held) > 1}


def apart(model: Any, graph: Graph) -> list[tuple[str, list[str]]]:
    """What layers have in common that the graph's have not: the variable, and their names.

    A layer that is taken apart may use a variable in another shape, which is a variable of a layer
    of its own then.

    Args:
      model: of which the graph was read.
      graph: its calls.
    """
    owners: dict[int, tuple[str, list[str]]] = {}
    for layer in flat_layers(model):
        for variable in sharing.attached(layer):
            key = id(graph.flavour.tf_variable(variable))
            owners.setdefault(key, (variable.name, []))[1].append(layer.name)
    several = {key: each for key, each in owners.items() if len(each[1]) > 1}
    shown = [(key, c.layer.name) for c in graph.calls for key in sharing.marked(c.layer)]
    held = _holders(graph) if several or shown else {}
    found = {k: each for k, each in several.items() if len(held.get(k, ())) < len(each[1])}
    for key, name in dict.fromkeys(shown):  # of a layer inside the one that is taken apart
        if key in held and key not in several:
            found.setdefault(key, (owners[key][0], [held[key][0].name]))[1].append(name)
    return list(found.values())


def by_functions(graph: Graph) -> list[tuple[str, str]]:
    """The calls that read a variable which their layers do not hold: their paths, and its name.

    An operation may be given one, and a function that a layer has may know one: that is the
    original's then, and no copy has another in its place.
    """
    flavour, found = graph.flavour, {}  # type: ignore[var-annotated]
    for call in graph.calls:
        held = {id(v) for v in getattr(call.layer, "variables", ())}
        given = [each for each in tf.nest.flatten((call.args, call.kwargs)) if each is not None]
        for each in (*given, *sharing.known_by_functions(call.layer)):
            owned = [each] if flavour.is_variable(each) else []
            if flavour.is_layer(each):
                owned = list(each.variables)
            for variable in owned:
                if id(variable) not in held:
                    found.setdefault((call.path, variable.name))
    return list(found)


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
            calls = sorted({first[id(layer)] for layer in each if id(layer) in first})
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
        for group in groups:
            _refuse_preserved([(self._made[calls[number]][0], place) for number, place in group])
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


def _refuse_preserved(held: Sequence[tuple[Any, str]]) -> None:
    """Raise RecipeError if one layer preserves what training moves by the other's gradients.

    ``held``: the layers that hold one variable, each with the place.
    """
    kept = [(layer, _preserved(layer, place)) for layer, place in held]
    for layer, kinds in kept:
        others = [other.name.removesuffix(UNQUANTIZED) for other, own in kept if own != kinds]
        if kinds and others:
            named = " and ".join(map(repr, others))
            raise RecipeError(
                f"preserve: the kernel of {layer.name!r} is held by {named} too, with which "
                f"training would not keep it {preserved.MEANINGS[kinds[0]]}. Leave preserve out, "
                "or give the layers variables of their own."
            )


def _preserved(layer: Any, place: str) -> tuple[str, ...]:
    names = [f"host.{name.lstrip('_')}" for name in getattr(layer, "kernel_names", ())]
    at = place.replace("._", ".")
    return layer.preserve[names.index(at)] if at in names else ()


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
