"""The normalization layer: the stock one, and ours of the same Keras."""

from __future__ import annotations

from typing import Any

from rewriter import layers


def bn(k: Any, name: str = "bn", **kwargs: Any) -> Any:
    """A normalization called ``name``."""
    return k.layers.BatchNormalization(name=name, **kwargs)


def fused(kind: str) -> Any:
    """Our class for this Keras."""
    return getattr(layers, kind).FusedBatchNormalization
