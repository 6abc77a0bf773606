"""What the stock layers that are neither hosts nor normalizations compute, as operations.

One row for every layer with an integer form; all others stay in float. Both Kerases have these
layers under the same names.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.grid import BYTES, WHOLE
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.pure_functions import words
from rewriter.reading import (
    contractions,
    inside,
    layer_norms,
    stock_activations,
    stock_functions,
)
from rewriter.reading.graph import Call, Ref
from rewriter.reading.operations import (
    MOVES,
    PLACES,
    RANDOM_IN_INFERENCE,
    Operation,
    affine,
    along,
    is_floating,
    reshape,
    resize,
)
from rewriter.reading.stock_activations import Reader

_KERAS_EPSILON = 1e-7


def _named(name: str, **options: Any) -> Reader:
    return lambda layer, call, x: Operation(name, x, options)


def _first(layer: Any) -> bool:
    return getattr(layer, "data_format", "channels_last") == "channels_first"


def _spatial(layer: Any, call: Call) -> list[int]:
    rank = len(call.input_shapes[0])
    return list(range(2, rank)) if _first(layer) else list(range(1, rank - 1))


# Arithmetic


def _concatenate(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    axis = layer.axis % len(call.shapes[0])
    return Operation("concatenate", x, {"axis": axis}) if axis else None


def _rescaling(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return affine(x[0], np.asarray(layer.scale), np.asarray(layer.offset))


def _normalization(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    mean, variance = np.asarray(layer.mean, np.float64), np.asarray(layer.variance, np.float64)
    deviation = np.maximum(np.sqrt(variance), _KERAS_EPSILON)
    if layer.invert:
        return affine(x[0], _single(deviation), _single(mean))
    return affine(x[0], _single(1 / deviation), _single(-mean / deviation))


def _single(numbers: np.ndarray) -> np.ndarray:
    """One number in the place of equal ones: what a layer that was never adapted has."""
    return numbers.reshape(-1)[:1].reshape(()) if np.ptp(numbers) == 0 else numbers


def _embedding(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    given = call.input_dtypes[0]
    numbers = given in WHOLE or given == "float32"
    return Operation("look_up", x[:1], {"layer": layer}) if numbers else None


def _layer_scale(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return affine(x[0], np.asarray(layer.gamma))


def _unit(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return along("unit", call, x[0], layer.axis)


def _prelu(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return Operation("prelu", x, {"layer": layer})


def _scaled_sum(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    """``inputs[0] + scale * inputs[1]``: the residual blocks of InceptionResNetV2."""
    return Operation("add", x, {"scales": [1.0, float(layer.scale)]})


# Moves


def _axes(layer: Any, call: Call, x: tuple[Ref, ...], amounts: Any) -> list[list[int]]:
    """``amounts`` for the spatial axes, (0, 0) for the others."""
    amounts = np.asarray(amounts, np.int64).reshape(-1, 2).tolist()
    pairs = [[0, 0] for _ in call.input_shapes[0]]
    for axis, pair in zip(_spatial(layer, call), amounts, strict=True):
        pairs[axis] = pair
    return pairs


def _padding(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return Operation("pad", x, {"paddings": _axes(layer, call, x, layer.padding)})


def _cropping(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    sizes = call.input_shapes[0][1:]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    pairs = _axes(layer, call, x, layer.cropping)[1:]
    return Operation(
        "slice",
        x,
        {"ranges": [(a, size - b, 1) for size, (a, b) in zip(known, pairs, strict=True)]},
    )


def _center_crop(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    shape = call.input_shapes[0]
    wanted = (layer.height, layer.width)
    if len(shape) != 4 or _first(layer) or None in shape[1:]:
        return None
    if any(size < want for size, want in zip(shape[1:3], wanted, strict=True)):
        return None  # it resizes then
    ranges = [
        ((size - want) // 2, (size - want) // 2 + want, 1)
        for size, want in zip(shape[1:3], wanted, strict=True)
    ]
    return Operation("slice", x, {"ranges": [*ranges, (0, shape[3], 1)]})


def _upsampling(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    if _first(layer):
        return None
    method = getattr(layer, "interpolation", "nearest")
    factors = [int(f) for f in np.atleast_1d(layer.size)]
    if method == "nearest":
        return Operation("upsample", x, {"factors": factors})
    shape = [size for size in call.input_shapes[0][1:3] if size is not None]
    if len(shape) < 2:
        return None
    return resize(x[0], [n * f for n, f in zip(shape, factors, strict=True)], method)


def _resizing(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    options = ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")
    if any(getattr(layer, name, False) for name in options) or _first(layer):
        return None
    if len(call.shapes[0]) != 4:
        return None
    return resize(x[0], (layer.height, layer.width), str(layer.interpolation).lower())


def _permute(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return Operation("transpose", x, {"perm": [0, *layer.dims]})


def _repeat(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return Operation("repeat", x, {"count": int(layer.n)})


def _flatten(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    moves = _first(layer) and len(call.input_shapes[0]) > 3
    return None if moves else reshape(call, x[0])


# Pooling


def _pool(kind: str) -> Reader:
    def reader(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
        if _first(layer):
            return None
        size, strides = (list(np.atleast_1d(v)) for v in (layer.pool_size, layer.strides))
        options = {
            "kind": kind,
            "pool_size": [int(s) for s in size],
            "strides": [int(s) for s in strides],
            "padding": layer.padding.upper(),
        }
        return Operation("pool" if kind == "MAX_POOL_2D" else "rounded_pool", x, options)

    return reader


def _global(name: str) -> Reader:
    def reader(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
        options = {"axes": _spatial(layer, call), "keepdims": bool(layer.keepdims)}
        return Operation(name, x, options)

    return reader


# These act in training only.
_RANDOM = words(
    """AlphaDropout Dropout GaussianDropout GaussianNoise
    SpatialDropout1D SpatialDropout2D SpatialDropout3D StochasticDepth"""
)
_RANDOM |= words(
    """RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
    RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale
    RandomHeight RandomHue RandomInvert RandomPerspective RandomPosterization RandomRotation
    RandomSaturation RandomSharpness RandomShear RandomTranslation RandomWidth RandomZoom"""
)

LAYERS: dict[str, Reader] = {
    **stock_activations.LAYERS,
    **layer_norms.LAYERS,
    **dict.fromkeys(words("ActivityRegularization Identity"), _named("identity")),
    **dict.fromkeys(_RANDOM, _named("identity")),
    "PReLU": _prelu,
    "Add": _named("add"),
    "Subtract": _named("subtract"),
    "Multiply": _named("multiply"),
    "Average": _named("average"),
    "Maximum": _named("maximum"),
    "Minimum": _named("minimum"),
    "Concatenate": _concatenate,
    "Dot": contractions.dot,
    "CustomScaleLayer": _scaled_sum,
    "LayerScale": _layer_scale,
    "Embedding": _embedding,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    "UnitNormalization": _unit,
    "Resizing": _resizing,
    "CenterCrop": _center_crop,
    "Flatten": _flatten,
    "Reshape": lambda layer, call, x: reshape(call, x[0]),
    "Permute": _permute,
    "RepeatVector": _repeat,
    **{f"ZeroPadding{n}D": _padding for n in (1, 2, 3)},
    **{f"Cropping{n}D": _cropping for n in (1, 2, 3)},
    **{f"UpSampling{n}D": _upsampling for n in (1, 2, 3)},
    **{f"MaxPooling{n}D": _pool("MAX_POOL_2D") for n in (1, 2)},
    **{f"AveragePooling{n}D": _pool("AVERAGE_POOL_2D") for n in (1, 2)},
    **{f"GlobalMaxPooling{n}D": _global("max") for n in (1, 2, 3)},
    **{f"GlobalAveragePooling{n}D": _global("mean") for n in (1, 2, 3)},
}

# These compute something else under a mask.
_HEED_MASKS = frozenset({"GlobalAveragePooling1D", "Softmax"})


def read(flavour: Flavour, call: Call) -> Operation | None:
    """The operation of a call of a layer or an operation; None if it has no integer form."""
    name = flavour.class_name(call.layer)
    if not any(map(is_floating, call.dtypes)):
        # Masks are on no grid; bytes are, where they only change their places, as words do.
        found = _read(flavour, call, name) if set(call.dtypes) <= {*BYTES, *WHOLE} else None
        return found if found is not None and found.name in MOVES | PLACES else None
    return _read(flavour, call, name)


def _read(flavour: Flavour, call: Call, name: str) -> Operation | None:
    layer = call.layer
    if name.startswith("ops."):
        return stock_functions.read(flavour, call)
    if name == "Activation":
        return stock_activations.function(flavour, call, layer.activation, call.refs[0], False)
    reader = LAYERS.get(name)
    if reader is None or (name in _HEED_MASKS and _under_mask(call)):
        return None
    drops = name in _RANDOM and getattr(layer, "rate", None) != 0
    if drops and True in (inside.own_flag(flavour, call), *call.args[1:2]):
        call.closed = RANDOM_IN_INFERENCE
        return None
    given = [value for key, value in call.kwargs.items() if key not in ("mask", "training")]
    return reader(layer, call, tuple(Call.tensors((call.args, given))))


def _under_mask(call: Call) -> bool:
    """Whether a mask comes with a tensor, or is given: by keyword, or after the input."""
    given = (call.kwargs.get("mask"), *call.args[1:2])
    return call.masked or any(value is not None for value in given)
