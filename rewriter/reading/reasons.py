"""Why a call has no integer form, for those whose reader has not said so.

A reader that refuses one for a reason of its own notes it in the call (``closed``). What is left is
told by what the call is: whole numbers, a mask, an activation, an operation that there is no
integer operator for, or a user's layer with such inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rewriter.grid import WHOLE
from rewriter.keras_compat import Flavour
from rewriter.lifting.operation import GraphOperatorMixin
from rewriter.reading import inside, recurrent
from rewriter.reading.graph import Call, Graph, Ref
from rewriter.reading.hosts import Row
from rewriter.reading.operations import Operation, is_floating
from rewriter.reading.roles import BatchNorm, Host, Opaque, Ours, Within

_SHOWN = 4  # operations named of one layer
_OWN = "Write it with operations that have one, or as several layers"
_OTHER = "Put another operation in its place, or compute it from the file's outputs"


def settle(graph: Graph) -> None:
    """Give every call without an integer form its reason, with what to do."""
    masks = {
        ref
        for call in graph.calls
        for key, value in call.kwargs.items()
        if "mask" in key
        for ref in Call.tensors(value)
    }
    for index, call in enumerate(graph.calls):
        if call.closed:
            continue
        if Ref(index) in masks or graph.flavour.class_name(call.layer) == "Masking":
            call.closed = "it makes a mask, and a file carries none. Build the model without masks"
            continue
        role, layer = call.role, call.layer
        if isinstance(role, Host):
            call.closed = _of_host(role.row, role.layer, role.activation)
        elif isinstance(role, Ours) and getattr(layer, "host", None) is not None:
            call.closed = _of_host(layer.row, layer.host, role.activation)
        elif isinstance(call.role, Opaque) and not _normalizes(graph.flavour, call):
            call.closed = _of(graph.flavour, call)


def note(flavour: Flavour, call: Call, closed: str, parts: Sequence[Call]) -> None:
    """Give a call of a layer that stays one its reason.

    Args:
      flavour, call: the call.
      closed: why it could not be opened; "" if it was.
      parts: the calls in it, if it was.
    """
    stock = flavour.class_name(call.layer) not in ("", *inside.STOCK)
    if call.closed or (stock and (closed or _under_mask(call))):
        return  # its arguments are the reason
    names = [name_of(flavour, each) for each in parts if isinstance(each.role, Opaque)]
    found = list(dict.fromkeys(names))
    if closed:
        call.closed = f"{closed}, and no single operation is what it computes. {_OWN}"
    elif found:
        call.closed = f"inside it {_listed(found)} no integer form. {_OWN}"


def name_of(flavour: Flavour, call: Call) -> str:
    """What a call is, by the name of its operation or of its layer's class."""
    layer = call.layer
    if isinstance(layer, GraphOperatorMixin):
        return layer.operator
    name = flavour.class_name(layer)
    if name.startswith("ops."):
        return name.rpartition(".")[2]
    return f"{type(layer).__name__} {layer.name!r}"


def read_masks(graph: Graph) -> frozenset[int]:
    """The calls that make booleans which values in the file depend on.

    Most are masks that nothing reads there.
    """
    live = {ref.call for ref in graph.output_refs()}
    found = set()
    for index in reversed(range(len(graph.calls))):
        if index not in live:
            continue
        call = graph.calls[index]
        live.update(ref.call for ref in _read(call))
        if isinstance(call.role, Opaque) and set(call.dtypes) == {"bool"}:
            found.add(index)
    return frozenset(found)


def _read(call: Call) -> Iterable[Ref]:
    """The tensors that the steps of a call read."""
    match call.role:
        case Operation():
            return call.role.operands
        case BatchNorm() | Host() | Ours():
            return call.refs[:1]
        case Within():
            return ()
    return call.refs


def _under_mask(call: Call) -> bool:
    """Whether values depend on a mask, which comes with a tensor, is given, or is made."""
    given = [value for key, value in call.kwargs.items() if "mask" in key]
    asked = any(value is not None and value is not False for value in given)
    return asked or (call.masked and "bool" not in call.dtypes)


def _normalizes(flavour: Flavour, call: Call) -> bool:
    """Whether normalizations are inside, whose refusals say why it is not opened."""
    return any(map(flavour.is_batch_norm, flavour.sublayers(call.layer)))


def _of_host(row: Row, layer: Any, activation: Operation | None) -> str:
    if row.float_only:
        return f"LiteRT has no integer kernel for {row.name}. Use another layer in its place"
    if activation is not None or layer.activation is None:
        return ""
    shown = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    return f"its activation {shown!r} has no integer form. {_OTHER}"


def _of(flavour: Flavour, call: Call) -> str:
    layer, name = call.layer, flavour.class_name(call.layer)
    if any(dtype in WHOLE for dtype in (*call.input_dtypes, *call.dtypes)):
        return of_whole_numbers(name_of(flavour, call))
    if _under_mask(call):
        return "it works under a mask, and a file carries none. Build it without masks"
    if name == "Activation":
        shown = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        return f"its activation {shown!r} has no integer form. {_OTHER}"
    kinds = sorted({*call.input_dtypes, *call.dtypes})
    if not all(map(is_floating, kinds)):
        other = ", ".join(kind for kind in kinds if not is_floating(kind))
        return f"{name_of(flavour, call)} works with {other}, which has no integer form. {_OTHER}"
    if name in recurrent.LAYERS or name in ("", *inside.STOCK):
        return f"no operation with an integer form is what it computes. {_OWN}"
    known = flavour.specification(layer) is not None
    if name.startswith("ops.") and known:
        return f"with these arguments {name_of(flavour, call)} has no integer form. {_OTHER}"
    shown = name_of(flavour, call) if name.startswith("ops.") else name
    return f"there is no integer operator for {shown}. {_OTHER}"


def of_whole_numbers(name: str) -> str:
    """Of an operation on whole numbers."""
    return (
        f"{name} computes with whole numbers, which a file only finds, moves, and looks rows up "
        "by. Compute it from the file's outputs, or before its inputs"
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    shown = [*names[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
    joined = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{joined} {'has' if len(shown) == 1 else 'have'}"
