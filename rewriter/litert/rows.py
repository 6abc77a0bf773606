"""How each operator kind stands in a LiteRT file: one row a kind.

A row says which options the operator has, how it stores a kernel, which constants become inputs of
it, and from which version and which runtime on it is known as it is written. Versions and runtimes
are those of TensorFlow's own writer (``compiler/mlir/lite/tools/versioning/op_version.cc`` and
``runtime_version.cc``): with a version that is too high older runtimes refuse the file for no
reason, with one that is too low they run it wrongly.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rewriter.litert import fields
from rewriter.litert.fields import Shapes, Values, Version
from rewriter.program import Operator, Quantization


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an operator with a kernel stores it.

    Attributes:
      axes: order of the axes of Keras's kernel in the file; empty: as they are.
      channels: the axis of the output channels in the file's kernel.
      bias: position of the bias among the inputs; the kernel is at 1.
      depthwise: whether the last two axes, channel and multiplier, are one in the file.
    """

    axes: tuple[int, ...]
    channels: int = 0
    bias: int = 2
    depthwise: bool = False

    def to_file(self, kernel: np.ndarray) -> np.ndarray:
        """From Keras's kernel layout to the file's."""
        if self.depthwise:
            return kernel.reshape(1, *kernel.shape[:2], -1)
        return kernel.transpose(self.axes)


@dataclasses.dataclass(frozen=True)
class Row:
    """How an operator kind is written.

    Attributes:
      options: the options table, without its "Options"; None: the operator has none.
      values: the fields of that table that are not the schema's defaults.
      constants: int32 inputs after the activations, by name.
      versions: the first one that is needed counts.
      layout: of its kernel; None: it has none.
      padded: whether its last input is what it pads with: the lowest integer.
      same_grid: whether LiteRT takes the output to be on its inputs' grid.
      grid: the output's grid where LiteRT prescribes it.
    """

    options: str | None = None
    values: Values = lambda operator: {}
    constants: Values = lambda operator: {}
    versions: tuple[Version, ...] = (Version(1, "1.5.0"),)
    layout: Layout | None = None
    padded: bool = False
    same_grid: bool = False
    grid: Quantization | None = None

    def version(self, operator: Operator, shapes: Shapes) -> Version:
        """The version of an operator that reads activations of these shapes."""
        return next(v for v in self.versions if v.needed(operator, shapes))


_UNIT, _SYMMETRIC = Quantization(1 / 256, -128), Quantization(1 / 128, 0)
_MOST = fields.by_bits(2, "1.14.0", 3, "2.3.0")
_LATER = fields.by_bits(2, "1.14.0", 3, "2.5.0")
_POOL = Row("Pool2D", fields.pool, versions=_MOST, same_grid=True)
_REDUCE = Row("Reducer", fields.flag("keepDims", "keepdims"), fields.ints("axes"), _LATER)
_EXTREME = Row(
    "MaximumMinimum",
    versions=(
        Version(4, "2.3.0", fields.wide),
        Version(3, "2.3.0", fields.broadcasts),
        Version(2, "1.14.0"),
    ),
    same_grid=True,
)
_RESIZE = Row(
    "ResizeBilinear",
    fields.resize,
    fields.ints("size"),
    (
        Version(4, "2.5.0", fields.wide),
        Version(3, "2.2.0", fields.centred),
        Version(2, "1.14.0"),
    ),
    same_grid=True,
)
_PAD = Row(
    "Pad",
    constants=fields.ints("paddings"),
    versions=(
        Version(4, "2.6.0", fields.rank_above(4)),
        *fields.by_bits(2, "1.14.0", 3, "2.4.0"),
    ),
    same_grid=True,
)
_LOGISTIC = Row(versions=fields.by_bits(2, "1.14.0", 3, "2.3.0"), grid=_UNIT)

