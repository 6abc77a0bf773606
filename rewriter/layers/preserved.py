"""Kernels that were pruned or clustered before, and stay so while training.

Nothing is stored for zeros: a weight that is 0 gets no gradient, and an optimizer that updates each
weight by itself (all of Keras's but Muon) keeps a weight of 0 with gradients of 0. For clusters a
variable says which weights are equal: each reads the first one of its cluster, and the gradients
within a cluster are averaged (as for the centroids of Han et al. 2016, arXiv:1510.00149, section 3,
divided by how many weights they are for), so that equal weights are updated equally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import RecipeError
from rewriter.keras_compat.variables import read

SPARSITY, CLUSTERS = "sparsity", "clusters"
MEANINGS = {SPARSITY: "0 in part", CLUSTERS: "of few distinct values"}
KINDS = tuple(MEANINGS)
MOST = 256  # clusters of one kernel; what has more was not clustered


def kinds(value: Any) -> tuple[str, ...]:
    """The field ``preserve`` of a recipe: one of :data:`KINDS`, several, or None.

    Raises:
      RecipeError: for anything else.
    """
    several = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(several, (list, tuple)) or not set(several) <= set(KINDS):
        raise RecipeError(f"preserve must be one or several of {list(KINDS)}. Received: {value!r}.")
    return tuple(kind for kind in KINDS if kind in several)


def found(values: np.ndarray, wanted: Sequence[str]) -> tuple[str, ...]:
    """Which of the wanted kinds a kernel has: zeros, or few distinct values."""
    has = {SPARSITY: lambda: bool((values == 0).any()), CLUSTERS: lambda: _clustered(values)}
    return tuple(kind for kind in wanted if has[kind]())


def _clustered(values: np.ndarray) -> bool:
    if not np.isfinite(values).all():
        return False
    count = len(np.unique(values))
    return count <= MOST and 2 * count <= values.size


def build(host: Any, index: int) -> None:
    """Give a host that is being built what it needs to preserve a kernel.

    For clusters a variable, which says that every weight is its own until :func:`remember`.
    """
    if CLUSTERS in host.preserve[index]:
        size = math.prod(getattr(host.host, host.kernel_names[index]).shape)
        options = {"dtype": "int32", "trainable": False}
        made = host.flavour.add_weight(host, _name(index), (size,), _each, **options)
        setattr(host, _name(index), made)


def _name(index: int) -> str:
    return f"cluster{index}"


def _each(shape: Any, dtype: Any = None, **_: Any) -> Any:
    return tf.range(shape[0], dtype=dtype or tf.int32)


def remember(host: Any) -> None:
    """Keep which weights are equal now, where clusters are to be preserved."""
    for index, name in enumerate(host.kernel_names):
        variable = getattr(host, _name(index), None)
        if variable is not None:
            variable.assign(firsts(read(getattr(host.host, name))))


def kernel(host: Any, index: int) -> Any:
    """A kernel in float, as a tensor: the variable, but for what is preserved of it."""
    index %= len(host.kernel_names)
    variable = getattr(host, _name(index), None)
    value = tf.convert_to_tensor(getattr(host.host, host.kernel_names[index]))
    which = None if variable is None else host.flavour.tf_variable(variable)
    return kept(value, host.preserve[index], which)


def values(host: Any, index: int) -> np.ndarray:
    """The same, read."""
    if not host.preserve[index]:
        return read(getattr(host.host, host.kernel_names[index]))
    return np.asarray(kernel(host, index))


def firsts(values: np.ndarray) -> np.ndarray:
    """For each weight, which is the first that equals it: int32, (weights,)."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first.astype(np.int32)[inverse.reshape(-1)]


def kept(value: Any, wanted: Sequence[str], first: Any) -> Any:
    """A kernel whose zeros, or equal weights, stay so when its gradient is applied.

    Args:
      value: floating point, any shape.
      wanted: of :data:`KINDS`; none: the value itself.
      first: int32, of :func:`firsts`; None where clusters are not wanted.

    Returns:
      The dtype and shape of ``value``, and its values where equal weights still are.
    """
    if not wanted:
        return value

    @tf.custom_gradient
    def preserving(value: Any) -> Any:
        flat = tf.reshape(value, [-1])
        same = flat if first is None else tf.gather(flat, first)

        def gradient(upstream: Any) -> Any:
            up = tf.reshape(upstream, [-1])
            if first is not None:
                count = tf.size(flat)
                total = tf.math.unsorted_segment_sum(up, first, count)
                members = tf.math.unsorted_segment_sum(tf.ones_like(up), first, count)
                up = tf.gather(tf.math.divide_no_nan(total, members), first)
            if SPARSITY in wanted:
                up = tf.where(same == 0, tf.zeros_like(up), up)
            return tf.reshape(up, tf.shape(upstream))

        return tf.reshape(same, tf.shape(value)), gradient

    result = preserving(tf.convert_to_tensor(value))
    result.set_shape(value.shape)
    return result
