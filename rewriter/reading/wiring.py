"""Whether the layers of a functional model in a file can be connected as it says.

Keras connects a call when those that it reads have been, and tries again for ever where they never
are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Place = tuple[str, int]  # a layer, and which of its calls


def check(config: Any) -> None:
    """Raise ValueError if a call reads one that there is not, or that waits for itself.

    Args:
      config: of a model, as parsed JSON; models in it are looked at too.
    """
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            if isinstance(value.get("layers"), list):
                _check_layers(value["layers"])
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _check_layers(layers: list[Any]) -> None:
    calls: dict[Place, Any] = {}
    entries = [entry.get("inbound_nodes") for entry in layers if isinstance(entry, Mapping)]
    named = {entry.get("name") for entry in layers if isinstance(entry, Mapping)}
    read_somewhere = set(_read(entries, {name for name in named if isinstance(name, str)}))
    for entry in layers:
        nodes = entry.get("inbound_nodes") if isinstance(entry, Mapping) else None
        if not isinstance(nodes, list):
            return  # a Sequential
        inner = entry.get("config")
        name = entry.get("name") or (inner.get("name") if isinstance(inner, Mapping) else None)
        if not isinstance(name, str):
            return
        # A model has been called once by itself; tf_keras counts that, where a file has several.
        is_model = isinstance(inner, Mapping) and "layers" in inner
        first = 1 if is_model and (name, 0) not in read_somewhere else 0
        if not nodes or is_model:
            calls[name, 0] = []
        for index, node in enumerate(nodes):
            calls[name, index + first] = node
    names = {name for name, _ in calls}
    waits = {place: set(_read(node, names)) for place, node in calls.items()}
    for place, read in waits.items():
        missing = [other for other in read if other not in calls]
        if missing:
            raise ValueError(f"the layer {place[0]!r} reads call {missing[0][1]} of "
                             f"{missing[0][0]!r}, which there is not")  # fmt: skip
    readers: dict[Place, list[Place]] = {place: [] for place in calls}
    for place, read in waits.items():
        for other in read:
            readers[other].append(place)
    ready = [place for place, read in waits.items() if not read]
    done = 0
    while ready:
        place = ready.pop()
        done += 1
        for reader in readers[place]:
            waits[reader].discard(place)
            if not waits[reader]:
                ready.append(reader)
    if done < len(calls):
        stuck = next(place[0] for place, read in waits.items() if read)
        raise ValueError(f"the layer {stuck!r} waits for its own output")


def _read(value: Any, names: set[str]) -> Iterator[Place]:
    """The calls whose outputs are named in the arguments of a call."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list):
            named = len(value) >= 3 and isinstance(value[0], str) and value[0] in names
            if named and type(value[1]) is int and type(value[2]) is int and value[1] >= 0:
                yield value[0], value[1]
                todo += value[3:]
            else:
                todo += value
