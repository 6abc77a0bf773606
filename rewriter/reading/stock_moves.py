"""What functions that only move values about compute, as operations; with those that resize."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.reading import stock_places, stock_resizing
from rewriter.reading.operations import Operation, constant, reshape

if TYPE_CHECKING:
    from rewriter.reading.graph import Call

# What is padded with for a max pooling to ignore: -inf, or the lowest number of a type. On any grid
# it is the lowest integer.
LOWEST = -1e4

# An option of operations before or after which the batch is the second axis. What they say of axes
# is as if it were the first.
SECOND = {"batch": 1}

Reader = Callable[["Call", Mapping[str, Any]], Operation | None]


def _same_values(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    return reshape(call, arguments["x"])


def _transpose(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    rank = len(call.shapes[0])
    given = arguments.get("axes")
    perm = [int(a) % rank for a in (range(rank)[::-1] if given is None else given)]
    if perm[0] == 0:
        return Operation("transpose", (arguments["x"],), {"perm": perm})
    if rank > 1 and perm[1] == 0:  # for what it is good for, see chains
        first, _, *rest = perm
        return Operation("transpose", (arguments["x"],), {"perm": [0, first, *rest]} | SECOND)
    return None


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
    if paddings.size not in (1, 2, 2 * rank):
        return None
    pairs = np.broadcast_to(paddings, (rank, 2)).tolist()
    if pairs[0] != [0, 0]:
        return None
    if mode in ("reflect", "symmetric"):
        return Operation("mirror_pad", (arguments["x"],), {"paddings": pairs, "mode": mode})
    if mode != "constant" or not (number == 0 or lowest):
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
    options: dict[str, Any] = {}
    if _second(shape) and isinstance(parts[0], int):
        first, batch, *others = per_axis
        per_axis, shape, options = [batch, first, *others], (None, shape[0], *shape[2:]), SECOND
        parts[0] = batch
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
            if not range(start, stop, step):
                return None
            ranges.append((start, stop, step))
    return Operation("slice", (arguments["x"],), {"ranges": ranges} | options)


def _unstack(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    axis = int(arguments.get("axis", 0)) % len(call.input_shapes[0])
    if axis == 0 and _second(call.input_shapes[0]):
        return Operation("unstack", (arguments["x"],), {"axis": 1} | SECOND)
    return Operation("unstack", (arguments["x"],), {"axis": axis}) if axis else None


def _second(shape: Any) -> bool:
    """Whether the batch is the second axis, and the only one whose size is open."""
    return len(shape) > 1 and shape[1] is None and tuple(shape).count(None) == 1


def _blocks(name: str) -> Reader:
    """Channels and blocks of pixels into each other."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        layout = arguments.get("data_format") or "channels_last"
        if layout not in ("NHWC", "channels_last") or len(call.input_shapes[0]) != 4:
            return None
        return Operation(name, (arguments["x"],), {"block": int(arguments["block_size"])})

    return reader


def _patches(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """Patches of an image or a volume, one after the other: channels last, rows of a patch first.

    They may overlap, leave gaps, be dilated, and reach over the edges, where there are zeros.
    """
    rank = len(call.input_shapes[0])
    if arguments.get("data_format") not in (None, "channels_last") or rank not in (4, 5):
        return None

    def numbers(value: Any) -> list[int]:
        """One for each axis but the batch and the channels."""
        found = [int(n) for n in np.ravel(value)]
        found = found[1:-1] if len(found) == rank else found
        return found * (rank - 2) if len(found) == 1 else found

    size = numbers(arguments["size"])
    strides, rates = (
        default if arguments.get(key) is None else numbers(arguments[key])
        for key, default in (("strides", size), ("rates", [1] * len(size)))
    )
    padding = str(arguments.get("padding") or "valid").upper()
    if {len(size), len(strides), len(rates)} != {rank - 2} or padding not in ("SAME", "VALID"):
        return None
    options = {"size": size, "strides": strides, "rates": rates, "padding": padding}
    return Operation("patches", (arguments["x"],), options)


def _pool(kind: str) -> Reader:
    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        rank = len(call.input_shapes[0])
        layout = arguments.get("data_format") or "channels_last"
        if layout not in ("NHWC", "channels_last") or rank not in (3, 4):
            return None
        padding = str(arguments.get("padding") or "valid").upper()
        found = []
        for value in (arguments["size"], arguments.get("strides") or arguments["size"]):
            numbers = [int(n) for n in np.ravel(value)]
            numbers = numbers[1:-1] if len(numbers) == rank else numbers
            found.append(numbers * (rank - 2) if len(numbers) == 1 else numbers)
        if padding not in ("SAME", "VALID"):
            return None
        options = {"kind": kind, "pool_size": found[0], "strides": found[1], "padding": padding}
        name = "pool" if kind == "MAX_POOL_2D" else "rounded_pool"
        return Operation(name, (arguments["x"],), options)

    return reader


READERS: dict[str, Reader] = {
    "reshape": _same_values,
    "transpose": _transpose,
    "exchange": _exchange,
    "move": _move,
    "pad": _pad,
    "split": _split,
    "item": _item,
    **stock_places.READERS,
    **stock_resizing.READERS,
    "unstack": _unstack,
    "depth_to_space": _blocks("depth_to_space"),
    "space_to_depth": _blocks("space_to_depth"),
    "patches": _patches,
    "max_pool": _pool("MAX_POOL_2D"),
    "average_pool": _pool("AVERAGE_POOL_2D"),
}
