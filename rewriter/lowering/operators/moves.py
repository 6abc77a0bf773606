"""Operations that only move values about, and resizing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rewriter.errors import ExportError
from rewriter.grid import BITS
from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value, batched
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

Range = tuple[int, int, int]


def _concatenate(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> Value:
    filled = [value for value in x if 0 not in value.shape[1:]]  # the kernel takes no empty ones
    return low.apply("CONCATENATION", call, filled or x, axis=operation.options["axis"])


def _stack(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    axis = operation.options["axis"]
    parts = [low.reshape(call, value, (*value.shape[:axis], 1, *value.shape[axis:])) for value in x]
    return low.apply("CONCATENATION", call, parts, axis=axis)


def _reshape(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return low.reshape(call, x[0], batched(call.shapes[0]))


def _transpose(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    perm = operation.options["perm"]
    return low.apply("TRANSPOSE", call, x, tuple(x[0].shape[axis] for axis in perm), perm=perm)


def _pad(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    kind = "PADV2" if operation.options.get("lowest") else "PAD"
    return low.apply(kind, call, x, paddings=operation.options["paddings"])


def _mirror_pad(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return low.apply("MIRROR_PAD", call, x, **operation.options)


def _sliced(low: ProgramBuilder, call: Call, x: Value, ranges: Sequence[Range]) -> Value:
    """``ranges``: (start, stop, step) of all axes but the batch; a stop of -1: before the first."""
    shape = (None, *(len(range(*part)) for part in ranges))
    if shape == x.shape and all(step > 0 for _, _, step in ranges):
        return x
    begin, end, strides = zip((0, 0, 1), *ranges, strict=True)
    open_ends = sum(1 << axis for axis, stop in enumerate(end) if axis == 0 or stop < 0)
    return low.apply(
        "STRIDED_SLICE",
        call,
        [x],
        shape,
        begin=list(begin),
        end=list(end),
        strides=list(strides),
        begin_mask=1,
        end_mask=open_ends,
    )


def _slice(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    part = _sliced(low, call, x[0], operation.options["ranges"])
    return low.reshape(call, part, batched(call.shapes[0]))


def _split(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> list[Value]:
    sizes = low.static(x[0].shape, call)
    axis, start, parts = operation.options["axis"], 0, []
    for width in operation.options["sizes"]:
        ranges = [(0, size, 1) for size in sizes]
        ranges[axis - 1] = (start, start + width, 1)
        parts.append(_sliced(low, call, x[0], ranges))
        start += width
    return parts


def _resized(
    low: ProgramBuilder,
    call: Call,
    x: Value,
    size: Sequence[int],
    kind: str,
    align_corners: bool = False,
    half_pixel_centers: bool = True,
) -> Value:
    shape = (None, *size, x.shape[-1])
    if kind == "RESIZE_BILINEAR" and low.grid(x).bits > BITS:
        _require_exact(low, call, x, size, align_corners)
    return low.apply(
        kind,
        call,
        [x],
        shape,
        size=list(size),
        align_corners=align_corners,
        half_pixel_centers=half_pixel_centers,
    )


def _require_exact(
    low: ProgramBuilder, call: Call, x: Value, size: Sequence[int], aligned: bool
) -> None:
    """Raise ExportError where LiteRT's steps, rounded to 1/1024 pixels, add up to errors."""
    for before, after in zip(low.static(x.shape, call), size, strict=False):
        less = 1 if aligned and after > 1 else 0
        if (before - less) * 1024 % max(after - less, 1):
            raise ExportError(
                f"Layer {call.path!r} resizes {before} pixels to {after} in 16 bits: LiteRT rounds "
                "the step from one to the next to a 1024th, and is off by more with each. Resize "
                'by a power of two, by "nearest", or use the recipe "int8".'
            )


