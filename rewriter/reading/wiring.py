"""Whether the layers of a functional model in a file can be connected as it says.

Keras connects a call when those that it reads have been, and tries again for ever where they never
are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewriter.keras_compat.pure_functions import words

Place = tuple[str, int]  # a layer, and which of its calls


# Stock layers of one output. Others may have several, as those that augment images do.
_SINGLE = words(
    """Activation Add Average AveragePooling1D AveragePooling2D BatchNormalization Concatenate
    Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Dense DepthwiseConv1D DepthwiseConv2D
    Dropout ELU Embedding Flatten GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalMaxPooling1D GlobalMaxPooling2D InputLayer LayerNormalization LeakyReLU MaxPooling1D
    MaxPooling2D Maximum Minimum Multiply PReLU Permute ReLU Reshape SeparableConv1D
    SeparableConv2D Softmax SpatialDropout1D SpatialDropout2D Subtract UpSampling1D
    UpSampling2D ZeroPadding1D ZeroPadding2D"""
)


def check(config: Any) -> None:
    """Raise ValueError if a call reads one, or an output, that there is not, or waits for itself.

    Args:
      config: of a model, as parsed JSON; models in it are looked at too.
    """
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            if isinstance(value.get("layers"), list):
                _check_layers(value["layers"], set(_strings(value.get("input_layers"))))
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _strings(value: Any) -> Iterator[str]:
    """Those in nested lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _check_layers(layers: list[Any], inputs: set[str]) -> None:
    calls: dict[Place, Any] = {}
    names: set[str] = set()
    entries = [entry.get("inbound_nodes") for entry in layers if isinstance(entry, Mapping)]
    named = {entry.get("name") for entry in layers if isinstance(entry, Mapping)}
    strings = {name for name in named if isinstance(name, str)}
    read_somewhere = {place for place, _ in _read(entries, strings)}
    singles: set[str] = set()
    for number, entry in enumerate(layers):
        nodes = entry.get("inbound_nodes") if isinstance(entry, Mapping) else None
        if not isinstance(nodes, list):
            if any(isinstance(each, list) for each in entries):
                raise ValueError(f"entry {number} of the layers has no list of calls")
            return  # a Sequential
        inner = entry.get("config")
        name = entry.get("name") or (inner.get("name") if isinstance(inner, Mapping) else None)
        if not isinstance(name, str):
            return
        names.add(name)
        kind = entry.get("class_name")
        if isinstance(kind, str) and kind in _SINGLE:
            singles.add(name)
        is_model = isinstance(inner, Mapping) and "layers" in inner
        counted = is_model and _counts_its_own(entry, nodes)
        first = int(counted or (is_model and (name, 0) not in read_somewhere))
        # A layer that is no input and is not called has no output that another could read.
        is_input = not nodes and (kind == "InputLayer" or name in inputs)
        if is_input or (is_model and not counted):
            calls[name, 0] = []
        for index, node in enumerate(nodes):
            calls[name, index + first] = node
    found = {
        place: set(_read(node, names, strict=isinstance(node, list)))
        for place, node in calls.items()
    }
    for place, reads in found.items():
        for (name, _), output in reads:
            if output and name in singles:
                raise ValueError(
                    f"the layer {place[0]!r} reads output {output} of {name!r}, which has one"
                )
    waits = {place: {other for other, _ in reads} for place, reads in found.items()}
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


def _counts_its_own(entry: Mapping[str, Any], nodes: list[Any]) -> bool:
    """Whether the first call of this model that others can read is 1, as tf_keras has it.

    A model that begins with an input has been called once when it was made. Keras 3, whose calls
    are mappings, does not count that; other classes may be the user's, with layers of their own.
    """
    inner = entry["config"]["layers"]
    begins = (
        isinstance(inner, list)
        and bool(inner)
        and isinstance(inner[0], Mapping)
        and inner[0].get("class_name") == "InputLayer"
    )
    in_lists = any(isinstance(node, list) for node in nodes)
    return begins and in_lists and entry.get("class_name") in ("Functional", "Model", "Sequential")


def _read(value: Any, names: set[str], strict: bool = False) -> Iterator[tuple[Place, int]]:
    """The calls whose outputs are named in the arguments of a call, and which output.

    Args:
      strict: whether every list of three or four things that begins with a layer's name has to be
        one, as tf_keras takes it.
    """
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list):
            named = len(value) >= 3 and isinstance(value[0], str) and value[0] in names
            numbers = named and isinstance(value[1], int) and isinstance(value[2], int)
            odd = named and not numbers
            if odd and (isinstance(value[2], int) or (strict and len(value) < 5)):
                raise ValueError(f"a layer reads a call of {value[0]!r} that has no number")
            if numbers:
                yield (value[0], int(value[1])), int(value[2])
                todo += value[3:]
            else:
                todo += value
