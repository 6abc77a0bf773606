"""What functions that only move values about compute, and resizing, as operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.reading.operations import Operation, constant, reshape, resize

if TYPE_CHECKING:
    from rewriter.reading.graph import Call

# What is padded with for a max pooling to ignore: -inf, or the lowest number of a type. On any grid
# it is the lowest integer.
LOWEST = -1e4

Reader = Callable[["Call", Mapping[str, Any]], Operation | None]


def _same_values(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    return reshape(call, arguments["x"])


def _transpose(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    rank = len(call.shapes[0])
    given = arguments.get("axes")
    perm = [int(a) % rank for a in (range(rank)[::-1] if given is None else given)]
    return Operation("transpose", (arguments["x"],), {"perm": perm}) if perm[0] == 0 else None


def _exchange(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    rank = len(call.shapes[0])
    perm = list(range(rank))
    a, b = int(arguments["axis1"]) % rank, int(arguments["axis2"]) % rank
    perm[a], perm[b] = perm[b], perm[a]
    return _transpose(call, {"x": arguments["x"], "axes": perm})


def _move(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    rank = len(call.shapes[0])
    ends = [
        [int(a) % rank for a in ([value] if np.ndim(value) == 0 else value)]
        for value in (arguments["source"], arguments["destination"])
    ]
    perm = [axis for axis in range(rank) if axis not in ends[0]]
    for target, source in sorted(zip(ends[1], ends[0], strict=True)):
        perm.insert(target, source)
    return _transpose(call, {"x": arguments["x"], "axes": perm})


def _pad(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    rank = len(call.shapes[0])
    value = arguments.get("value", 0)
    found = np.zeros(()) if value is None else constant(value)
    if found is None or found.size != 1:
        return None
    number = float(found.reshape(()))
    paddings = np.asarray(arguments["paddings"], np.int64)
    mode = str(arguments.get("mode", "constant")).lower()
    lowest = number <= LOWEST
    if mode != "constant" or not (number == 0 or lowest) or paddings.size not in (1, 2, 2 * rank):
        return None
    pairs = np.broadcast_to(paddings, (rank, 2)).tolist()
    if pairs[0] != [0, 0]:
        return None
    return Operation("pad", (arguments["x"],), {"paddings": pairs, "lowest": lowest})


def _split(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    axis = int(arguments.get("axis", 0)) % len(call.shapes[0])
    sizes = [shape[axis] for shape in call.shapes]
    if axis == 0 or None in sizes:
        return None
    return Operation("split", (arguments["x"],), {"axis": axis, "sizes": sizes})


def _item(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """``x[key]`` of slices, integers, None and Ellipsis; the batch is left alone."""
    shape = call.input_shapes[0]
    key = arguments["key"]
    parts = [
        slice(p["start"], p["stop"], p["step"]) if isinstance(p, Mapping) else p
        for p in (key if isinstance(key, (tuple, list)) else (key,))
    ]
    if any(not (p is None or p is Ellipsis or isinstance(p, (slice, int))) for p in parts):
        return None
    used = sum(p is not None and p is not Ellipsis for p in parts)
    rest = [slice(None)] * (len(shape) - used)
    where = next((i for i, p in enumerate(parts) if p is Ellipsis), len(parts))
    parts[where : where + 1] = rest
    ranges: list[tuple[int, int, int]] = []
    per_axis = [p for p in parts if p is not None]
    if per_axis[0] != slice(None) or parts[0] is None:
        return None
    for size, part in zip(shape[1:], per_axis[1:], strict=True):
        bounds = [part] if isinstance(part, int) else [part.start, part.stop, part.step]
        if any(not (b is None or isinstance(b, int)) for b in bounds) or size is None:
            return None
        if isinstance(part, int):
            ranges.append((part % size, part % size + 1, 1))
        else:
            start, stop, step = part.indices(size)
            if step < 0 or start >= stop:
                return None
            ranges.append((start, stop, step))
    return Operation("slice", (arguments["x"],), {"ranges": ranges})


_PLAIN_RESIZE = (
    "antialias",
    "preserve_aspect_ratio",
    "crop_to_aspect_ratio",
    "pad_to_aspect_ratio",
)


def _resize(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    if any(arguments.get(key) for key in _PLAIN_RESIZE) or len(call.shapes[0]) != 4:
        return None
    if arguments.get("data_format", "channels_last") not in (None, "channels_last"):
        return None
    method = str(arguments.get("method", "bilinear")).lower()
    return resize(arguments["x"], call.shapes[0][1:3], method)


READERS: dict[str, Reader] = {
    "reshape": _same_values,
    "transpose": _transpose,
    "exchange": _exchange,
    "move": _move,
    "pad": _pad,
    "split": _split,
    "item": _item,
    "resize": _resize,
}
