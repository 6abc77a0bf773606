"""The arithmetic of training in public TensorFlow: the specification of the fast kernels.

Every function is the formula of its docstring, with conditions by ``tf.switch_case`` and
straight-through gradients by ``tf.custom_gradient``; TensorFlow differentiates all else, as often
as it is asked to. A layer whose phase, or whether it is frozen, is known has no condition.

Where the fast kernels return a tensor whose gradient is still to be connected, these return an
ordinary tensor: :func:`tensor` and :func:`connected` have nothing to do.
"""

from rewriter.kernels.plain.layer_norm import (
    layer_norm_deviations,
    layer_norm_mean,
    layer_norm_output,
)
from rewriter.kernels.plain.linear import (
    batch_norm,
    convolution,
    depthwise_convolution,
    moved,
)
from rewriter.kernels.plain.quantization import (
    activation,
    clamped,
    fixed_activation,
    quantized_kernel,
    snapped,
    snapped_slopes,
)
from rewriter.kernels.plain.tensors import (
    assign_variable,
    connect,
    connected,
    read_variable,
    tensor,
)

__all__ = [
    "activation",
    "assign_variable",
    "batch_norm",
    "clamped",
    "connect",
    "connected",
    "convolution",
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
]
