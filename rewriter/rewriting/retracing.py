"""The calls of a model once more, with copies of its layers, or others in their places."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import stack
from rewriter.reading import from_keras
from rewriter.reading.graph import Call, Graph, Ref, map_refs
from rewriter.reading.roles import Input
from rewriter.rewriting import channels, left_behind, parts, ties
from rewriter.rewriting.layer_factory import LayerFactory
from rewriter.rewriting.recipe import Recipe

Make = Callable[[Call, str], Any]


def channels_last(model: Any) -> tuple[Any, Graph]:
    """A model and its calls; one that has the channels last inside where it has them first.

    Recurrent layers are the calls of their steps.

    Raises:
      UnsupportedModelError: its graph cannot be read, or a layer is called in both layouts.
    """
    graph = from_keras.read(model, steps=True)
    if not channels.are_first(graph):
        return model, graph
    graph = from_keras.read(model)
    model = retrace(model, graph, layout=channels.Layout(graph))
    return model, from_keras.read(model, steps=True)


def retrace(
    model: Any,
    graph: Graph,
    *,
    shapes: Sequence[Sequence[int | None]] | None = None,
    make: Make | None = None,
    name: str | None = None,
    layout: channels.Layout | None = None,
) -> Any:
    """A functional model of the same calls; ``model`` and its layers stay as they are.

    Args:
      model: a Keras model.
      graph: its calls.
      shapes: of its flattened inputs, without the batch; None: as they are.
      make: given a call and a name, what is called in the place of its layer; None for a copy.
      name: of the new model; None: the old one's.
      layout: has the channels last inside; None: as they are.

    Raises:
      UnsupportedModelError: a user's code calls a layer with a flag that the copy would not keep.
    """
    flavour = graph.flavour
    factory = LayerFactory(flavour, Recipe())
    factory.shared = ties.shared(graph)
    refs = graph.input_refs()
    given = shapes or [graph.shape(ref)[1:] for ref in refs]
    wanted = dict(zip(refs, given, strict=True))
    tensors: dict[Ref, Any] = {}
    layers: dict[int, Any] = {}
    losses: list[tuple[Any, Any]] = []
    names = {graph.calls[ref.call].layer.name for ref in refs}
    kept = {call.layer.name for call in graph.calls}
    nested = graph if make is None else dataclasses.replace(graph, parts=())
    handles = parts.Parts(
        nested, range(len(graph.calls)), lambda name: parts.unique(name, kept | names)
    )
    for index, call in enumerate(graph.calls):
        ref = Ref(index)
        if isinstance(call.role, Input):
            tensors[ref] = flavour.keras.Input(
                shape=tuple(wanted[ref]),
                batch_size=call.shapes[0][0],
                dtype=call.dtypes[0],
                name=call.layer.name,
            )
            continue
        if call.always is not None and flavour.overrides_training:
            raise UnsupportedModelError(
                f"The layer {call.path!r} is always called with training={call.always} by the code "
                "around it, which a copy with other sizes would not keep. Build the model with its "
                "sizes, or call the layer without the argument."
            )
        changes = None if layout is None else layout.changes(call)
        read = functools.partial(_given, layout, tensors, changes is not None)
        args, kwargs = map_refs((call.args, dict(call.kwargs)), read)
        if flavour.is_added_loss(call.layer):
            losses.append((call.layer, args[0]))
            tensors[ref] = args[0]
            continue
        layer = layers.get(id(call.layer))
        if layer is None:
            own = call.layer.name if call.layer.name not in names else call.path.replace("/", "_")
            names.add(own)
            made = None if make is None else make(call, own)
            layer = layers[id(call.layer)] = made or factory.clone(call.layer, own, changes)
        outputs = tf.nest.flatten(layer(*args, **kwargs))
        tensors.update((Ref(index, i), value) for i, value in enumerate(outputs))
        if layout is not None and changes is not None:
            layout.made(ref, outputs[0])
        handles.mark(ref, tensors)
        factory.finish_copies()
    handles.name_members(layers)
    ties.tie(flavour, list(layers.values()), factory.made_of)
    with stack.room_for(2 * len(graph.calls)):
        built = flavour.keras.Model(
            inputs=map_refs(graph.inputs, tensors.__getitem__),
            outputs=map_refs(graph.outputs, functools.partial(_given, layout, tensors, False)),
            name=name or graph.name,
        )
        for layer, value in losses:  # or metrics
            left_behind.add_again(built, layer, value)
    if not model.trainable:
        built.trainable = False
    return built


def _given(layout: channels.Layout | None, tensors: dict[Ref, Any], last: bool, ref: Ref) -> Any:
    tensor = tensors[ref]
    return tensor if layout is None else layout.given(ref, tensor, last)
