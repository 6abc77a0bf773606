"""Functions of a number that LiteRT has no operator for: it reads them from a table.

A tensor of 8 bits takes 256 values, so whatever is computed of each of its elements by itself is a
table of 256 integers. ``cos(x)``, ``1 / (x + 1e-6)`` and an activation of a user's are all of this
kind; constants inside are no tensors, and nothing rounds them. Where constants are one for each
channel, as a learned slope is, there is a table for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.keras_compat import Flavour
from rewriter.reading.graph import Call, Ref, map_refs
from rewriter.reading.operations import Operation, is_floating
from rewriter.reading.traces import Trace, trace

NAME = "function"
# How large a function is at 0 that has, or as good as has, a pole there.
_STEEP = 10.0
# A table has 256 bytes for each channel: so many are half a megabyte.
MOST_CHANNELS = 2048
# Of a row of float32; of one for each channel: a row for each number, and in it the channels.
Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pole:
    """Where a function has a pole at 0, or as good as one.

    Attributes:
      ref: the tensor that it is a function of.
      width: the largest step of that tensor's grid on which 0 is 0; on a coarser one it stands for
        what rounds to it.
    """

    ref: Ref
    width: float


def of_trace(traced: Trace | None, x: Any) -> Operation | None:
    """The operation of a function that is applied to every element, or None of any other."""
    if traced is None or not traced.elementwise or not traced.nodes:
        return None

    def function(values: np.ndarray) -> np.ndarray:
        """Of real numbers in one row, in float32, as the model computes it."""
        return np.asarray(traced.run(tf.constant(values, tf.float32)))

    made = function(np.array([0.5, 1.0], np.float32))
    if made.shape != (2,) or not np.issubdtype(made.dtype, np.floating):
        return None
    return Operation(NAME, (x,), {"function": function})


def _of_channels(call: Call, x: Ref) -> Operation | None:
    """The operation of a call that is a function for each channel, the last axis."""
    rank = len(call.shapes[0])
    count = call.shapes[0][-1] if rank > 1 else None
    if count is None or not 1 < count <= MOST_CHANNELS:
        return None
    traced = trace(lambda x_: run(call, {x: x_}), [(None, *(1,) * (rank - 2), count)])
    if traced is None or not traced.of_channels(count) or not traced.nodes:
        return None

    def function(values: np.ndarray) -> np.ndarray:
        """Of real numbers in one row: a row for each of them, in it the channels."""
        shape = (values.size, *(1,) * (rank - 2), count)
        given = np.broadcast_to(values.reshape(-1, *(1,) * (rank - 1)), shape)
        made = np.asarray(traced.run(tf.constant(given, tf.float32)))
        return made.reshape(values.size, -1)

    made = function(np.array([0.5, 1.0], np.float32))
    if made.shape != (2, count) or not np.issubdtype(made.dtype, np.floating):
        return None
    return Operation(NAME, (x,), {"function": function, "channels": count})


def of_call(flavour: Flavour, call: Call) -> Operation | None:
    """The operation of one call that is such a function; None if it is not.

    Of stock operations and layers, and of what users wrote, with the values that its variables have
    by then.
    """
    layer = call.layer
    refs = list(dict.fromkeys(call.refs))
    floating = all(map(is_floating, (*call.dtypes, *call.input_dtypes)))
    if len(refs) != 1 or len(call.dtypes) != 1 or not floating or call.masked:
        return None
    if flavour.is_ours(layer) or flavour.is_added_loss(layer) or flavour.is_model(layer):
        return None
    if flavour.is_layer(layer) and flavour.sublayers(layer):
        return None
    if call.shapes[0] != call.input_shapes[0] or not hasattr(layer, "call"):
        return None
    found = of_trace(trace(lambda x: run(call, {refs[0]: x}), [(None,)]), refs[0])
    return found or _of_channels(call, refs[0])


def run(call: Call, values: dict[Ref, Any]) -> Any:
    """What a call makes of these tensors in inference, without the casts of a 16-bit layer."""
    kwargs = {k: v for k, v in call.kwargs.items() if k not in ("mask", "training")}
    args, given = map_refs((call.args, kwargs), values.__getitem__)
    layer = call.layer
    return (layer.call if hasattr(layer, "call") else layer)(*args, **given)


def steep(function: Function) -> bool:
    """Whether a function has a pole at 0, or as good as one."""
    return not abs(_at(function, 0.0)) < _STEEP  # nor is what is no number


def width(function: Function) -> float:
    """How far from 0 a function is less than a quarter of what it is there; infinite: nowhere.

    A grid with a coarser step has no room for what keeps the function from being infinite.
    """
    most = abs(_at(function, 0.0))
    if not np.isfinite(most):
        return 0.0
    places = (2.0**power for power in range(-60, 20))
    return next((x for x in places if abs(_at(function, x)) * 4 < most), np.inf)


def _at(function: Function, x: float) -> float:
    with np.errstate(all="ignore"):
        found = np.asarray(function(np.full(1, x, np.float32)), np.float64)
        return float(found.ravel()[np.argmax(np.abs(found))])  # what is no number counts as most
