"""Functions of TensorFlow and Keras without side effects: what a file may have called by name.

A ``TFOpLambda`` in a model of tf_keras, an activation, or a pipeline names a function, which is
then called with arguments that come from the file too: with ``io.write_file`` it would write any
file. So only functions listed here, or standing in a namespace that computes and does nothing
else, may be named. What counts is the function, not which of its names a file uses.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import private_tensorflow

# All functions in them compute values of tensors; their classes are left out.
_NAMESPACES = (
    "math",
    "nn",
    "image",
    "linalg",
    "signal",
    "strings",
    "bitwise",
    "sets",
    "sparse",
    "ragged",
    "quantization",
    "__operators__",
)

# Of these namespaces only some.
_CHOSEN = {
    "": """abs acos acosh add add_n argmax argmin argsort as_string asin asinh atan atan2 atanh
        batch_to_space bitcast boolean_mask broadcast_dynamic_shape broadcast_static_shape
        broadcast_to cast clip_by_global_norm clip_by_norm clip_by_value complex concat constant
        convert_to_tensor cos cosh cumsum divide dynamic_partition dynamic_stitch edit_distance
        eig eigvals einsum ensure_shape equal exp expand_dims extract_volume_patches eye fill
        floor gather gather_nd greater greater_equal histogram_fixed_width
        histogram_fixed_width_bins identity identity_n is_tensor less less_equal linspace
        logical_and logical_not logical_or matmul matrix_square_root maximum meshgrid minimum
        multiply negative norm not_equal one_hot ones ones_like pad parallel_stack pow range rank
        realdiv reduce_all reduce_any reduce_logsumexp reduce_max reduce_mean reduce_min
        reduce_prod reduce_sum repeat reshape reverse reverse_sequence roll round saturate_cast
        scalar_mul scatter_nd searchsorted sequence_mask shape shape_n sigmoid sign sin sinh size
        slice sort space_to_batch space_to_batch_nd split sqrt square squeeze stack stop_gradient
        strided_slice subtract tan tanh tensor_scatter_nd_add tensor_scatter_nd_max
        tensor_scatter_nd_min tensor_scatter_nd_sub tensor_scatter_nd_update tensordot tile
        transpose truediv truncatediv truncatemod unique unique_with_counts unravel_index unstack
        where zeros zeros_like batch_gather ceil depth_to_space div div_no_nan erf expm1 floor_div
        log log1p random_normal random_uniform rint rsqrt space_to_depth squared_difference
        to_double to_float to_int32 to_int64""",
    "random": """categorical gamma normal poisson shuffle stateless_binomial
        stateless_categorical stateless_gamma stateless_normal stateless_poisson
        stateless_truncated_normal stateless_uniform truncated_normal uniform""",
    "dtypes": "cast complex saturate_cast",
    "keras.activations": """elu exponential gelu hard_sigmoid linear mish relu selu sigmoid softmax
        softplus softsign swish tanh""",
    "keras.backend": """abs all any arange argmax argmin batch_dot batch_flatten
        batch_normalization bias_add binary_crossentropy cast categorical_crossentropy clip
        concatenate constant conv1d conv2d conv2d_transpose conv3d cos cumprod cumsum
        depthwise_conv2d dot dropout elu equal exp expand_dims eye flatten gather greater
        greater_equal hard_sigmoid in_top_k int_shape l2_normalize less less_equal log max maximum
        mean min minimum ndim normalize_batch_in_training not_equal one_hot ones ones_like
        permute_dimensions pool2d pool3d pow prod random_bernoulli random_normal random_uniform
        relu repeat repeat_elements reshape resize_images resize_volumes reverse round
        separable_conv2d shape sigmoid sign sin softmax softplus softsign
        sparse_categorical_crossentropy spatial_2d_padding spatial_3d_padding sqrt square squeeze
        stack std stop_gradient sum tanh temporal_padding tile to_dense transpose truncated_normal
        var zeros zeros_like""",
    "keras.losses": """binary_crossentropy binary_focal_crossentropy categorical_crossentropy
        categorical_focal_crossentropy categorical_hinge cosine_similarity hinge huber kl_divergence
        log_cosh mean_absolute_error mean_absolute_percentage_error mean_squared_error
        mean_squared_logarithmic_error poisson sparse_categorical_crossentropy squared_hinge""",
}


def words(text: str) -> frozenset[str]:
    """The words of a text: names of functions or operators."""
    return frozenset(text.split())


# The operations that a TensorFlowOpLayer may hold: what TensorFlow 2.2 and 2.3 made of functions.
OPERATIONS = words(
    """Abs Acos Add AddN AddV2 All Any ArgMax ArgMin Atan AvgPool AvgPool3D BatchMatMul
    BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd BroadcastTo Cast Ceil ClipByValue ConcatV2
    Const Conv2D Conv2DBackpropInput Conv3D Cos Cumsum DepthToSpace DepthwiseConv2dNative Div
    DivNoNan Einsum Elu EnsureShape Equal Erf Exp ExpandDims Expm1 ExtractImagePatches
    ExtractVolumePatches Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherNd GatherV2 Greater
    GreaterEqual Identity L2Loss LRN LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd
    LogicalNot LogicalOr MatMul Max MaxPool MaxPool3D Maximum Mean Min Minimum MirrorPad Mul Neg
    NotEqual OneHot OnesLike Pack Pad PadV2 Pow Prod RandomStandardNormal RandomUniform Range Rank
    RealDiv Reciprocal Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Rint Roll
    Round Rsqrt Select SelectV2 Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign
    SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze StopGradient
    StridedSlice Sub Sum Tan Tanh Tile TopKV2 Transpose Unpack Where ZerosLike"""
)

# What a tf_keras model calls on ragged and sparse tensors, by the layers that do so.
MEMBERS = words(
    """values flat_values row_splits nested_row_splits indices dense_shape value_rowids
    nested_value_rowids nrows row_starts row_limits row_lengths nested_row_lengths bounding_shape
    with_values with_flat_values with_row_splits_dtype merge_dims to_tensor to_sparse"""
)
CLASS_METHODS = words(
    """from_value_rowids from_row_splits from_row_lengths from_row_starts from_row_limits
    from_uniform_row_length from_nested_value_rowids from_nested_row_splits
    from_nested_row_lengths from_tensor from_sparse"""
)


@functools.cache
def _symbols() -> frozenset[int]:
    """The identities of the functions in TensorFlow's table of public names."""
    names = [f"{n}.{name}" for n in _NAMESPACES for name in _members(n)]
    for namespace, chosen in _CHOSEN.items():
        names += [f"{namespace}.{name}".lstrip(".") for name in chosen.split()]
    names += [f"compat.v1.{name}" for name in names]
    found = (private_tensorflow.symbol(name) for name in names)
    return frozenset(id(function) for function in found if _is_function(function))


def _members(namespace: str) -> set[str]:
    owners = (getattr(owner, namespace, None) for owner in (tf, tf.compat.v1))
    names = {name for owner in owners for name in dir(owner) if not name.startswith("__")}
    return names - {"map_flat_values", "map_values", "with_space_to_batch"}  # call an argument


def _is_function(value: Any) -> bool:
    # Some are objects that dispatch calls; classes would be made, not called.
    return callable(value) and not isinstance(value, (type, types.ModuleType))


def of_symbol(name: Any) -> Callable[..., Any] | None:
    """The function that a TFOpLambda names, if it has no side effects; else None."""
    found = private_tensorflow.symbol(name) if isinstance(name, str) else None
    return found if id(found) in _symbols() else None
