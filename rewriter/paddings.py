"""What a convolution pads by itself, and what a layer before it has padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def explicit(
    lengths: Sequence[int | None], sizes: Sequence[int], strides: Sequence[int], padding: str
) -> list[int] | None:
    """Zeros before and after each spatial axis, undilated (TensorFlow's ``tf.nn.convolution``).

    Args:
      lengths, sizes, strides: of the image, of the kernel, one for each axis.
      padding: ``"VALID"`` or ``"SAME"``.

    Returns:
      Before and after the first axis, before and after the second; None where it depends on a
      length that is not known.
    """
    if padding == "VALID":
        return [0] * 2 * len(sizes)
    found = []
    for length, size, stride in zip(lengths, sizes, strides, strict=True):
        if length is None and stride > 1:
            return None
        last = 0 if length is None else (-(-length // stride) - 1) * stride - (length - 1)
        total = max(size - 1 + last, 0)
        found += [total // 2, total - total // 2]
    return found


def absorbed(x: Any, sizes: Sequence[int], strides: Sequence[int], padding: str) -> tuple[Any, str]:
    """What a convolution may be given in place of ``x``, with which padding, for the same output.

    Keras's applications pad by a layer of its own before a strided convolution. Where that is what
    ``"SAME"`` adds, the copy is not needed, neither forward nor backward. Gradients then pass
    it by: one asked for the padded tensor itself, inside of a model in training, lacks this path.

    Args:
      x: (N, H, W, C).
      sizes, strides: two each.
      padding: ``"VALID"`` or ``"SAME"``.
    """
    made_by = getattr(x, "op", None)  # an eager tensor, also one in a graph, has none
    if padding != "VALID" or made_by is None or made_by.type != "Pad":
        return x, padding
    source, added = made_by.inputs[0], tf.get_static_value(made_by.inputs[1])
    wanted = explicit(source.shape[1:3], sizes, strides, "SAME")
    if added is None or wanted is None or added.ravel().tolist() != [0, 0, *wanted, 0, 0]:
        return x, padding
    return source, "SAME"
