"""BATCH_MATMUL: products of two int8 activations."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from rewriter.litert.integer_conv import requantize
from rewriter.litert.integer_elementwise import operands
from rewriter.litert.integer_fixed_point import multiply_tensor
from rewriter.program import Operator


def batch_matmul(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """``BATCH_MATMUL`` of (..., M, K) and (..., K, N), or (..., N, K) with ``transposed``.

    Exact sums in int32, and one fixed-point multiplication; by XNNPACK, where the second operand
    has the zero point of a kernel, one in float32.
    """
    (a, b), (first, second), output = operands(operator, *q)
    sums = tf.matmul(
        a - first.zero_point, b - second.zero_point, transpose_b=operator.attributes["transposed"]
    )
    if second.zero_point == 0:  # XNNPACK takes it for a kernel
        scale = np.float32(first.scale) * np.float32(second.scale) / np.float32(output.scale)
        return requantize(sums, scale, output, operator.activation)
    # The product in float32, the quotient in double precision.
    step = float(np.float32(first.scale) * np.float32(second.scale))
    scale = step / float(np.float32(output.scale))
    result = multiply_tensor(sums, scale) + output.zero_point
    return tf.clip_by_value(result, output.qmin, output.qmax)
