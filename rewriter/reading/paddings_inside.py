"""Layers of users' that only pad, with what a max pooling ignores: read as the operation in them.

Such a layer has -inf in its output, which has no range; as an operation it keeps its input's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.reading import stock_functions
from rewriter.reading.graph import Call


def padding(
    flavour: Flavour,
    layer: Any,
    args: tuple,
    kwargs: dict[str, Any],
    outputs: Sequence[Any],
    calls: Sequence[Call],
) -> tuple[Any, tuple, dict[str, Any]] | None:
    """The operation that stands for a layer, and its arguments; or None.

    Args:
      flavour: of the layer.
      layer: a ``Lambda`` or a layer of a class that is not stock.
      args, kwargs: of its call, with a ``Ref`` in the place of every tensor.
      outputs: its symbolic outputs.
      calls: those before it.
    """
    refs = Call.tensors((args, kwargs))
    if len(refs) != 1 or len(args) != 1 or len(outputs) != 1:
        return None
    before = calls[refs[0].call]
    shape, made = before.shapes[refs[0].index], tuple(outputs[0].shape)
    if not _is_padded(shape, made) or not _is_opaque(flavour, layer):
        return None
    dtype = before.dtypes[refs[0].index]
    inputs = flavour.keras.Input(shape=shape[1:], batch_size=shape[0], dtype=dtype)
    try:
        inner = flavour.keras.Model(inputs, layer.call(inputs))
        found = [
            node for node in flavour.nodes(inner) if flavour.class_name(node[0]) != "InputLayer"
        ]
    except Exception:
        return None  # its function does not take symbolic tensors: it stays as it is
    if len(found) != 1:
        return None
    operation, given, options, _ = found[0]
    if not given or not flavour.is_tensor(given[0]):
        return None
    arguments = (refs[0], *given[1:])
    call = Call(operation, layer.name, arguments, options, (made,), (dtype,))
    call.input_shapes, call.input_dtypes = (shape,), (dtype,)
    read = stock_functions.read(flavour, call)
    lowest = read is not None and read.name == "pad" and read.options.get("lowest")
    return (operation, arguments, dict(options)) if lowest else None


def _is_padded(shape: Sequence[int | None], made: Sequence[int | None]) -> bool:
    if len(shape) != len(made) or len(shape) < 3 or shape[-1] != made[-1]:
        return False
    pairs = [(a, b) for a, b in zip(shape[1:], made[1:], strict=True) if None not in (a, b)]
    return any(b > a for a, b in pairs) and all(b >= a for a, b in pairs)  # type: ignore[operator]


def _is_opaque(flavour: Flavour, layer: Any) -> bool:
    stock = flavour.class_name(layer)
    ours = flavour.is_ours(layer)
    return (
        (flavour.is_lambda(layer) or not stock) and not ours and not getattr(layer, "weights", None)
    )
