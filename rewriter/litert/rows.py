"""How each operator kind stands in a LiteRT file: one row a kind.

A row says which options table the operator has, which constants become inputs of it, which version
it has, and the runtime that first had that version (``runtime_version.cc`` of TensorFlow, beside
the one that :mod:`rewriter.litert.versions` names).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter.litert import shapes, versions
from rewriter.litert.file_model import schema
from rewriter.litert.integer_spatial import slice_arguments
from rewriter.litert.shapes import Shape
from rewriter.litert.versions import Use
from rewriter.program import Operator, Quantization

FUSED_ACTIVATIONS = {
    "none": schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu_n1_to_1": schema.ActivationFunctionType.RELU_N1_TO_1,
    "relu6": schema.ActivationFunctionType.RELU6,
}


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

_POOL = Row(
    shapes.pool, "Pool2D", _pool, version=versions.by_bits(2, 3), runtimes=_OLD, same_grid=True
)
_ADD = Row(
    shapes.broadcast,
    "Add",
    lambda operator: {**_fused(operator), "potScaleInt16": False},
    version=versions.by_bits(2, 3),
    runtimes={**_OLD, 3: "2.4.0"},
)
_REDUCE = Row(
    shapes.reduce,
    "Reducer",
    _reduction,
    lambda operator: {"axes": _ints(operator.attributes["axes"])},
    versions.by_bits(2, 3),
    {1: "1.6.0", 2: "1.14.0", 3: "2.5.0"},
)
_EXTREME = Row(
    shapes.broadcast,
    "MaximumMinimum",
    version=versions.extreme,
    runtimes={1: "1.14.0", 3: "2.3.0"},
    same_grid=True,
)
_RESIZE: dict[str, Any] = {
    "values": _resize,
    "constants": lambda operator: {"size": _ints(operator.attributes["size"])},
    "version": versions.resize,
    "runtimes": {1: "1.7.0", 2: "1.14.0", 3: "2.3.0", 4: "2.5.0"},
    "same_grid": True,
}
_RELU = Row(
    shapes.same, version=versions.by_bits(2, 3), runtimes={1: "1.5.0", 2: "2.1.0", 3: "2.5.0"}
)
_SIGMOID = {"version": versions.by_bits(2, 3), "runtimes": {1: "1.14.0", 3: "2.3.0"}}

ROWS: dict[str, Row] = {
    "CONV_2D": Row(
        shapes.convolution,
        "Conv2D",
        _convolution,
        version=versions.conv,
        runtimes={3: "1.14.0", 4: "2.3.0", 6: "2.9.0", 7: "2.11.0"},
    ),
    "DEPTHWISE_CONV_2D": Row(
        shapes.depthwise_convolution,
        "DepthwiseConv2D",
        _depthwise,
        version=versions.depthwise,
        runtimes={3: "1.14.0", 5: "2.3.0", 7: "2.11.0"},
    ),
    "TRANSPOSE_CONV": Row(
        shapes.transposed_convolution,
        "TransposeConv",
        _window,
        version=versions.transpose_conv,
        runtimes={3: "2.3.0", 4: "2.13.0"},
    ),
    "FULLY_CONNECTED": Row(
        shapes.fully_connected,
        "FullyConnected",
        _fully_connected,
        version=versions.fully_connected,
        # With per-channel scales, which older runtimes of version 4 do not read.
        runtimes={4: "2.17.0"},
    ),
    "ADD": _ADD,
    "SUB": dataclasses.replace(
        _ADD, options="Sub", version=versions.sub, runtimes={**_OLD, 1: "1.6.0", 5: "2.4.0"}
    ),
    "MUL": Row(
        shapes.broadcast,
        "Mul",
        _fused,
        version=versions.mul,
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
        version=versions.by_bits(2, 3),
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
        version=versions.by_bits(2, 3),
        runtimes=_OLD,
        same_grid=True,
    ),
    "PAD": Row(
        shapes.pad,
        "Pad",
        constants=lambda operator: {"paddings": _ints(operator.attributes["paddings"])},
        version=versions.pad,
        runtimes={**_OLD, 3: "2.4.0", 4: "2.6.0"},
        same_grid=True,
    ),
    "TRANSPOSE": Row(
        shapes.transpose,
        "Transpose",
        constants=lambda operator: {"perm": _ints(operator.attributes["perm"])},
        version=versions.transpose,
        runtimes={2: "1.14.0", 4: "2.3.0", 5: "2.4.0", 6: "2.12.0", 8: "2.22.0"},
        same_grid=True,
    ),
    "STRIDED_SLICE": Row(
        shapes.strided_slice,
        "StridedSlice",
        _slice,
        _slice_places,
        versions.slice,
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
        version=versions.by_bits(1, 2),
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
        shapes.same, "Quantize", version=versions.by_bits(1, 2), runtimes={1: "1.14.0", 2: "1.15.0"}
    ),
    "DEQUANTIZE": Row(
        shapes.same,
        "Dequantize",
        version=versions.by_bits(2, 3),
        runtimes={2: "1.14.0", 3: "1.15.0"},
    ),
}
