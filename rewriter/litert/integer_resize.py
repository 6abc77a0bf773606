"""RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR on raw int8 values."""

from __future__ import annotations

import tensorflow as tf

from rewriter.grid import BITS
from rewriter.litert.integer_elementwise import require_same
from rewriter.program import Operator


def resize_nearest_neighbor(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``RESIZE_NEAREST_NEIGHBOR``: picks elements, by float32 coordinates."""
    require_same(operator.kind, operator.output, *operator.inputs)
    aligned, centred = _flags(operator)
    for axis, size in zip((1, 2), operator.attributes["size"], strict=True):
        length = tf.shape(q)[axis]
        place = tf.range(size, dtype=tf.float32) + (0.5 if centred else 0.0)
        place *= _step(length, size, aligned)
        # TfLiteRound takes halves away from zero, and nothing here is negative.
        index = tf.cast(tf.floor(place + 0.5) if aligned else tf.floor(place), tf.int32)
        q = tf.gather(q, tf.clip_by_value(index, 0, length - 1), axis=axis)
    return q


def resize_bilinear(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``RESIZE_BILINEAR``, XNNPACK's ``s8-ibilinear``: weights in Q11, one rounding (half up)."""
    require_same(operator.kind, operator.output, *operator.inputs)
    if operator.output is not None and operator.output.bits > BITS:
        return _of_wide(operator, q)
    height, width = operator.attributes["size"]
    top, bottom, down = _neighbours(operator, tf.shape(q)[1], height)
    left, right, across = _neighbours(operator, tf.shape(q)[2], width)
    down, across = down[:, None, None], across[None, :, None]

    def blended(row: tf.Tensor) -> tf.Tensor:
        first, second = tf.gather(row, left, axis=2), tf.gather(row, right, axis=2)
        return first * 2**11 + (second - first) * across

    upper, lower = blended(tf.gather(q, top, axis=1)), blended(tf.gather(q, bottom, axis=1))
    total = upper * 2**11 + (lower - upper) * down + 2**21
    return tf.bitwise.right_shift(total, tf.constant(22, tf.int32))


def _of_wide(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """LiteRT's ``ResizeBilinearInteger``: places in Q10, and halves away from zero."""
    height, width = operator.attributes["size"]
    top, bottom, down = _in_tenths(operator, tf.shape(q)[1], height)
    left, right, across = _in_tenths(operator, tf.shape(q)[2], width)
    down, across = down[:, None, None], across[None, :, None]
    q = tf.cast(q, tf.int64)

    def blended(row: tf.Tensor) -> tf.Tensor:
        first, second = tf.gather(row, left, axis=2), tf.gather(row, right, axis=2)
        return first * (2**10 - across) + second * across

    upper, lower = blended(tf.gather(q, top, axis=1)), blended(tf.gather(q, bottom, axis=1))
    total = upper * (2**10 - down) + lower * down
    return tf.cast(tf.sign(total) * ((tf.abs(total) + 2**19) // 2**20), tf.int32)


def _in_tenths(
    operator: Operator, length: tf.Tensor, size: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """As :func:`_neighbours`, with weights in Q10 of a step in Q10; they may be negative."""
    aligned, centred = _flags(operator)
    less = 1 if aligned and size > 1 else 0
    step = (2**10 * (length - less) + (size - less) // 2) // (size - less)
    place = tf.range(size) * step
    if centred:
        place += step // 2 - 2**9
    # C's division takes what is before the first pixel to it.
    first = tf.maximum(place, 0) // 2**10
    last = tf.minimum(tf.maximum(place + 2**10 - 1, 0) // 2**10, length - 1)
    return first, last, tf.cast(place - 2**10 * first, tf.int64)


def _neighbours(
    operator: Operator, length: tf.Tensor, size: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """For every output place: the inputs before and after it, and the latter's weight in Q11."""
    aligned, centred = _flags(operator)
    step = _step(length, size, aligned)
    place = tf.range(size, dtype=tf.float32) * step
    if centred and not aligned:
        place += 0.5 * step - 0.5
    last = tf.cast(length - 1, tf.float32)
    place = tf.clip_by_value(place, 0.0, last)
    before = tf.floor(place)
    weight = tf.cast(tf.round((place - before) * 2.0**11), tf.int32)
    first = tf.cast(before, tf.int32)
    return first, tf.minimum(first + 1, length - 1), weight


def _flags(operator: Operator) -> tuple[bool, bool]:
    attributes = operator.attributes
    return attributes.get("align_corners", False), attributes.get("half_pixel_centers", False)


def _step(length: tf.Tensor, size: int, aligned: bool) -> tf.Tensor:
    """Input places per output place, float32."""
    less = 1 if aligned and size > 1 else 0
    return tf.cast(length - less, tf.float32) / float(size - less)
