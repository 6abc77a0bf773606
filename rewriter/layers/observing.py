"""Who looks on when layers quantize, and where the ranges are kept that they observe."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

Observer = Callable[[Any, Any], None]
Variables = dict[str, Any]

# Read when a function is traced.
_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar("obs", default=None)
_apart: contextvars.ContextVar[Mapping[int, Variables]] = contextvars.ContextVar(
    "apart", default=MappingProxyType({})
)


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Within: ``observer(layer, outputs)`` is called whenever a Quantize layer has quantized.

    Some of them are parts of other layers, whose insides nothing else shows.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def show(layer: Any, outputs: Any) -> None:
    """Let who observes see what a layer returns."""
    observer = _observer.get()
    if observer is not None:
        observer(layer, outputs)


@contextlib.contextmanager
def ranges_apart(variables: Mapping[int, Variables]) -> Iterator[None]:
    """Within, ranges are kept in other variables.

    Args:
      variables: by the id of a layer, what its ``range_variables`` are.
    """
    token = _apart.set(variables)
    try:
        yield
    finally:
        _apart.reset(token)


def variables_of(layer: Any, own: Variables) -> Variables:
    """The variables of a layer's range: its own, but within :func:`ranges_apart`."""
    return _apart.get().get(id(layer), own)
