"""Which normalizations of single samples have an integer form, and what they normalize over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.reading.operations import Operation

if TYPE_CHECKING:
    from rewriter.reading.graph import Call, Ref

# LiteRT adds up as many int16 values in an int32.
LONGEST = 2**16 - 1

Reader = Callable[[Any, "Call", "tuple[Ref, ...]"], Operation | None]


def axes(layer: Any, rank: int) -> list[int]:
    """The axes that a ``LayerNormalization`` normalizes a tensor of ``rank`` over, from 0 on."""
    return [int(axis) % rank for axis in np.atleast_1d(layer.axis)]


def _layer(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    """By the standard deviation over trailing axes (Ba et al. 2016, arXiv:1607.06450)."""
    scaling = getattr(layer, "rms_scaling", False)  # by the variance, without the mean
    return None if scaling else _trailing(layer, call, x, True, layer.gamma, layer.beta)


def _root_mean_square(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    """Zhang and Sennrich 2019, arXiv:1910.07467."""
    return _trailing(layer, call, x, False, layer.scale, None)


def _trailing(
    layer: Any, call: Call, x: tuple[Ref, ...], centred: bool, scale: Any, shift: Any
) -> Operation | None:
    shape = call.input_shapes[0]
    rank, found = len(shape), axes(layer, len(shape))
    if found != list(range(rank - len(found), rank)) or 0 in found:
        return None
    count = math.prod(shape[axis] or 0 for axis in found)
    return _operation(layer, call, x, count, centred, scale, shift, outer=found[0] - 1)


def _group(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    """Wu and He 2018, arXiv:1803.08494; -1 groups: a group for each channel."""
    shape = call.input_shapes[0]
    if len(shape) < 3 or layer.axis % len(shape) != len(shape) - 1 or None in shape[1:]:
        return None
    channels = int(shape[-1] or 0)
    groups = channels if layer.groups == -1 else int(layer.groups)
    count = math.prod(int(size or 0) for size in shape[1:]) // groups
    return _operation(layer, call, x, count, True, layer.gamma, layer.beta, groups=groups)


def _operation(
    layer: Any,
    call: Call,
    x: tuple[Ref, ...],
    count: int,
    centred: bool,
    scale: Any,
    shift: Any,
    **layout: int,
) -> Operation | None:
    """In float32 only, of rows of a known length; numbers are those the layer has by now."""
    kinds = {*call.input_dtypes, *call.dtypes, layer.dtype, layer.compute_dtype}
    if kinds != {"float32"} or not 0 < count <= LONGEST or len(x) != 1:
        return None
    options = {
        "centred": centred,
        "epsilon": float(layer.epsilon),
        "scale": _numbers(scale),
        "shift": _numbers(shift),
        "outer": None,
        "groups": None,
        **layout,
    }
    return Operation("normalize", x, options)


def _numbers(variable: Any) -> np.ndarray | None:
    return None if variable is None else np.asarray(variable, np.float64).ravel()


LAYERS: dict[str, Reader] = {
    "LayerNormalization": _layer,
    "GroupNormalization": _group,
    "RMSNormalization": _root_mean_square,
}
