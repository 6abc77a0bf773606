"""Sizes of inputs that a model leaves open, fixed in a copy of it.

Keras works out the shape of every tensor when layers are called, so all are called again on inputs
of the new shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import flat_layers, flavour_of
from rewriter.reading import from_keras
from rewriter.reading.graph import Graph
from rewriter.rewriting import retracing

Shape = Sequence[int | None]


def settled(model: Any, input_shape: Any = None) -> Any:
    """``model``, or where it has other sizes than are wanted, a copy that has these.

    Args:
      model: a Keras model, rewritten or not.
      input_shape: without the batch: ``(224, 224, 3)``; for several inputs a list of such, or a
        dict by their names. None: those of the model's inputs, also for models inside of it that
        leave open what those have.

    Raises:
      UnsupportedModelError: if the sizes do not fit the model, or its graph cannot be read.
    """
    if input_shape is None and not _holds_models(model):
        return model
    graph = from_keras.read(model)
    if input_shape is None:
        return retracing.retrace(model, graph, shapes=_shapes(graph)) if graph.reopened else model
    wanted = _wanted(graph, input_shape)
    same = wanted == _shapes(graph) and not graph.reopened
    return model if same else retracing.retrace(model, graph, shapes=wanted)


def _holds_models(model: Any) -> bool:
    inner = [layer for layer in flat_layers(model) if layer is not model]
    return bool(inner) and any(map(flavour_of(model).is_model, inner))


def _shapes(graph: Graph) -> list[tuple[int | None, ...]]:
    return [graph.shape(ref)[1:] for ref in graph.input_refs()]


def _wanted(graph: Graph, given: Any) -> list[tuple[int | None, ...]]:
    """A shape for each flattened input, batch left out."""
    names = [graph.calls[ref.call].layer.name for ref in graph.input_refs()]
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise UnsupportedModelError(
                f"input_shape names the input {unknown[0]!r}, which {graph.name!r} does not have. "
                f"Its inputs are {names}."
            )
        listed = [given.get(name) for name in names]
    elif isinstance(given, Sequence) and given and isinstance(given[0], (tuple, list)):
        listed = list(given)
    else:
        listed = [given]
    if len(listed) != len(names):
        raise UnsupportedModelError(
            f"input_shape has the shapes of {len(listed)} inputs, {graph.name!r} has {len(names)}: "
            f"{names}. Received: {given!r}. Give a list of shapes, or a dict by name."
        )
    pairs = zip(names, listed, _shapes(graph), strict=True)
    return [_checked(graph, name, shape, own) for name, shape, own in pairs]


def _checked(graph: Graph, name: str, given: Any, own: Shape) -> tuple[int | None, ...]:
    if given is None:
        return tuple(own)
    sizes = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes)
    fits = len(sizes) == len(own) and all(
        size in (None, n) for size, n in zip(own, sizes, strict=False)
    )
    if not whole or not fits:
        raise UnsupportedModelError(
            f"The input {name!r} of {graph.name!r} has the shape {tuple(own)} without its batch; "
            f"input_shape fixes the sizes that are None. Received: {given!r}."
        )
    return sizes