def _resize(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    bilinear = operation.options["method"] == "bilinear"
    kind = "RESIZE_BILINEAR" if bilinear else "RESIZE_NEAREST_NEIGHBOR"
    flags = {key: operation.options[key] for key in ("align_corners", "half_pixel_centers")}
    return _resized(low, call, x[0], operation.options["size"], kind, **flags)


def _upsample(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """Every step several times, along one, two or three axes; two of them at a time."""
    factors = list(operation.options["factors"])
    *sizes, channels = low.static(x[0].shape, call)
    if len(factors) == 1:
        factors, sizes = [*factors, 1], [*sizes, 1]
    value = x[0]
    if len(factors) == 3:
        depth, *plane = sizes
        rows = plane[0] * plane[1] * channels
        value = low.reshape(call, value, (None, depth, 1, rows))
        value = _resized(low, call, value, [depth * factors[0], 1], "RESIZE_NEAREST_NEIGHBOR")
        sizes, factors = [depth * factors[0] * plane[0], plane[1]], factors[1:]
    value = low.reshape(call, value, (None, *sizes, channels))
    size = [n * f for n, f in zip(sizes, factors, strict=True)]
    value = _resized(low, call, value, size, "RESIZE_NEAREST_NEIGHBOR")
    return low.reshape(call, value, batched(call.shapes[0]))


def _repeat(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    (features,) = low.static(x[0].shape, call)
    value = low.reshape(call, x[0], (None, 1, 1, features))
    value = _resized(low, call, value, [operation.options["count"], 1], "RESIZE_NEAREST_NEIGHBOR")
    return low.reshape(call, value, batched(call.shapes[0]))


def _repeat_samples(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> Value:
    """Every sample several times, one after the other: rows of one sample, then samples."""
    count, sizes = operation.options["count"], low.static(x[0].shape, call)
    if count == 1:
        return x[0]
    value = low.reshape(call, x[0], (None, 1, 1, math.prod(sizes)))
    value = _resized(low, call, value, [count, 1], "RESIZE_NEAREST_NEIGHBOR")
    return low.reshape(call, value, (None, *sizes))


def _unstack(
    low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]
) -> list[Value]:
    sizes = low.static(x[0].shape, call)
    axis = operation.options["axis"]
    parts = []
    for place in range(sizes[axis - 1]):
        ranges = [(0, size, 1) for size in sizes]
        ranges[axis - 1] = (place, place + 1, 1)
        part = _sliced(low, call, x[0], ranges)
        parts.append(low.reshape(call, part, batched(call.shapes[place])))
    return parts


def _take(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """Slices of neighbouring places, side by side; one slice where they are evenly apart."""
    sizes = low.static(x[0].shape, call)
    axis, places = operation.options["axis"], operation.options["places"]
    apart = {after - before for before, after in itertools.pairwise(places)}
    if len(apart) == 1 and 0 not in apart:
        (step,) = apart
        every = [(0, size, 1) for size in sizes]
        every[axis - 1] = (places[0], places[-1] + (1 if step > 0 else -1), step)
        return _sliced(low, call, x[0], every)
    starts = [i for i, place in enumerate(places) if not i or place != places[i - 1] + 1]
    parts = []
    for start, stop in zip(starts, [*starts[1:], len(places)], strict=True):
        ranges = [(0, size, 1) for size in sizes]
        ranges[axis - 1] = (places[start], places[stop - 1] + 1, 1)
        parts.append(_sliced(low, call, x[0], ranges))
    return _together(low, call, parts, axis)


def _together(low: ProgramBuilder, call: Call, parts: Sequence[Value], axis: int) -> Value:
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[axis] = sum(int(part.shape[axis] or 0) for part in parts)
    return low.apply("CONCATENATION", call, parts, tuple(shape), axis=axis)


def _tile(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    value = x[0]
    for axis, count in enumerate(operation.options["repeats"]):
        value = _together(low, call, [value] * count, axis)
    return value


def _patches(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    """Slices side by side, along one axis after the other, the last first.

    So the places of a patch have the order of its axes, and there are as many slices as the sum of
    its sizes, where taking each place by itself would take their product.
    """
    size, strides, rates = (operation.options[key] for key in ("size", "strides", "rates"))
    sizes = low.static(x[0].shape, call)[:-1]
    reach = [(k - 1) * rate + 1 for k, rate in zip(size, rates, strict=True)]
    pads = [0] * len(size)
    if operation.options["padding"] == "SAME":
        ends = [-(-n // s) * s - s + r for n, s, r in zip(sizes, strides, reach, strict=True)]
        pads = [max(end - n, 0) for end, n in zip(ends, sizes, strict=True)]
    square = len({*size, *strides}) == 1 and {*rates} == {1} and len(size) == 2
    if square and not any(pads) and not any(n % size[0] for n in sizes):
        return low.apply("SPACE_TO_DEPTH", call, x, block_size=size[0])
    value = x[0]
    if any(pads):
        widths = [[0, 0], *([pad // 2, pad - pad // 2] for pad in pads), [0, 0]]
        wider = (None, *(n + p for n, p in zip(sizes, pads, strict=True)), value.shape[-1])
        value = low.apply("PAD", call, [value], wider, paddings=widths)
    for axis in reversed(range(len(size))):
        shape = low.static(value.shape, call)
        ranges = [(0, n, 1) for n in shape]
        span = (shape[axis] - reach[axis]) // strides[axis] * strides[axis] + 1
        parts = []
        for start in range(0, size[axis] * rates[axis], rates[axis]):
            ranges[axis] = (start, start + span, strides[axis])
            parts.append(_sliced(low, call, value, ranges))
        value = _together(low, call, parts, len(shape))
    return value


def _blocks(kind: str) -> Row:
    def row(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
        return low.apply(kind, call, x, block_size=operation.options["block"])

    return row


ROWS: dict[str, Row] = {
    "unstack": _unstack,
    "take": _take,
    "tile": _tile,
    "patches": _patches,
    "depth_to_space": _blocks("DEPTH_TO_SPACE"),
    "space_to_depth": _blocks("SPACE_TO_DEPTH"),
    "concatenate": _concatenate,
    "stack": _stack,
    "reshape": _reshape,
    "transpose": _transpose,
    "pad": _pad,
    "mirror_pad": _mirror_pad,
    "slice": _slice,
    "split": _split,
    "resize": _resize,
    "upsample": _upsample,
    "repeat": _repeat,
    "repeat_samples": _repeat_samples,
}
