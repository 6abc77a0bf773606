"""What bias correction adds to each output channel of a linear layer in phase ``quantize``.

Rounding a kernel moves the mean of what a layer computes; that is seen in calibration data and
taken back (Nagel et al. 2019, arXiv:1906.04721, section 4.2). The values are a variable of their
own, so that the model in phase ``float`` stays what it was; a file has them in its biases.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import kernels
from rewriter.keras_compat.variables import read
from rewriter.layers import channels
from rewriter.quantization import phases

Tap = Callable[[Any, Any], Any]
_tap: contextvars.ContextVar[Tap | None] = contextvars.ContextVar("tap", default=None)


@contextlib.contextmanager
def tapped(tap: Tap) -> Iterator[None]:
    """Within: a QuantizedHost goes on with ``tap(layer, y)`` in the place of ``y``.

    ``y`` is what it has computed with its bias and its normalization, before its activation.
    """
    token = _tap.set(tap)
    try:
        yield
    finally:
        _tap.reset(token)


def through(host: Any, y: Any) -> Any:
    """``y`` itself, which may be pending, or what a tap makes of it."""
    tap = _tap.get()
    return y if tap is None else tap(host, kernels.connected(y))


def build(host: Any) -> None:
    """Give a host that is being built its variable, if its bias is to be corrected."""
    host.correction = None
    if host.bias_correction:
        size = math.prod(channels.sizes(host))
        host.correction = host.flavour.add_weight(
            host, "bias_correction", (size,), "zeros", dtype="float32", trainable=False
        )


def added(host: Any, shift: Any | None, phase: Any) -> Any | None:
    """What is added to the biases in ``phase``: ``shift``, and the correction.

    Args:
      host: a QuantizedHost.
      shift: float32 (channels,), or None.
      phase: int32 scalar of :mod:`rewriter.quantization.phases`.
    """
    if host.correction is None:
        return shift
    value = tf.convert_to_tensor(host.correction)
    value = tf.where(phase >= phases.QUANTIZE, value, tf.zeros_like(value))
    return value if shift is None else shift + value


def values(host: Any) -> np.ndarray | float:
    """The correction as float64 (channels,); 0 for a layer without one."""
    return 0.0 if host.correction is None else read(host.correction).astype(np.float64)
