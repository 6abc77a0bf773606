"""How each operation treats the range of its tensors.

One row for every operation of :mod:`rewriter.reading.operations`. A row says how LiteRT quantizes
the output (the 8-bit specification,
https://ai.google.dev/edge/litert/models/quantization_spec), which decides where the rewritten
model puts its Quantize layers. The integer operators that a row
becomes are in :mod:`rewriter.lowering.operators`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rewriter.grid import BYTES, FUSED_ACTIVATIONS, HARD_RANGE, TANH_RANGE, UNIT_RANGE
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation
from rewriter.reading.roles import BatchNorm, Host, Input, Opaque, Ours, Role, Within

INPUT = "input"  # a model input
FREE = "free"  # the output has a range of its own
SAME = "same"  # the output takes over values and scale of its inputs, which share one scale
ROUNDED = "rounded"  # same scale as the input, but the values are rounded again (average pooling)
CLAMP = "clamp"  # fuses into the operator before it (ReLU, ReLU6, ...)
FIXED = "fixed"  # LiteRT prescribes the output's range (softmax, sigmoid, tanh)
IDENTITY = "identity"  # does nothing in inference
QUANTIZES = "quantizes"  # a Quantize layer that is there already
DONE = "done"  # the output is on a grid already
WHOLE = "whole"  # the output is whole numbers, which have no range
WITHIN = "within"  # part of an operation that ends further on
FLOAT = "float"  # no integer form: trains as it is, refused at export


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How the output of a layer is quantized.

    Attributes:
      kind: one of the constants of this module.
      fixed: for FIXED: smallest and largest representable value.
      activation: for CLAMP: LiteRT's fused activation, or ``"clamp"`` where it has none of these
        bounds.
    """

    kind: str
    fixed: tuple[float, float] | None = None
    activation: str | None = None


def _clamp(operation: Operation) -> Behaviour:
    bounds = (operation.options["low"], operation.options["high"])
    fused = (name for name, own in FUSED_ACTIVATIONS.items() if own == bounds)
    name = next(fused, "clamp")
    return Behaviour(IDENTITY) if name == "none" else Behaviour(CLAMP, activation=name)


def _resize(operation: Operation) -> Behaviour:
    return Behaviour(ROUNDED if operation.options["method"] == "bilinear" else SAME)


def _bytes(operation: Operation) -> Behaviour:
    return Behaviour(FIXED, BYTES[operation.options["dtype"]])


def _always(kind: str, fixed: tuple[float, float] | None = None) -> Callable[..., Behaviour]:
    return lambda operation: Behaviour(kind, fixed)


_KINDS = {
    IDENTITY: "identity off_zero",
    FREE: "cast add subtract multiply average affine mean sum leaky_relu prelu elu gelu silu "
    "hard_silu abs exp log sqrt rsqrt squared_difference contract normalize "
    "concatenate_constants look_up one_hot function times_function",
    SAME: "maximum minimum max concatenate stack pool reshape transpose pad mirror_pad slice split "
    "repeat upsample min unstack take tile depth_to_space space_to_depth patches "
    "repeat_samples",
    ROUNDED: "rounded_pool",
    WHOLE: "argmax argmin convert",
}

BEHAVIOURS: dict[str, Callable[[Operation], Behaviour]] = {
    **{name: _always(kind) for kind, names in _KINDS.items() for name in names.split()},
    "clamp": _clamp,
    "resize": _resize,
    "bytes": _bytes,
    "softmax": _always(FIXED, UNIT_RANGE),
    "sigmoid": _always(FIXED, UNIT_RANGE),
    "hard_sigmoid": _always(FIXED, HARD_RANGE),
    "tanh": _always(FIXED, TANH_RANGE),
    "unit": _always(FIXED, TANH_RANGE),
}


def activation(host: Host) -> Behaviour:
    """The behaviour of the activation that a host applies."""
    return behaviour(host.activation or Opaque())


def behaviour(role: Role) -> Behaviour:
    """How a call of this role treats its tensors; of a host without its activation."""
    match role:
        case Input():
            return Behaviour(INPUT)
        case BatchNorm() | Host():
            return Behaviour(FREE)
        case Ours(quantizes=True):
            return Behaviour(QUANTIZES)
        case Ours(quantized=True):
            return Behaviour(DONE)
        case Ours():
            own = Behaviour(FREE) if role.activation is None else behaviour(role.activation)
            return own if own.kind == FIXED else Behaviour(FREE)
        case Within():
            return Behaviour(WITHIN)
        case Operation():
            return BEHAVIOURS[role.name](role)
    return Behaviour(FLOAT)


def stays_float(call: Call) -> bool:
    """Whether the layer, or the activation of the host, of ``call`` has no integer form."""
    match call.role:
        case Host() as host:
            return host.row.float_only or activation(host).kind == FLOAT
        case Opaque():
            return set(call.dtypes) != {"bool"}  # a mask
    return False
