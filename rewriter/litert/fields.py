"""What the rows of :mod:`rewriter.litert.rows` are made of: versions, options and constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.grid import BITS, FUSED_ACTIVATIONS, WIDE
from rewriter.litert.file_model import schema
from rewriter.litert.integer_spatial import slice_arguments
from rewriter.program import Operator, Quantization

_ACTIVATION_TYPES = {
    name: getattr(schema.ActivationFunctionType, name.upper()) for name in FUSED_ACTIVATIONS
}

Shapes = Sequence[tuple[int, ...]]  # of the activations that an operator reads, batch first
Values = Callable[[Operator], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Version:
    """A version of an operator, the first runtime that has it, and where it is needed."""

    number: int
    runtime: str
    needed: Callable[[Operator, Shapes], bool] = lambda operator, shapes: True


# Where a version is needed.


def wide(operator: Operator, shapes: Shapes) -> bool:
    """Activations of 16 bits."""
    grids = (*operator.inputs, operator.output)
    return any(grid is not None and grid.bits == WIDE for grid in grids)


def small(operator: Operator, shapes: Shapes) -> bool:
    """A kernel that is stored in less than a byte."""
    return (operator.kernel_storage_bits or BITS) < BITS


def grouped(operator: Operator, shapes: Shapes) -> bool:
    """A convolution whose kernel has fewer channels than its input."""
    return np.asarray(operator.kernel).shape[2] != shapes[0][-1]


def rows(operator: Operator, shapes: Shapes) -> bool:
    """A matrix product of the last axis of a tensor of any rank."""
    return bool(operator.attributes.get("keep_num_dims", False))


def activated(operator: Operator, shapes: Shapes) -> bool:
    """A fused activation."""
    return operator.activation != "none"


def rank_above(rank: int) -> Callable[[Operator, Shapes], bool]:
    """A rank above this one of any input."""
    return lambda operator, shapes: max(map(len, shapes)) > rank


def broadcasts(operator: Operator, shapes: Shapes) -> bool:
    """Two operands of different shapes, of a rank above 4."""
    return max(map(len, shapes)) > 4 and ("constant" in operator.attributes or len({*shapes}) > 1)


def coarse(operator: Operator, shapes: Shapes) -> bool:
    """A step of the product of at least one step of the output."""
    scales = [grid.scale for grid in operator.inputs if grid is not None]
    if "constant_quantization" in operator.attributes:
        scales.append(operator.attributes["constant_quantization"]["scale"])
    product = np.prod(np.asarray(scales, np.float32))
    return operator.output is not None and bool(product >= np.float32(operator.output.scale))


def centred(operator: Operator, shapes: Shapes) -> bool:
    """Corners or half pixels as centres."""
    nearest = operator.kind == "RESIZE_NEAREST_NEIGHBOR"
    corners = nearest and operator.attributes.get("align_corners", False)
    return bool(corners or operator.attributes.get("half_pixel_centers", False))


def by_bits(number: int, runtime: str, wider: int, later: str) -> tuple[Version, Version]:
    """Versions for activations of 8 and of 16 bits."""
    return Version(wider, later, wide), Version(number, runtime)


def narrow(operator: Operator, shapes: Shapes) -> bool:
    """An input of 8 bits."""
    source = operator.inputs[0]
    return source is not None and source.bits == BITS


def counts(operator: Operator, shapes: Shapes) -> bool:
    """Whole numbers."""
    return operator.output is not None and operator.output.whole


# Options and constants.


def ints(attribute: str, name: str = "") -> Values:
    """An attribute as the constant ``name``, int32."""
    return lambda operator: {
        name or attribute: np.asarray(operator.attributes[attribute], np.int32)
    }


def fused(operator: Operator) -> dict[str, Any]:
    """The fused activation."""
    return {"fusedActivationFunction": _ACTIVATION_TYPES[operator.activation]}


def addition(operator: Operator) -> dict[str, Any]:
    """Options of ADD and SUB."""
    return {**fused(operator), "potScaleInt16": False}


def window(operator: Operator) -> dict[str, Any]:
    """Padding and strides."""
    height, width = map(int, operator.attributes["strides"])
    padding = getattr(schema.Padding, operator.attributes["padding"])
    return {"padding": padding, "strideH": height, "strideW": width, **fused(operator)}


def convolution(operator: Operator) -> dict[str, Any]:
    """Options of CONV_2D: :func:`window`, and dilations."""
    height, width = map(int, operator.attributes.get("dilations", (1, 1)))
    return {**window(operator), "dilationHFactor": height, "dilationWFactor": width}


def depthwise(operator: Operator) -> dict[str, Any]:
    """Options of DEPTHWISE_CONV_2D."""
    return {**convolution(operator), "depthMultiplier": np.asarray(operator.kernel).shape[3]}


def pool(operator: Operator) -> dict[str, Any]:
    """Options of the pools."""
    height, width = map(int, operator.attributes["pool_size"])
    return {**window(operator), "filterHeight": height, "filterWidth": width}


def fully_connected(operator: Operator) -> dict[str, Any]:
    """Options of FULLY_CONNECTED."""
    return {**fused(operator), "keepNumDims": rows(operator, ())}


def block(operator: Operator) -> dict[str, Any]:
    """The side of the blocks of DEPTH_TO_SPACE and SPACE_TO_DEPTH, in pixels."""
    return {"blockSize": int(operator.attributes["block_size"])}


def mirror(operator: Operator) -> dict[str, Any]:
    """What MIRROR_PAD does with the pixels of the border: once (reflect) or twice (symmetric)."""
    return {"mode": getattr(schema.MirrorPadMode, operator.attributes["mode"].upper())}


def flag(field: str, attribute: str) -> Values:
    """An attribute as a field of the options; False where it is not there."""
    return lambda operator: {field: bool(operator.attributes.get(attribute, False))}


def resize(operator: Operator) -> dict[str, Any]:
    """Options of the resizing operators."""
    corners, half = flag("alignCorners", "align_corners"), "half_pixel_centers"
    return {**corners(operator), **flag("halfPixelCenters", half)(operator)}


def _type(grid: Quantization | None) -> int:
    """The type of a tensor: of integers, or of float."""
    kind = "FLOAT32" if grid is None else f"INT{grid.bits}"
    return int(getattr(schema.TensorType, kind))


def indexes(operator: Operator) -> dict[str, Any]:
    """Options of ARG_MAX and ARG_MIN: the type of what they return."""
    return {"outputType": _type(operator.output)}


def cast(operator: Operator) -> dict[str, Any]:
    """Options of CAST: the types of both tensors."""
    return {"inDataType": _type(operator.inputs[0]), "outDataType": _type(operator.output)}


_MASKS = {
    "beginMask": "begin_mask",
    "endMask": "end_mask",
    "ellipsisMask": "ellipsis_mask",
    "newAxisMask": "new_axis_mask",
    "shrinkAxisMask": "shrink_axis_mask",
}


def slice_masks(operator: Operator) -> dict[str, Any]:
    """Options of STRIDED_SLICE: masks of bits, one for each axis."""
    arguments = slice_arguments(operator)
    return {field: arguments[name] for field, name in _MASKS.items()}


def slice_places(operator: Operator) -> dict[str, Any]:
    """Constants of STRIDED_SLICE, int32 (rank,)."""
    arguments = slice_arguments(operator)
    return {name: np.asarray(arguments[name], np.int32) for name in ("begin", "end", "strides")}
