"""How each operator kind stands in a LiteRT file: one row a kind.

A row says which options table the operator has, which constants become inputs of it, and from
which version on a runtime knows it as it is written. Versions are those that TensorFlow's own
writer gives (``compiler/mlir/lite/tools/versioning/op_version.cc``), with the runtime that first
had them (``runtime_version.cc``): a version that is too high is refused by older runtimes for no
reason, one that is too low is run wrongly by them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.grid import BITS
from rewriter.litert import shapes
from rewriter.litert.file_model import schema
from rewriter.litert.integer_spatial import slice_arguments
from rewriter.litert.shapes import Shape
from rewriter.program import Operator, Quantization

FUSED_ACTIVATIONS = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu_n1_to_1": schema.ActivationFunctionType.RELU_N1_TO_1,
    "relu6": schema.ActivationFunctionType.RELU6,
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an operator with a kernel stores it.

    Attributes:
      to_file: from Keras's kernel layout to the file's.
      axis: the axis of the output channels in the file's kernel.
      channels: how many output channels a kernel in Keras's layout has.
      kernel, bias: their positions among the operator's inputs in the file.
    """

    to_file: Callable[[np.ndarray], np.ndarray]
    axis: int
    channels: Callable[[np.ndarray], int]
    kernel: int = 1
    bias: int = 2


LAYOUTS = {
    "CONV_2D": Layout(lambda w: w.transpose(3, 0, 1, 2), 0, lambda w: w.shape[3]),  # to OHWI
    "DEPTHWISE_CONV_2D": Layout(  # HWIM to 1HW(I*M)
        lambda w: w.reshape(1, *w.shape[:2], -1), 3, lambda w: w.shape[2] * w.shape[3]
    ),
    "TRANSPOSE_CONV": Layout(  # HWOI to OHWI; its first input is the shape of the output
        lambda w: w.transpose(2, 0, 1, 3), 0, lambda w: w.shape[2], bias=3
    ),
    "FULLY_CONNECTED": Layout(lambda w: w.transpose(1, 0), 0, lambda w: w.shape[1]),  # to OI
}


@dataclasses.dataclass(frozen=True)
class Use:
    """An operator in its place, as far as its version depends on that.

    Attributes:
      operator: what is computed.
      inputs: shapes of the activations that it reads, batch first.
      bits: width of the widest activation it reads or writes.
    """

    operator: Operator
    inputs: tuple[tuple[int, ...], ...]

    @property
    def bits(self) -> int:
        grids = (*self.operator.inputs, self.operator.output)
        return max((grid.bits for grid in grids if grid is not None), default=8)

    @property
    def rank(self) -> int:
        """The largest rank of an input."""
        return max(len(shape) for shape in self.inputs)

    @property
    def broadcasts(self) -> bool:
        """Whether the two operands have different shapes."""
        shapes = [*self.inputs]
        if "constant" in self.operator.attributes:
            shapes.append(np.shape(self.operator.attributes["constant"]) or (1,))
        return len({*shapes}) > 1


def _values(operator: Operator) -> dict[str, Any]:
    return {}


def _no_constants(operator: Operator) -> dict[str, np.ndarray]:
    return {}


@dataclasses.dataclass(frozen=True)
class Row:
    """How an operator kind is written.

    Attributes:
      shape: the shape of the output, from the operator and the shapes of its inputs; raises
        ``ValueError`` where LiteRT would refuse them.
      options: the options table, without its "Options"; None: the operator has none.
      values: the fields of that table that are not the schema's defaults.
      constants: int32 inputs after the activations, by name.
      version: the version of the operator in its place.
      runtimes: the first runtime that has a version; versions not listed are as the largest below.
      same_grid: whether LiteRT takes the output to be on its inputs' grid.
      grid: the output's grid where LiteRT prescribes it.
    """

    shape: Callable[[Operator, list[Shape]], Shape]
    options: str | None = None
    values: Callable[[Operator], dict[str, Any]] = _values
    constants: Callable[[Operator], dict[str, np.ndarray]] = _no_constants
    version: Callable[[Use], int] = lambda use: 1
    runtimes: Mapping[int, str] = dataclasses.field(default_factory=lambda: {1: "1.5.0"})
    same_grid: bool = False
    grid: Quantization | None = None

    def runtime(self, version: int) -> str:
        """The first runtime that knows a version of this operator."""
        return self.runtimes[max(v for v in self.runtimes if v <= version)]


