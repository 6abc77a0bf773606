"""What activation functions compute, and layers that are used as such, as operations.

Both Kerases have the layers under the same names; a flavour names the functions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.reading import functions, scalar_functions
from rewriter.reading.graph import Call, Ref
from rewriter.reading.operations import Operation, clamp, softmax
from rewriter.reading.traces import Trace, trace

Reader = Callable[[Any, Call, tuple[Ref, ...]], Operation | None]


def _relu(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    slope, threshold = float(layer.negative_slope or 0), float(layer.threshold or 0)
    high = math.inf if layer.max_value is None else float(layer.max_value)
    if threshold != 0:
        return None
    if slope == 0:
        return clamp(x[0], 0, high)
    return Operation("leaky_relu", x, {"alpha": slope, "high": high})


def _leaky_relu(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    slope = layer.negative_slope if hasattr(layer, "negative_slope") else layer.alpha
    return Operation("leaky_relu", x, {"alpha": float(slope)})


def _elu(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return Operation("elu", x) if float(layer.alpha) == 1 else None


def _softmax(layer: Any, call: Call, x: tuple[Ref, ...]) -> Operation | None:
    return softmax(call, x[0], layer.axis)


# By the name that a flavour gives to an activation function.
FUNCTIONS: dict[str, Callable[[Any], Operation]] = {
    "linear": lambda x: Operation("identity", (x,)),
    "relu": lambda x: clamp(x, 0),
    "relu6": lambda x: clamp(x, 0, 6),
    "hard_tanh": lambda x: clamp(x, -1, 1),
    "leaky_relu": lambda x: Operation("leaky_relu", (x,), {"alpha": 0.2}),
    "elu": lambda x: Operation("elu", (x,)),
    "gelu": lambda x: Operation("gelu", (x,), {"approximate": False}),
    "gelu_tanh": lambda x: Operation("gelu", (x,), {"approximate": True}),
    "silu": lambda x: Operation("silu", (x,)),
    "hard_silu": lambda x: Operation("hard_silu", (x,)),
    "hard_sigmoid": lambda x: Operation("hard_sigmoid", (x,), {"slope": 1 / 6}),
    "hard_sigmoid_fifth": lambda x: Operation("hard_sigmoid", (x,), {"slope": 0.2}),
    "sigmoid": lambda x: Operation("sigmoid", (x,)),
    "tanh": lambda x: Operation("tanh", (x,)),
    "exponential": lambda x: Operation("exp", (x,)),
}

# Layers without weights that users give as an activation.
LAYERS: dict[str, Reader] = {
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
}


def function(
    flavour: Flavour, call: Call, activation: Any, x: Any, tables: bool = True
) -> Operation | None:
    """The operation of an activation function or of a layer used as one; None if it has none.

    ``tables``: whether a function without an operator is one, too.
    """
    if flavour.is_layer(activation):
        name = flavour.class_name(activation)
        return LAYERS[name](activation, call, (x,)) if name in LAYERS else None
    name = flavour.activation_name(activation)
    if name == "softmax":
        return softmax(call, x, -1)
    if name in FUNCTIONS:
        return FUNCTIONS[name](x)
    traced = trace(activation, [(None,)]) if callable(activation) else None
    if traced is None:
        return None
    found = scalar(traced, x)
    if found is not None and (tables or found.name != functions.NAME):
        return found
    return functions.of_trace(traced, x) if tables else None


def scalar(traced: Trace, x: Any) -> Operation | None:
    """The operation of a function of a number that is known by what it computes, or None.

    A clamp is fused, and its gradient is that of the clamp. Where the function stops its own, as
    ``x + stop_gradient(relu(x) - x)`` does, it stays, and is a table.
    """
    found = scalar_functions.recognise(traced)
    if found is None:
        return None
    name, options = found
    operation = FUNCTIONS[name](x)
    if operation.name in ("clamp", "identity") and traced.stops:
        return functions.of_trace(traced, x)
    return dataclasses.replace(operation, options={**operation.options, **options})
