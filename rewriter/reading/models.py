"""Models as functional ones: a subclassed one by what its call does; and models inside models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import Flavour
from rewriter.reading import opening
from rewriter.reading.graph import Call, Part, Ref

# `training` of the calls of an opened layer (see `opening.Opened`); None for a functional model.
Flags: TypeAlias = "Mapping[int, bool | None] | None"


def functional(flavour: Flavour, model: Any) -> tuple[Any, Flags]:
    """``model`` itself, or the functional model that its ``call`` traces into; and its flags.

    Raises:
      UnsupportedModelError: it has not been built, or its call cannot be traced.
    """
    if flavour.is_functional(model):
        return model, None
    spec = flavour.input_spec_of(model)
    if spec is None:
        raise UnsupportedModelError(
            f"The model {model.name!r} has not been built: its input shape is unknown. "
            "Call it once on a batch of data, then rewrite it. If it has been called, Keras "
            "could not trace its call on symbolic inputs: write it with Keras layers and "
            "operations only, or build it with the functional API."
        )
    inputs = _map_spec(
        spec, lambda s: flavour.keras.Input(shape=s[0][1:], dtype=s[1]), is_leaf=_is_spec
    )
    symbols = tf.nest.flatten(inputs)
    places = tf.nest.pack_sequence_as(inputs, [opening.Place(i) for i in range(len(symbols))])
    try:
        found = opening.opened(flavour, model, symbols, (places,), {}, {}, inputs)
    except opening.ClosedError as error:
        raise UnsupportedModelError(
            f"The subclassed model {model.name!r} ({type(model).__qualname__}) cannot be traced: "
            f"{error}. Write its call with Keras layers and operations only (no Python control "
            "flow on tensor values), or build it with the functional API."
        ) from error
    return found.model, found.flags


def _is_spec(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)


def _map_spec(spec: Any, function: Callable, is_leaf: Callable[[Any], bool]) -> Any:
    if is_leaf(spec):
        return function(spec)
    if isinstance(spec, Mapping):
        return {key: _map_spec(value, function, is_leaf) for key, value in spec.items()}
    return [_map_spec(value, function, is_leaf) for value in spec]


def passed_on(
    flavour: Flavour, layer: Any, path: str, args: tuple, kwargs: Mapping[str, Any]
) -> list[Ref] | None:
    """What a layer passes on that a user's code always calls as in inference; None for others.

    A functional model of Keras 3 would call it with its own flag.

    Args:
      flavour, layer, path: the layer.
      args, kwargs: of its call, ``training`` among them.

    Raises:
      UnsupportedModelError: it is something else with the flag of the model.
    """
    flag = kwargs["training"]
    if not flavour.overrides_training or flavour.is_batch_norm(layer):
        return None
    if opening.passes(flavour, layer, flag):
        return Call.tensors((args, kwargs))[:1]
    drops = getattr(layer, "dropout", 0) or getattr(layer, "rate", 0)
    if flavour.class_name(layer) and not drops:
        return None
    raise UnsupportedModelError(
        f"The layer {path!r} ({type(layer).__qualname__}) is always called with "
        f"training={flag}. The rewritten model is a functional one, and Keras 3 would call it "
        "with the model's own flag. Call it without the argument."
    )


def refuse(flavour: Flavour, layer: Any, path: str) -> None:
    """What no rewriting can be made of: inputs without a shape, and Keras's own quantization.

    The integers that the latter puts in a kernel's place are no trained weights.

    Raises:
      UnsupportedModelError: the layer is a sparse or ragged input, or it, or one inside it, is
        quantized so.
    """
    if flavour.class_name(layer) == "InputLayer":
        kind = next((k for k in ("sparse", "ragged") if getattr(layer, k, False)), None)
        if kind is not None:
            raise UnsupportedModelError(
                f"The input {path!r} is {kind} ({kind}=True), and ranges and LiteRT files are of "
                f"dense tensors. Build the model with an input that is not {kind}, and give it "
                "dense arrays; a model after a layer that makes them dense can be rewritten."
            )
    for inner in (layer, *flavour.sublayers(layer)):
        mode = getattr(inner, "quantization_mode", None)
        if mode is not None:
            raise UnsupportedModelError(
                f"The layer {path!r} is quantized by Keras (quantize({mode!r})): its weights are "
                "rounded already, and train no more. Rewrite the model as it was before "
                "model.quantize."
            )


class Nests:
    """The models inside a model, while its calls are read.

    Attributes:
      handles: what stands for such in a model that has been rewritten.
    """

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self._found: dict[int, tuple[Any, list[int]]] = {}

    def add(self, model: Any, calls: Iterable[int]) -> None:
        """Say which calls are inside of one call of a model."""
        self._found.setdefault(id(model), (model, []))[1].extend(calls)

    def parts(self, calls: Sequence[Call]) -> tuple[Part, ...]:
        """Those of them that have weights."""
        found = [
            Part(model.name, inside, bool(model.trainable))
            for model, inside in self._found.values()
            if model.weights
        ]
        for layer in self.handles:
            names = set(layer.members)
            inside = [i for i, call in enumerate(calls) if call.layer.name in names]
            found.append(Part(layer.name, inside, layer.trainable))
        return tuple(found)


def shapes(path: str, outputs: Sequence[Any]) -> tuple[tuple[int | None, ...], ...]:
    """The static shapes of what a call returns.

    Args:
      path: the name of the layer.
      outputs: the symbolic tensors.

    Raises:
      UnsupportedModelError: not even the number of axes of one is known.
    """
    for tensor in outputs:
        if getattr(tensor.shape, "rank", 0) is None:
            raise UnsupportedModelError(
                f"The output of the layer {path!r} has a number of axes that depends on its "
                "values or sizes, as of a squeeze without an axis. Name the axes, or reshape to a "
                "shape of so many."
            )
    return tuple(tuple(tensor.shape) for tensor in outputs)