ROWS: dict[str, Row] = {
    "CONV_2D": Row(
        "Conv2D",
        fields.convolution,
        versions=(
            Version(7, "2.11.0", fields.small),
            Version(6, "2.9.0", fields.grouped),
            *fields.by_bits(3, "1.14.0", 4, "2.3.0"),
        ),
        layout=Layout((3, 0, 1, 2)),  # HWIO to OHWI
    ),
    "DEPTHWISE_CONV_2D": Row(
        "DepthwiseConv2D",
        fields.depthwise,
        versions=(
            Version(7, "2.11.0", fields.small),
            *fields.by_bits(3, "1.14.0", 5, "2.3.0"),
        ),
        layout=Layout((), channels=3, depthwise=True),  # HWIM to 1HW(I*M)
    ),
    "TRANSPOSE_CONV": Row(
        "TransposeConv",
        fields.window,
        versions=(Version(4, "2.13.0", fields.activated), Version(3, "2.3.0")),
        layout=Layout((2, 0, 1, 3), bias=3),  # HWOI to OHWI
    ),
    "FULLY_CONNECTED": Row(
        "FullyConnected",
        fields.fully_connected,
        # With a scale for each channel, which runtimes before 2.17 do not read.
        versions=(
            Version(10, "2.17.0", fields.small),
            Version(7, "2.17.0", fields.wide),
            Version(5, "2.17.0", fields.rows),
            Version(4, "2.17.0"),
        ),
        layout=Layout((1, 0)),  # IO to OI
    ),
    "ADD": Row(
        "Add",
        fields.addition,
        versions=(
            Version(1, "1.5.0", fields.counts),
            *fields.by_bits(2, "1.14.0", 3, "2.4.0"),
        ),
    ),
    "SUB": Row(
        "Sub",
        fields.addition,
        versions=(
            Version(5, "2.4.0", fields.wide),
            Version(3, "2.3.0", fields.broadcasts),
            Version(2, "1.14.0"),
        ),
    ),
    "MUL": Row(
        "Mul",
        fields.fused,
        versions=(
            Version(4, "2.3.0", fields.wide),
            Version(3, "1.15.0", fields.coarse),
            Version(2, "1.14.0"),
        ),
    ),
    "MAXIMUM": _EXTREME,
    "MINIMUM": _EXTREME,
    "PRELU": Row(versions=(Version(1, "1.8.0"),)),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "MEAN": _REDUCE,
    "REDUCE_MAX": dataclasses.replace(_REDUCE, same_grid=True),
    "REDUCE_MIN": dataclasses.replace(_REDUCE, same_grid=True),
    "ARG_MAX": Row("ArgMax", fields.indexes, fields.ints("axis"), (Version(2, "1.14.0"),)),
    "ARG_MIN": Row("ArgMin", fields.indexes, fields.ints("axis"), (Version(2, "1.14.0"),)),
    "GATHER": Row(
        "Gather", lambda operator: {"axis": 0}, versions=fields.by_bits(2, "1.14.0", 4, "2.4.0")
    ),
    "ONE_HOT": Row(
        "OneHot",
        lambda operator: {"axis": -1},
        lambda operator: {"depth": np.asarray(operator.attributes["depth"], np.int32)},
        (Version(1, "1.11.0"),),
    ),
    "DEPTH_TO_SPACE": Row(
        "DepthToSpace", fields.block, versions=(Version(2, "2.5.0"),), same_grid=True
    ),
    "SPACE_TO_DEPTH": Row(
        "SpaceToDepth", fields.block, versions=(Version(2, "1.14.0"),), same_grid=True
    ),
    "ABS": Row("Abs", versions=(Version(2, "2.4.0"),)),
    "EXP": Row("Exp", versions=(Version(2, "2.12.0"),)),
    "LOG": Row(versions=(Version(2, "2.15.0"),)),
    "BATCH_MATMUL": Row(
        "BatchMatMul",
        fields.flag("adjY", "transposed"),
        versions=fields.by_bits(2, "2.3.0", 3, "2.4.0"),
    ),
    "RSQRT": Row(versions=fields.by_bits(2, "2.5.0", 3, "2.15.0")),
    "SQRT": Row(versions=(Version(2, "2.21.0"),)),
    "SQUARED_DIFFERENCE": Row("SquaredDifference", versions=(Version(2, "2.5.0"),)),
    "SOFTMAX": Row("Softmax", lambda operator: {"beta": 1.0}, versions=_MOST, grid=_UNIT),
    "L2_NORMALIZATION": Row(
        "L2Norm", fields.fused, versions=(Version(2, "1.14.0"),), grid=_SYMMETRIC
    ),
    "RESHAPE": Row("Reshape", same_grid=True),  # its constant holds the batch: the writer's
    "CONCATENATION": Row(
        "Concatenation",
        lambda operator: {"axis": int(operator.attributes["axis"])},
        versions=_MOST,
        same_grid=True,
    ),
    "PAD": _PAD,
    "PADV2": dataclasses.replace(_PAD, options="PadV2", padded=True),
    "MIRROR_PAD": Row(
        "MirrorPad",
        fields.mirror,
        fields.ints("paddings"),
        (Version(3, "2.12.0", fields.wide), Version(2, "2.3.0")),
        same_grid=True,
    ),
    "TRANSPOSE": Row(
        "Transpose",
        constants=fields.ints("perm"),
        versions=(
            Version(6, "2.12.0", fields.rank_above(5)),
            Version(5, "2.4.0", fields.wide),
            Version(4, "2.3.0", fields.rank_above(4)),
            Version(2, "1.14.0"),
        ),
        same_grid=True,
    ),
    "STRIDED_SLICE": Row(
        "StridedSlice",
        fields.slice_masks,
        fields.slice_places,
        (Version(4, "2.2.0", fields.rank_above(4)), Version(2, "1.14.0")),
        same_grid=True,
    ),
    "RESIZE_BILINEAR": _RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": dataclasses.replace(
        _RESIZE,
        options="ResizeNearestNeighbor",
        versions=(
            Version(4, "2.4.0", fields.wide),
            Version(3, "2.3.0", fields.centred),
            Version(2, "1.14.0"),
        ),
    ),
    "LOGISTIC": _LOGISTIC,
    "TANH": dataclasses.replace(_LOGISTIC, grid=_SYMMETRIC),
    "ELU": Row(versions=(Version(1, "1.14.0"),)),
    "RELU": Row(versions=fields.by_bits(2, "2.1.0", 3, "2.5.0")),
    "RELU6": Row(versions=_LATER),
    "RELU_N1_TO_1": Row(),
    "LEAKY_RELU": Row(
        "LeakyRelu",
        lambda operator: {"alpha": float(operator.attributes["alpha"])},
        versions=fields.by_bits(1, "1.13.1", 2, "2.3.0"),
    ),
    "GELU": Row("Gelu", fields.flag("approximate", "approximate"), versions=(Version(2, "2.9.0"),)),
    "HARD_SWISH": Row("HardSwish", versions=(Version(1, "1.15.0"),)),
    "CAST": Row(
        "Cast",
        fields.cast,
        versions=(Version(3, "2.8.0", fields.narrow), Version(1, "1.5.0")),
    ),
    "QUANTIZE": Row("Quantize", versions=fields.by_bits(1, "1.14.0", 2, "1.15.0")),
    "DEQUANTIZE": Row("Dequantize", versions=fields.by_bits(2, "1.14.0", 3, "1.15.0")),
}
