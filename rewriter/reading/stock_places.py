"""What functions that take numbered places compute: in any order, again, or of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.grid import WHOLE
from rewriter.reading.operations import Operation, constant, is_floating, is_tensor

if TYPE_CHECKING:
    from rewriter.reading.graph import Call


def _numbers(value: Any) -> np.ndarray | None:
    """Whole numbers, int64: one, or an array or list of them; None for anything else."""
    if isinstance(value, (list, tuple)):
        parts = [constant(each) for each in value]
        found = None if any(part is None for part in parts) else np.asarray(parts)
    else:
        found = constant(value)
    return None if found is None else found.astype(np.int64)


def _places(call: Call, x: Any, axis: Any, places: Any) -> Operation | None:
    """The numbered places of one axis, in any order, each any number of times."""
    shape = call.input_shapes[0]
    axis = int(axis) % len(shape)
    if axis == 0 or shape[axis] is None:
        return None
    found = np.arange(shape[axis])[places(np.arange(shape[axis]))]
    if found.ndim != 1:
        return None
    return Operation("take", (x,), {"axis": axis, "places": found.tolist()})


def _take(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    if is_tensor(arguments["indices"]):
        return _look_up(call, arguments)
    wanted, axis = _numbers(arguments["indices"]), _single(arguments.get("axis", 0))
    if wanted is None or wanted.ndim != 1 or axis is None:
        return None
    size = call.input_shapes[0][axis]
    if size is None or not ((-size <= wanted) & (wanted < size)).all():
        return None
    return _places(call, arguments["x"], axis, lambda places: wanted)


def _look_up(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """The rows of a constant table, by their numbers."""
    table, given = constant(arguments["x"]), arguments.get("axis", 0)
    if table is None or not table.ndim or call.kwargs.get("batch_dims"):
        return None
    flat = given is None and table.ndim == 1  # keras.ops.take of all numbers in a row
    axis = 0 if flat else _single(given)
    if axis is None or axis % table.ndim:
        return None
    if call.input_dtypes[0] not in WHOLE or not is_floating(call.dtypes[0]):
        return None
    return Operation("look_up", (arguments["indices"],), {"table": table})


def _one_hot(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """One number at the place that a whole number says, another at all others."""
    depth, axis = _single(arguments.get("depth")), _single(arguments.get("axis", -1))
    found = [constant(arguments.get(key, value)) for key, value in (("on", 1.0), ("off", 0.0))]
    ends = [float(each.reshape(())) for each in found if each is not None and each.size == 1]
    if depth is None or axis not in (-1, len(call.shapes[0]) - 1) or len(ends) != 2:
        return None
    if call.input_dtypes[0] not in WHOLE or not is_floating(call.dtypes[0]):
        return None
    return Operation("one_hot", (arguments["x"],), {"depth": depth, "ends": tuple(ends)})


def _single(value: Any) -> int | None:
    """One whole number, alone or in an array; None for anything else."""
    found = _numbers(value)
    return int(found.reshape(())) if found is not None and found.size == 1 else None


def _flip(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    axis = _single(arguments.get("axis"))
    if axis is None:
        return None
    return _places(call, arguments["x"], axis, lambda places: places[::-1])


def _roll(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    axis, shift = (_single(arguments.get(key)) for key in ("axis", "shift"))
    if axis is None or shift is None:
        return None
    return _places(call, arguments["x"], axis, lambda places: np.roll(places, shift))


def _tile(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    given = _numbers(arguments.get("repeats"))
    rank = len(call.input_shapes[0])
    if given is None or given.size > rank:
        return None
    repeats = [1] * (rank - given.size) + given.ravel().tolist()
    if repeats[0] != 1 or min(repeats) < 1:
        return None
    return Operation("tile", (arguments["x"],), {"repeats": repeats})


def _repeat_each(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    counts, axis = _numbers(arguments.get("repeats")), _single(arguments.get("axis"))
    if counts is None or axis is None or counts.min(initial=0) < 0 or not counts.any():
        return None
    counts = counts.ravel()
    if axis % len(call.input_shapes[0]) == 0 and counts.size == 1:  # each sample by itself
        name, options = "repeat_samples", {"count": int(counts[0])}
        return Operation(name, (arguments["x"],), options)
    if counts.size not in (1, call.input_shapes[0][axis]):
        return None
    return _places(call, arguments["x"], axis, lambda places: np.repeat(places, counts))


def _place(
    name: str, otherwise: int | None = None
) -> Callable[[Call, Mapping[str, Any]], Operation | None]:
    """The place of the largest or the smallest value along an axis that is not the batch.

    ``otherwise``: the axis where none is given.
    """

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        axis = next((arguments[k] for k in ("axis", "dimension") if arguments.get(k) is not None),
                    otherwise)  # fmt: skip
        shape, made = call.input_shapes[0], call.dtypes[0]
        if axis is None or made not in WHOLE or not is_floating(call.input_dtypes[0]):
            return None
        place = int(np.reshape(axis, ())) % len(shape)
        if place == 0 or shape[place] is None:
            return None
        return Operation(name, (arguments["x"],), {"axis": place, "dtype": made})

    return reader


READERS: dict[str, Callable[[Call, Mapping[str, Any]], Operation | None]] = {
    "take": _take,
    "one_hot": _one_hot,
    "flip": _flip,
    "roll": _roll,
    "tile": _tile,
    "repeat_each": _repeat_each,
    "argmax": _place("argmax"),
    "argmin": _place("argmin"),
    "argmax_last": _place("argmax", -1),
    "argmin_last": _place("argmin", -1),
}
