"""Calls as numbers: equal ones have the same, so that a layer's two modes can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.keras_compat import Flavour
from rewriter.lifting.block import ClosedError

TWO_WAYS = "computes something else in training"


class Numbers(dict[Any, int]):
    """A number for each key."""

    def __call__(self, key: Any) -> int:
        return int(self.setdefault(key, len(self)))


def frozen(flavour: Flavour, value: Any, number: Any) -> Any:
    """A key for a structure in which ``number`` gives the number of a tensor, or None."""
    if number(value) is not None:
        return ("tensor", number(value))
    if isinstance(value, Mapping):
        return tuple((key, frozen(flavour, value[key], number)) for key in sorted(value))
    if isinstance(value, (list, tuple)):
        return tuple(frozen(flavour, each, number) for each in value)
    if isinstance(value, (np.ndarray, tf.Tensor)) and hasattr(value, "__array__"):
        array = np.asarray(value)
        return (array.dtype.str, array.shape, array.tobytes())
    plain = isinstance(value, (str, bytes, int, float, slice, type(None), np.generic))
    return repr(value) if plain or isinstance(value, (tf.DType, tf.TensorShape)) else id(value)


def merged(
    calls: Sequence[Mapping[int, Sequence[Any]]], outputs: Sequence[Any]
) -> dict[int, bool | None]:
    """The flag of each call in training, by its number: True or False if always that, else None.

    Args:
      calls: for each mode: the flags that the calls of a number are given.
      outputs: for each mode: the numbers of the results.

    Raises:
      ClosedError: the modes differ in more than flags.
    """
    if len(calls) == 1:
        return {n: f[0] if isinstance(f[0], bool) else None for n, f in calls[0].items()}
    if outputs[0] != outputs[1]:
        raise ClosedError(f"its call {TWO_WAYS} than in inference")
    found: dict[int, bool | None] = {}
    for number, flags in calls[0].items():
        others = calls[1].get(number, ())
        in_training, in_inference = set(flags), set(others)
        if len(in_training) > 1 or len(in_inference) > 1:
            raise ClosedError("its call makes the same call of a layer with several flags")
        (t,), (f,) = in_training, in_inference or {None}
        if t == f and isinstance(t, bool):
            found[number] = t
        elif t is False or f is True:
            raise ClosedError("its call turns the flag `training` around for a layer inside it")
        else:
            found[number] = None
    return found


def plain(flag: Any) -> bool | None:
    """A flag as Python's, also where it is a constant tensor; None if it is not known."""
    known = flag if isinstance(flag, bool) or flag is None else tf.get_static_value(flag)
    return None if known is None else bool(known)
