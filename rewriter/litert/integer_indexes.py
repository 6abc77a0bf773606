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


def one_hot(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``ONE_HOT`` on a new last axis: all ``off`` for numbers below 0 or of ``depth`` and more."""
    on, off = (tf.constant(operator.attributes[name], tf.int32) for name in ("on", "off"))
    return tf.one_hot(q, int(operator.attributes["depth"]), on, off, dtype=tf.int32)


def cast(operator: Operator, q: tf.Tensor) -> tf.Tensor:
    """``CAST``: whole numbers as float32, or as others; the integers of a grid as whole numbers.

    Raises:
      RewriterError: it would make something else.
    """
    grids = (operator.inputs[0], operator.output)
    given, made = ("float" if g is None else "whole" if g.whole else "grid" for g in grids)
    if made == "grid" or (given == "grid" and made != "whole"):
        raise RewriterError(f"CAST makes whole numbers, or float of them. Received: {grids}.")
    return tf.cast(q, tf.float32 if operator.output is None else tf.int32)
