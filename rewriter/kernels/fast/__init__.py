"""The kernels of :mod:`rewriter.kernels.plain` at the speed of the float model's step.

The same functions with the same values. What differs is how a graph comes by them: conditions are
traced once for all layers (:mod:`.switch`), gradients are given by hand, for several functions in a
row at once (:mod:`.gradients`), hundreds of equal nodes are made without TensorFlow's wrappers
(:mod:`.nodes`), and the gradients of convolutions take the fastest way that this machine has.
``docs/performance.md`` has what each is worth.

Results may be pending: :func:`connected` makes tensors of them that TensorFlow can differentiate.
Inside of a ``tf.function`` there are first gradients only.
"""

from rewriter.kernels.fast.convolutions import convolution
from rewriter.kernels.fast.depthwise import depthwise_convolution
from rewriter.kernels.fast.fake_quant import (
    activation,
    clamped,
    fixed_activation,
    quantized_kernel,
    snapped,
    snapped_slopes,
)
from rewriter.kernels.fast.fused_norm import batch_norm
from rewriter.kernels.fast.gradients import connect, connected, moved, tensor
from rewriter.kernels.fast.layer_norm import (
    layer_norm_deviations,
    layer_norm_mean,
    layer_norm_output,
)
from rewriter.kernels.fast.nodes import assign_variable, read_variable

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
