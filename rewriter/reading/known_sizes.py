"""Numbers that a model computes from the sizes of its tensors: ``tf.cast(tf.shape(x)[1], ...)``.

All sizes but the batch's are fixed where operators are on integers, so such a number is known when
the graph is read. What is computed from data with it is given the number in its place: a product
with a size is one with a constant then, which has an integer form where a tensor without an axis of
samples has none. What only computes numbers stays as it is, and nothing reads it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.keras_compat import Flavour
from rewriter.reading.graph import Call, Ref, map_refs

_SHAPES = frozenset({"ops.shape", "ops.compat.v1.shape", "ops.raw.Shape"})
_PICKS = frozenset({"ops.__operators__.getitem", "ops.unstack", "ops.gather"})
# Of numbers one; nothing else, a random number least of all.
_ARITHMETIC = frozenset(
    "ops." + name
    for name in (
        *("cast", "compat.v1.cast", "__operators__.add", "math.add", "math.subtract"),
        *("math.multiply", "math.truediv", "math.divide", "divide", "compat.v1.div"),
        *("math.floordiv", "compat.v1.floor_div", "math.floormod", "compat.v1.mod"),
        *("math.pow", "math.sqrt", "math.rsqrt", "math.square", "math.negative"),
        *("math.maximum", "math.minimum", "math.floor", "math.ceil"),
    )
)


class KnownSizes:
    """The known numbers of a graph while it is read."""

    def __init__(self, flavour: Flavour):
        self._flavour = flavour
        self._shapes: dict[Ref, tuple[int | None, ...]] = {}
        self._numbers: dict[Ref, tf.Tensor] = {}

    def filled(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        """The arguments of a call with numbers in the places of those that are known.

        Those of a layer, and of a call that reads nothing else, stay as they are.
        """
        refs = Call.tensors((args, kwargs))
        known = [ref in self._numbers for ref in refs]
        operation = self._flavour.class_name(layer).startswith("ops.")
        if not operation or not any(known) or all(known):
            return args, kwargs

        def number(ref: Ref) -> Any:
            return self._numbers[ref].numpy().item() if ref in self._numbers else ref

        filled: tuple[tuple, dict] = map_refs((args, kwargs), number)
        return filled

    def note(self, call: Call, refs: Sequence[Ref]) -> None:
        """Find out what is known of the outputs ``refs`` of a call."""
        name = self._flavour.class_name(call.layer)
        if name in _SHAPES and call.refs:
            self._shapes[refs[0]] = (
                None,
                *call.input_shapes[0][1:],
            )  # the batch's is the application's
        elif name in _PICKS and len(call.refs) == 1 and call.refs[0] in self._shapes:
            sizes = self._shapes[call.refs[0]]
            places = tf.range(len(sizes))
            for ref, place in zip(refs, self._called(call, lambda _: places), strict=True):
                size = sizes[int(place)] if place.shape.rank == 0 else None
                if size is not None:
                    self._numbers[ref] = tf.constant(size, tf.int32)
        elif name in _ARITHMETIC and call.refs and all(r in self._numbers for r in call.refs):
            (value,) = self._called(call, self._numbers.__getitem__)
            if value.shape.rank == 0 and np.isfinite(value.numpy()):
                self._numbers[refs[0]] = value

    def _called(self, call: Call, value: Any) -> list[tf.Tensor]:
        args, kwargs = map_refs((call.args, call.kwargs), value)
        with tf.init_scope():
            return [tf.convert_to_tensor(v) for v in tf.nest.flatten(call.layer(*args, **kwargs))]
