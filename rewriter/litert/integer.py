"""What LiteRT computes, in TensorFlow operators on raw integers.

Every function here takes an :class:`~rewriter.program.Operator` and int32 tensors that hold int8
or int16 values, or whole numbers, batch first, and returns the raw output as the default CPU path
of LiteRT's interpreter computes it: XNNPACK where its delegate takes the operator, the builtin
kernel elsewhere. Scale arithmetic is float32, as in the file.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from rewriter.errors import RewriterError
from rewriter.litert import (
    integer_conv,
    integer_elementwise,
    integer_indexes,
    integer_matmul,
    integer_norm,
    integer_resize,
    integer_spatial,
    integer_tables,
    integer_wide,
)
from rewriter.program import Operator

_KERNELS: dict[str, Callable[..., tf.Tensor]] = {
    "CONV_2D": integer_conv.conv_2d,
    "DEPTHWISE_CONV_2D": integer_conv.depthwise_conv_2d,
    "FULLY_CONNECTED": integer_conv.fully_connected,
    "TRANSPOSE_CONV": integer_conv.transpose_conv,
    "ADD": integer_elementwise.add,
    "SUB": integer_elementwise.subtract,
    "MUL": integer_elementwise.product,
    "MAXIMUM": integer_elementwise.maximum,
    "MINIMUM": integer_elementwise.minimum,
    "PRELU": integer_elementwise.prelu,
    "AVERAGE_POOL_2D": integer_spatial.average_pool_2d,
    "MAX_POOL_2D": integer_spatial.max_pool_2d,
    "MEAN": integer_spatial.mean,
    "REDUCE_MAX": integer_spatial.reduce_max,
    "REDUCE_MIN": integer_spatial.reduce_min,
    "DEPTH_TO_SPACE": integer_spatial.depth_to_space,
    "SPACE_TO_DEPTH": integer_spatial.space_to_depth,
    "BATCH_MATMUL": integer_matmul.batch_matmul,
    "SQUARED_DIFFERENCE": integer_elementwise.squared_difference,
    "SOFTMAX": integer_spatial.softmax,
    "L2_NORMALIZATION": integer_norm.l2_normalization,
    "RESHAPE": integer_spatial.reshape,
    "CONCATENATION": integer_spatial.concatenation,
    "PAD": integer_spatial.pad,
    "PADV2": integer_spatial.pad_lowest,
    "MIRROR_PAD": integer_spatial.mirror_pad,
    "TRANSPOSE": integer_spatial.transpose,
    "STRIDED_SLICE": integer_spatial.strided_slice,
    "RESIZE_NEAREST_NEIGHBOR": integer_resize.resize_nearest_neighbor,
    "RESIZE_BILINEAR": integer_resize.resize_bilinear,
    "DEQUANTIZE": integer_tables.dequantize,
    **dict.fromkeys(integer_tables.FILLERS, integer_tables.lookup),
    "QUANTIZE": integer_tables.quantize,
    "SQRT": integer_norm.square_root,
    "CAST": integer_indexes.cast,
    "GATHER": integer_indexes.gather,
    "ONE_HOT": integer_indexes.one_hot,
    "ARG_MAX": integer_indexes.arg_max,
    "ARG_MIN": integer_indexes.arg_min,
}

SUPPORTED = frozenset(_KERNELS)


def compute(operator: Operator, *q: tf.Tensor) -> tf.Tensor:
    """Computes one operator on raw quantized integers, exactly as LiteRT does.

    Args:
      operator: what to compute.
      *q: the inputs, int32 tensors that hold int8 values; float32 where ``operator.inputs`` has
        ``None`` (``QUANTIZE`` from float).

    Returns:
      The raw output, int32; float32 for ``DEQUANTIZE``.

    Raises:
      RewriterError: there is no integer kernel for ``operator.kind``, or its quantizations are
        ones that LiteRT computes otherwise.
    """
    if operator.kind not in _KERNELS:
        raise RewriterError(
            f"No integer kernel for {operator.kind!r}. Supported: {sorted(SUPPORTED)}."
        )
    if integer_wide.is_wide(operator):
        found = integer_wide.compute(operator, *q)
        if found is not None:
            return found
    return _KERNELS[operator.kind](operator, *q)
