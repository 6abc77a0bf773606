"""The arithmetic of training: tensors in, tensors out. Layers call TensorFlow's kernels from here.

There are two implementations of the same functions:

- ``plain`` (:mod:`rewriter.kernels.plain`): public TensorFlow only. It is the specification, what
  the tests compare the other one with, and the way out where the other one cannot be used: on a
  TensorFlow that lacks what it needs, or for second gradients in a ``tf.function``.
- ``fast`` (:mod:`rewriter.kernels.fast`): the same values at the speed of the float model, by
  graph functions that all layers share, gradients by hand and nodes made directly.

The environment variable ``REWRITER_KERNELS`` chooses, when this package is imported; ``fast`` where
it is not set. If this TensorFlow lacks a private name that ``fast`` uses, ``plain`` is taken, with
one warning.

What may be done here: arithmetic on tensors, and reading and writing of variables that are given.
Nothing here knows Keras, layers or models, and names that are private to TensorFlow occur in
``fast`` alone. Callers write ``kernels.convolution(...)`` and do not import the functions, so that
:func:`using` reaches them. :mod:`rewriter.kernels.composed_norm` and
:mod:`rewriter.kernels.moments` are public TensorFlow, and there is no faster form of them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the signatures are those of the specification
    from rewriter.kernels.plain import (
        activation,
        assign_variable,
        batch_norm,
        clamped,
        connect,
        connected,
        convolution,
        depthwise_convolution,
        fixed_activation,
        layer_norm_deviations,
        layer_norm_mean,
        layer_norm_output,
        moved,
        quantized_kernel,
        read_variable,
        tensor,
    )

VARIABLE = "REWRITER_KERNELS"
IMPLEMENTATIONS = ("plain", "fast")

__all__ = [
    "IMPLEMENTATIONS",
    "VARIABLE",
    "activation",
    "assign_variable",
    "batch_norm",
    "clamped",
    "connect",
    "connected",
    "convolution",
    "current",
    "depthwise_convolution",
    "fixed_activation",
    "layer_norm_deviations",
    "layer_norm_mean",
    "layer_norm_output",
    "moved",
    "quantized_kernel",
    "read_variable",
    "snapped",
    "snapped_slopes",
    "tensor",
    "using",
]


def _chosen() -> str:
    """The implementation that the environment asks for, or ``plain`` where it cannot be had.

    Raises:
      ValueError: for another value of the environment variable.
    """
    wanted = os.environ.get(VARIABLE) or "fast"
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f"{VARIABLE} must be 'plain' or 'fast'. Received: {wanted!r}.")
    if wanted == "fast":
        try:
            importlib.import_module(f"{__name__}.fast")
        except (ImportError, AttributeError) as error:
            if f"{__name__}.fast.private" in sys.modules:  # all private names are there
                raise
            warnings.warn(
                f"This TensorFlow lacks what rewriter's fast kernels need ({error}). Its plain "
                f"ones are used, which train more slowly; {VARIABLE}=plain asks for them.",
                stacklevel=2,
            )
            return "plain"
    return wanted


_current = _chosen()


def current() -> str:
    """The implementation in use: ``"plain"`` or ``"fast"``."""
    return _current


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """Within: what is called or traced, in any thread, takes the implementation ``name``.

    For comparisons and tests. What has been traced before stays as it is.

    Args:
      name: ``"plain"`` or ``"fast"``; ValueError for anything else.
    """
    global _current
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"Kernels are 'plain' or 'fast'. Received: {name!r}.")
    before, _current = _current, name
    try:
        yield
    finally:
        _current = before


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_current}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
