"""The range that a layer had before a batch, for layers that a batch passes several times.

What concatenations join, and what pooling reads and writes, has one range in LiteRT, so one layer
quantizes all of it. The moving average must follow their union.
"""

from __future__ import annotations

import weakref
from typing import Any

import tensorflow as tf

_RANGES = "_rewriter_ranges"  # of a graph: by layer and replica
# Eagerly, no graph says where a batch begins: how often each layer has been called, and its range.
_eagerly: weakref.WeakKeyDictionary[Any, dict[int, Any]] = weakref.WeakKeyDictionary()
_NEVER = 0, None


def recalled(layer: Any, places: int) -> Any:
    """The range before the batch that is passing, or None where it begins.

    Args:
      layer: that quantizes.
      places: in how many places of its model it stands. A function that is traced is one batch;
        eagerly, so many calls in a row are.
    """
    calls, before = _known(layer).get(_replica(), _NEVER)
    return None if tf.executing_eagerly() and calls % max(places, 1) == 0 else before


def remember(layer: Any, before: Any) -> None:
    """After each call: what the next :func:`recalled` may return."""
    known, replica = _known(layer), _replica()
    calls, _ = known.get(replica, _NEVER)
    known[replica] = calls + 1, before


def _known(layer: Any) -> dict[int, Any]:
    if tf.executing_eagerly():
        return _eagerly.setdefault(layer, {})
    graph = tf.compat.v1.get_default_graph()
    if not hasattr(graph, _RANGES):
        setattr(graph, _RANGES, {})
    return getattr(graph, _RANGES).setdefault(layer, {})


def _replica() -> int:
    """Which of a strategy's replicas is being traced: they may share a graph."""
    context = tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None
    known = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
    return 0 if known is None else int(known)
