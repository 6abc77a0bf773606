"""Which of LiteRT's kernels an operator with constants runs on, and how those round.

By default XNNPACK's delegate takes what it can (see :mod:`rewriter.litert.integer_conv`); the rest
is left to LiteRT's builtin kernels, which requantize in fixed point with two roundings. The second
takes halves up where the kernel is vectorized (all channels of a matrix product, eight at a time
elsewhere), and away from zero where it is not. Of activations of 16 bits all is left to the builtin
kernels, which round once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from rewriter.errors import RewriterError
from rewriter.grid import BITS
from rewriter.litert.integer_fixed_point import quantize_multiplier
from rewriter.program import Operator

_VECTOR = 8  # channels


def _even(operator: Operator) -> bool:
    """Two inputs to the byte."""
    return kernel_of(operator).shape[0] % 2 == 0


def _reaches(operator: Operator) -> bool:
    """No kernel smaller than the stride, where the padding is SAME."""
    attributes = operator.attributes
    sizes = zip(kernel_of(operator).shape[:2], attributes["strides"], strict=True)
    return attributes["padding"] != "SAME" or all(size >= stride for size, stride in sizes)


# The operators that XNNPACK's delegate takes, by the width of the stored kernel; and which of them.
_DELEGATED: dict[tuple[str, int | None], Callable[[Operator], bool]] = {
    ("CONV_2D", 8): lambda operator: True,
    ("DEPTHWISE_CONV_2D", 8): lambda operator: True,
    ("FULLY_CONNECTED", 8): lambda operator: True,
    ("FULLY_CONNECTED", 4): _even,
    ("TRANSPOSE_CONV", 8): _reaches,
}


def delegated(operator: Operator) -> bool:
    """Whether XNNPACK computes a convolution or a product on LiteRT's default path."""
    source = operator.inputs[0]
    if source is not None and source.bits > BITS:
        return False
    takes = _DELEGATED.get((operator.kind, operator.kernel_storage_bits))
    return takes is not None and takes(operator)


def product(operator: Operator, channels: int | None) -> Operator:
    """The operator itself, or the FULLY_CONNECTED that it is and that runs where it would not.

    While lowering, before there is a bias: how that is rounded depends on what runs.

    Args:
      operator: with a kernel.
      channels: of its input.
    """
    kernel = operator.kernel
    if operator.kind != "CONV_2D" or kernel is None or delegated(operator):
        return operator
    pointwise = kernel.shape[:2] == (1, 1) and kernel.shape[2] == channels
    if not pointwise or list(operator.attributes["strides"]) != [1, 1]:
        return operator
    attributes = {"keep_num_dims": True}
    made = dataclasses.replace(
        operator, kind="FULLY_CONNECTED", attributes=attributes, kernel=kernel[0, 0]
    )
    return made if delegated(made) else operator


def vectorized(operator: Operator, channels: int | None) -> np.ndarray:
    """Which output channels a builtin kernel requantizes in vectors; ``channels``: the input's."""
    count = np.asarray(operator.kernel_scale).size
    if operator.kind in ("DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
        return np.arange(count) < count // _VECTOR * _VECTOR
    grouped = operator.kind == "CONV_2D" and kernel_of(operator).shape[2] != channels
    return np.full(count, not grouped)  # grouped: the reference kernel


def rounding_offset(operator: Operator, channels: int | None) -> np.ndarray:
    """What is added to a result before it is rounded to the nearest, in steps of the output.

    0 on XNNPACK. Two roundings of halves up, the first to steps of ``2**-k``, are one of
    ``x + 2**-(k + 1)``, which a bias can make up for.

    Args:
      operator: with a kernel.
      channels: of its input.

    Returns:
      float64, one number for each output channel.
    """
    scale = np.asarray(operator.kernel_scale, np.float64)
    source, output = operator.inputs[0], operator.output
    if delegated(operator) or source is None or output is None or source.bits > BITS:
        return np.zeros_like(scale)
    shifts = np.array(
        [quantize_multiplier(real)[1] for real in scale * source.scale / output.scale]
    )
    twice = vectorized(operator, channels) & (shifts < 0)
    return np.where(twice, 2.0 ** (np.minimum(shifts, 0) - 1), 0.0)


def kernel_of(operator: Operator) -> np.ndarray:
    """The kernel's integers.

    Raises:
      RewriterError: there are none.
    """
    if operator.kernel is None or operator.kernel_scale is None:
        raise RewriterError(f"{operator.kind} needs a kernel and its scale. Received: none.")
    return operator.kernel