def _ints(values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


def _by_bits(narrow: int, wide: int) -> Callable[[Use], int]:
    """Versions for activations of 8 and of 16 bits."""
    return lambda use: wide if use.bits > 8 else narrow


def _fused(operator: Operator) -> dict[str, Any]:
    return {"fusedActivationFunction": FUSED_ACTIVATIONS[operator.activation]}


def _window(operator: Operator) -> dict[str, Any]:
    height, width = operator.attributes["strides"]
    padding = getattr(schema.Padding, operator.attributes["padding"])
    return {
        "padding": padding,
        "strideH": int(height),
        "strideW": int(width),
        **_fused(operator),
    }


def _convolution(operator: Operator) -> dict[str, Any]:
    height, width = operator.attributes.get("dilations", (1, 1))
    dilations = {"dilationHFactor": int(height), "dilationWFactor": int(width)}
    return {**_window(operator), **dilations}


def _depthwise(operator: Operator) -> dict[str, Any]:
    kernel = np.asarray(operator.kernel)
    return {**_convolution(operator), "depthMultiplier": kernel.shape[3]}


def _pool(operator: Operator) -> dict[str, Any]:
    height, width = operator.attributes["pool_size"]
    return {**_window(operator), "filterHeight": int(height), "filterWidth": int(width)}


def _fully_connected(operator: Operator) -> dict[str, Any]:
    kept = bool(operator.attributes.get("keep_num_dims", False))
    return {**_fused(operator), "keepNumDims": kept}


def _conv_version(use: Use) -> int:
    kernel = np.asarray(use.operator.kernel)
    if use.operator.kernel_storage_bits < BITS:
        return 7
    if kernel.shape[2] != use.inputs[0][-1]:
        return 6  # grouped
    return _by_bits(3, 4)(use)


def _depthwise_version(use: Use) -> int:
    return 7 if use.operator.kernel_storage_bits < BITS else _by_bits(3, 5)(use)


def _fully_connected_version(use: Use) -> int:
    if use.operator.kernel_storage_bits < BITS:
        return 10
    kept = use.operator.attributes.get("keep_num_dims", False)
    return _by_bits(5 if kept else 4, 7)(use)


def _transpose_conv_version(use: Use) -> int:
    return 3 if use.operator.activation == "none" else 4


def _mul_version(use: Use) -> int:
    if use.bits > 8:
        return 4
    scales = [grid.scale for grid in use.operator.inputs if grid is not None]
    constant = use.operator.attributes.get("constant_quantization")
    scales += [constant["scale"]] if constant else []
    output = use.operator.output
    ratio = np.prod(np.float32(scales)) / np.float32(output.scale if output else 1)
    return 3 if ratio >= 1 else 2


def _extreme_version(use: Use) -> int:
    if use.bits > 8:
        return 4
    return 3 if use.broadcasts and use.rank > 4 else 2


def _sub_version(use: Use) -> int:
    if use.bits > 8:
        return 5
    return 3 if use.broadcasts and use.rank > 4 else 2


def _transpose_version(use: Use) -> int:
    by_rank = {5: 4, 6: 6}.get(use.rank, 8 if use.rank > 6 else 0)
    return max(by_rank, _by_bits(2, 5)(use))


def _pad_version(use: Use) -> int:
    return 4 if use.rank > 4 else _by_bits(2, 3)(use)


def _slice_version(use: Use) -> int:
    return 4 if use.rank > 4 else 2


def _resize_version(use: Use) -> int:
    if use.bits > 8:
        return 4
    half = use.operator.attributes.get("half_pixel_centers", False)
    corners = use.operator.attributes.get("align_corners", False)
    nearest = use.operator.kind == "RESIZE_NEAREST_NEIGHBOR"
    return 3 if half or (corners and nearest) else 2


def _resize(operator: Operator) -> dict[str, Any]:
    return {
        "alignCorners": bool(operator.attributes.get("align_corners", False)),
        "halfPixelCenters": bool(operator.attributes.get("half_pixel_centers", False)),
    }


def _slice(operator: Operator) -> dict[str, Any]:
    arguments = slice_arguments(operator)
    return {
        "beginMask": arguments["begin_mask"],
        "endMask": arguments["end_mask"],
        "ellipsisMask": arguments["ellipsis_mask"],
        "newAxisMask": arguments["new_axis_mask"],
        "shrinkAxisMask": arguments["shrink_axis_mask"],
    }


def _slice_places(operator: Operator) -> dict[str, np.ndarray]:
    arguments = slice_arguments(operator)
    return {name: _ints(arguments[name]) for name in ("begin", "end", "strides")}


def _reduction(operator: Operator) -> dict[str, Any]:
    return {"keepDims": bool(operator.attributes.get("keepdims", False))}


_OLD = {1: "1.5.0", 2: "1.14.0", 3: "2.3.0"}  # runtimes of most operators
_UNIT = Quantization(1 / 256, -128)
_SYMMETRIC = Quantization(1 / 128, 0)

_POOL = Row(shapes.pool, "Pool2D", _pool, version=_by_bits(2, 3), runtimes=_OLD, same_grid=True)
_ADD = Row(
    shapes.broadcast,
    "Add",
    lambda operator: {**_fused(operator), "potScaleInt16": False},
    version=_by_bits(2, 3),
    runtimes={**_OLD, 3: "2.4.0"},
)
_REDUCE = Row(
    shapes.reduce,
    "Reducer",
    _reduction,
    lambda operator: {"axes": _ints(operator.attributes["axes"])},
    _by_bits(2, 3),
    {1: "1.6.0", 2: "1.14.0", 3: "2.5.0"},
)
_EXTREME = Row(
    shapes.broadcast,
    "MaximumMinimum",
    version=_extreme_version,
    runtimes={1: "1.14.0", 3: "2.3.0"},
    same_grid=True,
)
_RESIZE: dict[str, Any] = {
    "values": _resize,
    "constants": lambda operator: {"size": _ints(operator.attributes["size"])},
    "version": _resize_version,
    "runtimes": {1: "1.7.0", 2: "1.14.0", 3: "2.3.0", 4: "2.5.0"},
    "same_grid": True,
}
_RELU = Row(shapes.same, version=_by_bits(2, 3), runtimes={1: "1.5.0", 2: "2.1.0", 3: "2.5.0"})
_SIGMOID = {"version": _by_bits(2, 3), "runtimes": {1: "1.14.0", 3: "2.3.0"}}

ROWS: dict[str, Row] = {
    "CONV_2D": Row(
        shapes.convolution,
        "Conv2D",
        _convolution,
        version=_conv_version,
        runtimes={3: "1.14.0", 4: "2.3.0", 6: "2.9.0", 7: "2.11.0"},
    ),
    "DEPTHWISE_CONV_2D": Row(
        shapes.depthwise_convolution,
        "DepthwiseConv2D",
        _depthwise,
        version=_depthwise_version,
        runtimes={3: "1.14.0", 5: "2.3.0", 7: "2.11.0"},
    ),
    "TRANSPOSE_CONV": Row(
        shapes.transposed_convolution,
        "TransposeConv",
        _window,
        version=_transpose_conv_version,
        runtimes={3: "2.3.0", 4: "2.13.0"},
    ),
    "FULLY_CONNECTED": Row(
        shapes.fully_connected,
        "FullyConnected",
        _fully_connected,
        version=_fully_connected_version,
        # With per-channel scales, which older runtimes of version 4 do not read.
        runtimes={4: "2.17.0"},
    ),
    "ADD": _ADD,
    "SUB": dataclasses.replace(
        _ADD, options="Sub", version=_sub_version, runtimes={**_OLD, 1: "1.6.0", 5: "2.4.0"}
    ),
    "MUL": Row(
        shapes.broadcast,
        "Mul",
        _fused,
        version=_mul_version,
        runtimes={2: "1.14.0", 3: "1.15.0", 4: "2.3.0"},
    ),
    "MAXIMUM": _EXTREME,
    "MINIMUM": _EXTREME,
    "PRELU": Row(shapes.broadcast, runtimes={1: "1.8.0"}),
    "AVERAGE_POOL_2D": _POOL,
    "MAX_POOL_2D": _POOL,
    "MEAN": dataclasses.replace(_REDUCE, runtimes={**_REDUCE.runtimes, 3: "2.4.0"}),
    "REDUCE_MAX": dataclasses.replace(_REDUCE, same_grid=True),
    "SOFTMAX": Row(
        shapes.same,
        "Softmax",
        lambda operator: {"beta": 1.0},
        version=_by_bits(2, 3),
        runtimes=_OLD,
        grid=_UNIT,
    ),
    "L2_NORMALIZATION": Row(
        shapes.same, "L2Norm", _fused, version=lambda use: 2, runtimes=_OLD, grid=_SYMMETRIC
    ),
    # The constant of RESHAPE holds the batch, which the writer knows.
    "RESHAPE": Row(shapes.reshape, "Reshape", same_grid=True),
    "CONCATENATION": Row(
        shapes.concatenation,
        "Concatenation",
        lambda operator: {"axis": int(operator.attributes["axis"])},
        version=_by_bits(2, 3),
        runtimes=_OLD,
        same_grid=True,
    ),
    "PAD": Row(
        shapes.pad,
        "Pad",
        constants=lambda operator: {"paddings": _ints(operator.attributes["paddings"])},
        version=_pad_version,
        runtimes={**_OLD, 3: "2.4.0", 4: "2.6.0"},
        same_grid=True,
    ),
    "TRANSPOSE": Row(
        shapes.transpose,
        "Transpose",
        constants=lambda operator: {"perm": _ints(operator.attributes["perm"])},
        version=_transpose_version,
        runtimes={2: "1.14.0", 4: "2.3.0", 5: "2.4.0", 6: "2.12.0", 8: "2.22.0"},
        same_grid=True,
    ),
    "STRIDED_SLICE": Row(
        shapes.strided_slice,
        "StridedSlice",
        _slice,
        _slice_places,
        _slice_version,
        {2: "1.14.0", 4: "2.2.0"},
        same_grid=True,
    ),
    "RESIZE_NEAREST_NEIGHBOR": Row(shapes.resize, "ResizeNearestNeighbor", **_RESIZE),
    "RESIZE_BILINEAR": Row(shapes.resize, "ResizeBilinear", **_RESIZE),
    "LOGISTIC": Row(shapes.same, grid=_UNIT, **_SIGMOID),
    "TANH": Row(shapes.same, grid=_SYMMETRIC, **_SIGMOID),
    "ELU": Row(shapes.same, runtimes={1: "1.14.0"}),
    "RELU": _RELU,
    "RELU6": dataclasses.replace(_RELU, runtimes={**_OLD, 3: "2.5.0"}),
    "RELU_N1_TO_1": Row(shapes.same),
    "LEAKY_RELU": Row(
        shapes.same,
        "LeakyRelu",
        lambda operator: {"alpha": float(operator.attributes["alpha"])},
        version=_by_bits(1, 2),
        runtimes={1: "1.13.1", 2: "2.3.0"},
    ),
    "GELU": Row(
        shapes.same,
        "Gelu",
        lambda operator: {"approximate": bool(operator.attributes.get("approximate", False))},
        runtimes={1: "2.9.0"},
    ),
    "HARD_SWISH": Row(shapes.same, "HardSwish", runtimes={1: "1.15.0"}),
    "QUANTIZE": Row(
        shapes.same, "Quantize", version=_by_bits(1, 2), runtimes={1: "1.14.0", 2: "1.15.0"}
    ),
    "DEQUANTIZE": Row(
        shapes.same, "Dequantize", version=_by_bits(2, 3), runtimes={2: "1.14.0", 3: "1.15.0"}
    ),
}
