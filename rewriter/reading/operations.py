"""What a layer or an operation computes, in the terms of both Kerases at once.

``x + y`` is a ``TFOpLambda`` in tf_keras, an ``Add`` operation in Keras 3 and an ``Add`` layer in
either; here all of them read as ``Operation("add", (x, y))``. Only what has an integer form on the
device is named. How each operation treats ranges is in :mod:`rewriter.rewriting.behaviours`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from rewriter.keras_compat.pure_functions import words

if TYPE_CHECKING:
    from rewriter.reading.graph import Call, Ref


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A computation on tensors.

    Attributes:
      name: a key of :data:`rewriter.rewriting.behaviours.BEHAVIOURS`.
      operands: the tensors it reads.
      options: everything else; constants as NumPy arrays, axes not negative.
    """

    name: str
    operands: tuple[Ref, ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# What gives each number of its input a place, or none; and what finds a place, or looks something
# up by it.
MOVES = words(
    """identity reshape transpose pad slice split concatenate stack take unstack convert"""
)
# Of these, what stands between a sum and its softmax at most: all values are there, and no others.
REARRANGES = words("identity reshape transpose")
PLACES = words("argmax argmin")
LOOKS_UP = words("look_up one_hot")
# What is added to a number, or is the least that it may be, to keep it from 0 and nothing else.
GUARD = 0.01
# Why a call has no integer form.
RANDOM_IN_INFERENCE = (
    "it is called with training=True, and so is random in inference too. Call it without "
    "that in a model of the same weights"
)


def constant(value: Any) -> np.ndarray | None:
    """A number, an array or an eager tensor as float64; None for anything else.

    So are lists of numbers, which is what a file of tf_keras makes of arrays.
    """
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (list, tuple)):
        return _listed(value)
    if isinstance(value, (int, float, np.number, np.ndarray)) or tf.is_tensor(value):
        try:
            return np.asarray(value, np.float64)
        except (TypeError, ValueError, NotImplementedError):
            return None
    return None


def _listed(values: Sequence[Any]) -> np.ndarray | None:
    leaves = tf.nest.flatten(values)
    numbers = [each for each in leaves if isinstance(each, (int, float, np.number))]
    if not leaves or len(numbers) < len(leaves) or any(isinstance(n, bool) for n in numbers):
        return None
    try:
        return np.array(values, np.float64)
    except ValueError:  # rows of several lengths
        return None


def is_tensor(value: Any) -> bool:
    """Whether an argument is a tensor of the graph."""
    from rewriter.reading.graph import Ref

    return isinstance(value, Ref)


def affine(x: Any, scale: Any = 1.0, offset: Any = 0.0) -> Operation | None:
    """``x * scale + offset`` with constants (the identity, too), or None if they are not finite."""
    scale, offset = np.asarray(scale, np.float64), np.asarray(offset, np.float64)
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        return None
    if scale.ndim == offset.ndim == 0 and scale == 1 and offset == 0:
        return Operation("identity", (x,))
    return Operation("affine", (x,), {"scale": scale, "offset": offset})


def clamp(x: Any, low: float = -math.inf, high: float = math.inf) -> Operation:
    """``min(max(x, low), high)``."""
    return Operation("clamp", (x,), {"low": float(low), "high": float(high)})


def guards(role: Any) -> bool:
    """Whether an operation only keeps numbers from 0, by a constant of at most ``GUARD``."""
    if not isinstance(role, Operation) or role.name not in ("affine", "clamp"):
        return False
    least = np.asarray(role.options["offset" if role.name == "affine" else "low"])
    return bool(np.all((least > 0) & (least <= GUARD)))


def axes_of(axis: Any, rank: int) -> list[int]:
    """The axes of a reduction as sorted, non-negative numbers; None stands for all."""
    if axis is None:
        return list(range(rank))
    given = [axis] if np.ndim(axis) == 0 else list(axis)
    return sorted({int(a) % rank for a in given})


def reshape(call: Call, x: Any) -> Operation | None:
    """The same values in the call's output shape, if every sample keeps its own.

    A sample may have several rows of the output, as windows of an image or steps of a sequence, or
    several of the input: :mod:`rewriter.reading.row_counts` sees to it that it has as many.
    """
    before, after = call.input_shapes[0][1:], call.shapes[0][1:]
    sizes = [[n for n in shape if n is not None] for shape in (before, after)]
    if len(sizes[0]) == len(before) and len(sizes[1]) == len(after):
        small, large = sorted(map(math.prod, sizes))
        if small != large and (not small or large % small):
            return None
    return Operation("reshape", (x,))


def resize(
    x: Any, size: Any, method: str, aligned: bool = False, centred: bool = True
) -> Operation | None:
    """To ``size`` (height, width), nearest or bilinear; by default by TensorFlow 2's rule.

    ``aligned``: the corner pixels of both images lie on each other. ``centred``: pixels have their
    centres at halves. Neither: TensorFlow 1's rule, corners at 0.
    """
    if method not in ("nearest", "bilinear") or None in tuple(size) or (aligned and centred):
        return None
    flags = {"align_corners": aligned, "half_pixel_centers": centred}
    return Operation("resize", (x,), {"size": [int(s) for s in size], "method": method, **flags})


def softmax(call: Call, x: Any, axis: Any) -> Operation | None:
    """Over one axis that is not the batch."""
    return along("softmax", call, x, -1 if axis is None else axis)


def along(name: str, call: Call, x: Any, axis: Any) -> Operation | None:
    """An operation over one axis that is not the batch."""
    axes = axes_of(axis, len(call.shapes[0]))
    return Operation(name, (x,), {"axis": axes[0]}) if len(axes) == 1 and axes != [0] else None


def is_floating(dtype: str) -> bool:
    """Whether a dtype's name is that of a floating-point type."""
    return dtype.startswith(("float", "bfloat"))
