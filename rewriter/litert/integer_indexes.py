"""Operators whose results, or operands, are whole numbers: places and classes.

LiteRT's builtin kernels; XNNPACK takes none of them.
"""

from __future__ import annotations

import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.program import Operator


def arg_max(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``ARG_MAX``: the place of the largest integer along an axis; of several the first."""
    return tf.argmax(q, axis=_axis(operator), output_type=tf.int32)


def arg_min(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``ARG_MIN``: the place of the smallest integer along an axis; of several the first."""
    return tf.argmin(q, axis=_axis(operator), output_type=tf.int32)


def _axis(operator: Operator) -> int:
    if operator.output is None or not operator.output.whole:
        raise RewriterError(
            f"{operator.kind} returns whole numbers. Received: an output on {operator.output}."
        )
    return int(operator.attributes["axis"])


def gather(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``GATHER``: rows of a table of integers.

    LiteRT refuses to compute numbers below 0 or beyond the table, as ``tf.gather`` does.
    """
    return tf.gather(tf.constant(operator.attributes["table"], tf.int32), q)


def cast(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``CAST``: whole numbers as float32, or as others. Raises RewriterError for other tensors."""
    grids = (operator.inputs[0], operator.output)
    if any(grid is not None and not grid.whole for grid in grids):
        raise RewriterError(f"CAST takes and returns whole numbers or float. Received: {grids}.")
    return tf.cast(q, tf.float32 if operator.output is None else tf.int32)
