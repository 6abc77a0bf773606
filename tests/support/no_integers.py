"""Functions without an integer form, for tests of what stays in float.

One of each number by itself would be a table; these add up what is before it.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

ACTIVATION = "log_softmax"  # one that both Kerases have under this name


def sine(x: Any) -> Any:
    """Of the sums along the last axis."""
    return tf.sin(tf.cumsum(x, -1))


def cosine(x: Any) -> Any:
    """Of the sums along the last axis."""
    return tf.cos(tf.cumsum(x, -1))
