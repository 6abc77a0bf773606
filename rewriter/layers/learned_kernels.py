"""The kernels of a QuantizedHost whose scales training learns."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.layers import preserved
from rewriter.quantization import phases
from rewriter.quantization.learned import LearnedKernelQuantizer


def start(host: Any) -> None:
    """Give what is learned for the kernels of a host its first values, where it has none."""
    for index, quantizer in enumerate(host.kernel_quantizers):
        if isinstance(quantizer, LearnedKernelQuantizer):
            quantizer.start(_as_quantized(host, index), host.kernel_weights[index])


def scales(host: Any, index: int) -> Any | None:
    """The scales of a kernel that training learns, float32 (channels,) or (); else None."""
    quantizer = host.kernel_quantizers[index]
    if not isinstance(quantizer, LearnedKernelQuantizer):
        return None
    return quantizer.scales(_as_quantized(host, index), host.kernel_weights[index])


def switched(host: Any, index: int, phase: Any) -> Any:
    """A kernel as ``phase`` has it, with the dtype that it is kept in."""
    quantizer, weights = host.kernel_quantizers[index], host.kernel_weights[index]
    kernel = preserved.kernel(host, index)
    factor = tf.cast(host.factor(phase), tf.float32) if _folds(host, index) else None
    found = quantizer.switch(tf.cast(kernel, tf.float32), phase, weights, factor)
    if kernel.dtype == tf.float32:
        return found
    return tf.cond(  # in float it keeps its precision
        phase >= phases.QUANTIZE, lambda: tf.cast(found, kernel.dtype), lambda: kernel
    )


def folded(host: Any, phase: Any) -> Any:
    """The last kernel in float32, multiplied by what the normalization multiplies by."""
    kernel = preserved.kernel(host, -1)
    return tf.cast(kernel, tf.float32) * tf.cast(host.factor(phase), tf.float32)


def _folds(host: Any, index: int) -> bool:
    return host.folds_first and index == len(host.kernel_names) - 1


def _as_quantized(host: Any, index: int) -> Any:
    if _folds(host, index):
        return folded(host, tf.constant(phases.QUANTIZE))
    return tf.cast(preserved.kernel(host, index), tf.float32)
