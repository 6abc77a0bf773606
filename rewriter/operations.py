"""What a layer or an operation computes, in the terms of both Kerases at once.

``x + y`` is a ``TFOpLambda`` in tf_keras, an ``Add`` operation in Keras 3 and an ``Add`` layer in
either; here all of them read as ``Operation("add", (x, y))``. Only what has an integer form on the
device is named. The tables are data: which symbol, class or layer means what, and what its
arguments are called. How each operation treats ranges is in :mod:`rewriter.ops`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from rewriter.graph import Call, Ref


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A computation on tensors.

    Attributes:
      name: a key of :data:`rewriter.ops.BEHAVIOURS`.
      operands: the tensors it reads.
      options: everything else; constants as NumPy arrays, axes not negative.
    """

    name: str
    operands: tuple[Ref, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(call: Call, name: str, arguments: Mapping[str, Any]) -> Operation | None:
    """The operation of a call of a TensorFlow symbol or a Keras 3 operation.

    Args:
      call: the call.
      name: what the flavour calls it: a key of the table below.
      arguments: its arguments under the names that the table expects.

    Returns:
      None where the arguments give it no integer form.
    """
    reader = _READERS.get(name)
    return None if reader is None else reader(call, arguments)


def bind(specification: str, call: Call) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a call, from its row in a flavour's table.

    A row reads ``"mean input_tensor:x axis | keepdims"``: the name, the parameters in order (with
    the name they have here after a colon), and after ``|`` the attributes of the operation object.
    """
    positional, _, attributes = specification.partition("|")
    name, *parameters = positional.split()
    arguments: dict[str, Any] = {}
    for position, parameter in enumerate(parameters):
        theirs, _, ours = parameter.partition(":")
        if position < len(call.args):
            arguments[ours or theirs] = call.args[position]
        elif call.kwargs.get(theirs) is not None:
            arguments[ours or theirs] = call.kwargs[theirs]
    for attribute in attributes.split():
        theirs, _, ours = attribute.partition(":")
        arguments[ours or theirs] = getattr(call.layer, theirs)
    return name, arguments


def constant(value: Any) -> np.ndarray | None:
    """A number, an array or an eager tensor as float64; None for anything else."""
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (int, float, np.number, np.ndarray)) or tf.is_tensor(value):
        try:
            return np.asarray(value, np.float64)
        except (TypeError, ValueError, NotImplementedError):
            return None
    return None


def is_tensor(value: Any) -> bool:
    """Whether an argument is a tensor of the graph."""
    from rewriter.graph import Ref

    return isinstance(value, Ref)


# Arithmetic


def affine(x: Any, scale: Any = 1.0, offset: Any = 0.0) -> Operation | None:
    """``x * scale + offset`` with constants (the identity, too), or None if they are not finite."""
    scale, offset = np.asarray(scale, np.float64), np.asarray(offset, np.float64)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        return None
    if scale.ndim == offset.ndim == 0 and scale == 1 and offset == 0:
        return Operation("identity", (x,))
    return Operation("affine", (x,), {"scale": scale, "offset": offset})


def _two(
    name: str, left: Callable[[Any, np.ndarray], Any], right: Callable[[np.ndarray, Any], Any]
) -> Callable[[Call, Mapping[str, Any]], Operation | None]:
    """Two tensors; or a tensor and a constant, in either order."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        x, y = arguments["x"], arguments["y"]
        if is_tensor(x) and is_tensor(y):
            return Operation(name, (x, y)) if name else None
        if is_tensor(x):
            number = constant(y)
            return None if number is None else left(x, number)
        number = constant(x)
        return None if number is None else right(number, y)

    return reader


def clamp(x: Any, low: float = -math.inf, high: float = math.inf) -> Operation:
    """``min(max(x, low), high)``."""
    return Operation("clamp", (x,), {"low": float(low), "high": float(high)})


def _extreme(low: bool) -> Callable[[Any, np.ndarray], Operation | None]:
    def reader(x: Any, number: np.ndarray) -> Operation | None:
        if number.size != 1:
            return None
        bound = float(number.reshape(()))
        return clamp(x, low=bound) if low else clamp(x, high=bound)

    return reader


def _reciprocal(number: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 1.0 / number


def _power(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    exponent = constant(arguments["y"])
    if exponent is None or exponent.size != 1 or float(exponent.reshape(())) != 2:
        return None
    return Operation("multiply", (arguments["x"],) * 2)


def _clip(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    low, high = (constant(arguments.get(key)) for key in ("min", "max"))
    if low is None or high is None or low.size != 1 or high.size != 1:
        return None
    return clamp(arguments["x"], float(low.reshape(())), float(high.reshape(())))


def _all_of(name: str) -> Callable[[Call, Mapping[str, Any]], Operation | None]:
    """Of a list of tensors, along an axis of the result."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        values = list(arguments["x"])
        if not all(is_tensor(value) for value in values):
            return None
        rank = len(call.shapes[0])
        axis = int(arguments.get("axis", 0)) % rank
        if axis == 0 and name != "add":
            return None  # the batch
        return Operation(name, tuple(values), {"axis": axis} if name != "add" else {})

    return reader


# Reductions and moves


def axes_of(axis: Any, rank: int) -> list[int]:
    """The axes of a reduction as sorted, non-negative numbers; None stands for all."""
    if axis is None:
        return list(range(rank))
    given = [axis] if np.ndim(axis) == 0 else list(axis)
    return sorted({int(a) % rank for a in given})


def _reduction(name: str) -> Callable[[Call, Mapping[str, Any]], Operation | None]:
    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        axes = axes_of(arguments.get("axis"), len(call.input_shapes[0]))
        keepdims = bool(arguments.get("keepdims", False))
        if 0 in axes:  # the batch
            return None
        return Operation(name, (arguments["x"],), {"axes": axes, "keepdims": keepdims})

    return reader


def reshape(call: Call, x: Any) -> Operation | None:
    """The same values in the call's output shape, if every sample keeps its own."""
    before, after = call.input_shapes[0][1:], call.shapes[0][1:]
    sizes = [[n for n in shape if n is not None] for shape in (before, after)]
    known = len(sizes[0]) == len(before) and len(sizes[1]) == len(after)
    if known and math.prod(sizes[0]) != math.prod(sizes[1]):
        return None
    return Operation("reshape", (x,))


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
    zero = value is None or (constant(value) is not None and not np.any(constant(value)))
    paddings = np.asarray(arguments["paddings"], np.int64)
    mode = str(arguments.get("mode", "constant")).lower()
    if mode != "constant" or not zero or paddings.size not in (1, 2, 2 * rank):
        return None
    pairs = np.broadcast_to(paddings, (rank, 2)).tolist()
    if pairs[0] != [0, 0]:
        return None
    return Operation("pad", (arguments["x"],), {"paddings": pairs})


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


def resize(x: Any, size: Any, method: str) -> Operation | None:
    """To ``size`` (height, width) by TensorFlow 2's half-pixel rule; nearest or bilinear."""
    if method not in ("nearest", "bilinear"):
        return None
    return Operation("resize", (x,), {"size": [int(s) for s in size], "method": method})


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


def _softmax(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    return softmax(call, arguments["x"], arguments.get("axis", -1))


def softmax(call: Call, x: Any, axis: Any) -> Operation | None:
    """Over one axis that is not the batch."""
    rank = len(call.shapes[0])
    axes = axes_of(-1 if axis is None else axis, rank)
    if len(axes) != 1 or axes == [0]:
        return None
    return Operation("softmax", (x,), {"axis": axes[0]})


def _one(name: str, **options: Any) -> Callable[[Call, Mapping[str, Any]], Operation | None]:
    """Of one tensor; scalar arguments are options, with these defaults."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        found = {key: arguments.get(key, value) for key, value in options.items()}
        return Operation(name, (arguments["x"],), found)

    return reader


def _only(name: str, **required: float) -> Callable[[Call, Mapping[str, Any]], Operation | None]:
    """Of one tensor; None if a scalar argument has another value than this."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        fits = all(arguments.get(key, value) == value for key, value in required.items())
        return Operation(name, (arguments["x"],)) if fits else None

    return reader


def is_floating(dtype: str) -> bool:
    """Whether a dtype's name is that of a floating-point type."""
    return dtype.startswith(("float", "bfloat"))


def _cast(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    if not is_floating(call.dtypes[0]):
        return None
    name = "identity" if is_floating(call.input_dtypes[0]) else "cast"
    return Operation(name, (arguments["x"],))


def _same_values(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    return reshape(call, arguments["x"])


_READERS: dict[str, Callable[[Any, Mapping[str, Any]], Operation | None]] = {
    "add": _two("add", lambda x, c: affine(x, offset=c), lambda c, x: affine(x, offset=c)),
    "subtract": _two(
        "subtract", lambda x, c: affine(x, offset=-c), lambda c, x: affine(x, -1.0, c)
    ),
    "multiply": _two("multiply", affine, lambda c, x: affine(x, c)),
    "divide": _two("", lambda x, c: affine(x, _reciprocal(c)), lambda c, x: None),
    "maximum": _two("maximum", _extreme(True), lambda c, x: _extreme(True)(x, c)),
    "minimum": _two("minimum", _extreme(False), lambda c, x: _extreme(False)(x, c)),
    "negative": lambda call, arguments: affine(arguments["x"], -1.0),
    "square": lambda call, arguments: Operation("multiply", (arguments["x"],) * 2),
    "power": _power,
    "clip": _clip,
    "add_all": _all_of("add"),
    "concatenate": _all_of("concatenate"),
    "stack": _all_of("stack"),
    "mean": _reduction("mean"),
    "sum": _reduction("sum"),
    "max": _reduction("max"),
    "reshape": _same_values,
    "transpose": _transpose,
    "exchange": _exchange,
    "move": _move,
    "pad": _pad,
    "split": _split,
    "item": _item,
    "resize": _resize,
    "identity": _one("identity"),
    "cast": _cast,
    "relu": lambda call, arguments: clamp(arguments["x"], low=0),
    "relu6": lambda call, arguments: clamp(arguments["x"], 0, 6),
    "hard_tanh": lambda call, arguments: clamp(arguments["x"], -1, 1),
    "leaky_relu": _one("leaky_relu", alpha=0.2),
    "elu": _only("elu", alpha=1.0),
    "gelu": _one("gelu", approximate=False),
    "silu": _only("silu", beta=1.0),
    "hard_silu": _one("hard_silu"),
    "hard_sigmoid": _one("hard_sigmoid", slope=1 / 6),
    "sigmoid": _one("sigmoid"),
    "tanh": _one("tanh"),
    "softmax": _softmax,
}
