"""What the symbols of TensorFlow and the operations of Keras 3 compute, as operations.

One row for every name in :mod:`rewriter.keras_compat.symbols`: a function of a call and its
arguments, None where they give it no integer form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.grid import BYTES, WHOLE
from rewriter.keras_compat import Flavour
from rewriter.reading import choices, contractions, stock_moves
from rewriter.reading.operations import (
    Operation,
    affine,
    along,
    axes_of,
    clamp,
    constant,
    is_floating,
    is_tensor,
    softmax,
)
from rewriter.reading.stock_moves import Reader

if TYPE_CHECKING:
    from rewriter.reading.graph import Call, Ref


def read(flavour: Flavour, call: Call) -> Operation | None:
    """The operation of a call of a TensorFlow symbol or a Keras 3 operation.

    Returns:
      None where it has no integer form, or the arguments give it none.
    """
    specification = flavour.specification(call.layer)
    if specification is None:
        return None
    args, kwargs = flavour.arguments(call)
    return of(specification, dataclasses.replace(call, args=args, kwargs=kwargs))


def of(specification: str, call: Call) -> Operation | None:
    """The operation of a call, by its row in :mod:`rewriter.keras_compat.symbols`; or None."""
    name, arguments = _bind(specification, call)
    reader = _READERS.get(name)
    return None if reader is None else reader(call, arguments)


def _bind(specification: str, call: Call) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a call, from its row in a flavour's table.

    A row reads ``"mean input_tensor:x axis | keepdims"``: the name, the parameters in order (with
    the name they have here after a colon), and after ``|`` the attributes of the operation object.
    """
    positional, _, attributes = specification.partition("|")
    name, *parameters = positional.split()
    arguments: dict[str, Any] = {}
    for position, parameter in enumerate(parameters):
        theirs, _, ours = parameter.partition(":")
        if position < len(call.args):
            arguments[ours or theirs] = call.args[position]
        elif call.kwargs.get(theirs) is not None:
            arguments[ours or theirs] = call.kwargs[theirs]
    for attribute in attributes.split():
        theirs, _, ours = attribute.partition(":")
        arguments[ours or theirs] = getattr(call.layer, theirs)
    return name, arguments


def reciprocal(flavour: Flavour, call: Call) -> Ref | None:
    """What a call divides 1 by; None if it does anything else."""
    specification = flavour.specification(call.layer)
    if specification is None or specification.split()[0] != "divide":
        return None
    args, kwargs = flavour.arguments(call)
    _, arguments = _bind(specification, dataclasses.replace(call, args=args, kwargs=kwargs))
    number, below = constant(arguments.get("x")), arguments.get("y")
    one = number is not None and number.size == 1 and float(number.reshape(())) == 1
    return below if one and is_tensor(below) else None


# Arithmetic


def _two(
    name: str, left: Callable[[Any, np.ndarray], Any], right: Callable[[np.ndarray, Any], Any]
) -> Reader:
    """Two tensors; or a tensor and a constant, in either order."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        x, y = arguments["x"], arguments["y"]
        if is_tensor(x) and is_tensor(y):
            return Operation(name, (x, y))
        if is_tensor(x):
            number = constant(y)
            return None if number is None else left(x, number)
        number = constant(x)
        return None if number is None else right(number, y)

    return reader


def _squared_difference(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    x, y = arguments["x"], arguments["y"]
    two = is_tensor(x) and is_tensor(y)
    return Operation("squared_difference", (x, y)) if two else None


def _extreme(low: bool) -> Callable[[Any, np.ndarray], Operation | None]:
    def reader(x: Any, number: np.ndarray) -> Operation | None:
        if number.size != 1:
            return None
        bound = float(number.reshape(()))
        return clamp(x, low=bound) if low else clamp(x, high=bound)

    return reader


def _reciprocal(number: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 1.0 / number


def _divide(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """By a constant; or by a tensor, which is the product with a function of that."""
    x, y = arguments["x"], arguments["y"]
    if is_tensor(x) and is_tensor(y):
        return Operation("times_function", (x, y), {"function": _reciprocal})
    number = constant(y)
    return None if number is None or not is_tensor(x) else affine(x, _reciprocal(number))


def _power(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    exponent = constant(arguments["y"])
    if exponent is None or exponent.size != 1 or not is_tensor(arguments["x"]):
        return None
    names = {2.0: "multiply", 0.5: "sqrt", -0.5: "rsqrt"}
    name = names.get(float(exponent.reshape(())))
    operands = (arguments["x"],) * (2 if name == "multiply" else 1)
    return None if name is None else Operation(name, operands)


def _clip(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    low, high = (constant(arguments.get(key)) for key in ("min", "max"))
    if low is None or high is None or low.size != 1 or high.size != 1:
        return None
    return clamp(arguments["x"], float(low.reshape(())), float(high.reshape(())))


def _all_of(name: str) -> Reader:
    """Of a list of tensors, along an axis of the result."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        values = list(arguments["x"])
        if not all(is_tensor(value) for value in values):
            return None
        rank = len(call.shapes[0])
        axis = int(arguments.get("axis", 0)) % rank
        if axis == 0 and name != "add":
            return None  # the batch
        return Operation(name, tuple(values), {"axis": axis} if name != "add" else {})

    return reader


# Reductions, activations and dtypes


# What a reduction over a list of tensors, along the axis that they are stacked on, does to them.
_OF_SEVERAL = {"sum": "add", "mean": "average", "max": "maximum", "min": "minimum"}


def _reduction(name: str) -> Reader:
    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        if isinstance(arguments["x"], (list, tuple)):
            tensors = tuple(arguments["x"])
            plain = all(map(is_tensor, tensors)) and not arguments.get("keepdims", False)
            stacked = plain and axes_of(arguments.get("axis"), len(call.shapes[0]) + 1) == [0]
            return Operation(_OF_SEVERAL[name], tensors) if stacked else None
        axes = axes_of(arguments.get("axis"), len(call.input_shapes[0]))
        keepdims = bool(arguments.get("keepdims", False))
        if 0 in axes:  # the batch
            return None
        return Operation(name, (arguments["x"],), {"axes": axes, "keepdims": keepdims})

    return reader


def _unit(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    """By the root of the sum of squares."""
    if arguments.get("order", 2) != 2:
        return None
    return along("unit", call, arguments["x"], arguments.get("axis", -1))


def _softmax(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    return softmax(call, arguments["x"], arguments.get("axis", -1))


def _one(name: str, **options: Any) -> Reader:
    """Of one tensor; scalar arguments are options, with these defaults."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        found = {key: arguments.get(key, value) for key, value in options.items()}
        return Operation(name, (arguments["x"],), found)

    return reader


def _only(name: str, **required: float) -> Reader:
    """Of one tensor; None if a scalar argument has another value than this."""

    def reader(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
        fits = all(arguments.get(key, value) == value for key, value in required.items())
        return Operation(name, (arguments["x"],)) if fits else None

    return reader


def _cast(call: Call, arguments: Mapping[str, Any]) -> Operation | None:
    if {*call.dtypes, call.input_dtypes[0]} <= set(WHOLE):
        return Operation("convert", (arguments["x"],), {"dtype": call.dtypes[0]})
    if not is_floating(call.dtypes[0]):
        return None
    given = call.input_dtypes[0]
    name = "identity" if is_floating(given) else "bytes" if given in BYTES else "cast"
    options = {"dtype": given} if name == "bytes" else {}
    return Operation(name, (arguments["x"],), options)


_READERS: dict[str, Reader] = {
    "add": _two("add", lambda x, c: affine(x, offset=c), lambda c, x: affine(x, offset=c)),
    "subtract": _two(
        "subtract", lambda x, c: affine(x, offset=-c), lambda c, x: affine(x, -1.0, c)
    ),
    "multiply": _two("multiply", affine, lambda c, x: affine(x, c)),
    "divide": _divide,
    "maximum": _two("maximum", _extreme(True), lambda c, x: _extreme(True)(x, c)),
    "minimum": _two("minimum", _extreme(False), lambda c, x: _extreme(False)(x, c)),
    "negative": lambda call, arguments: affine(arguments["x"], -1.0),
    "square": lambda call, arguments: Operation("multiply", (arguments["x"],) * 2),
    "power": _power,
    "clip": _clip,
    "add_all": _all_of("add"),
    "concatenate": _all_of("concatenate"),
    "stack": _all_of("stack"),
    "mean": _reduction("mean"),
    "sum": _reduction("sum"),
    "max": _reduction("max"),
    "min": _reduction("min"),
    "unit": _unit,
    "abs": _one("abs"),
    "exp": _one("exp"),
    "log": _one("log"),
    "sqrt": _one("sqrt"),
    "rsqrt": _one("rsqrt"),
    "squared_difference": _squared_difference,
    **stock_moves.READERS,
    **contractions.READERS,
    **choices.READERS,
    "identity": _one("identity"),
    "cast": _cast,
    "relu": lambda call, arguments: clamp(arguments["x"], low=0),
    "relu6": lambda call, arguments: clamp(arguments["x"], 0, 6),
    "hard_tanh": lambda call, arguments: clamp(arguments["x"], -1, 1),
    "leaky_relu": _one("leaky_relu", alpha=0.2),
    "elu": _only("elu", alpha=1.0),
    "gelu": _one("gelu", approximate=False),
    "silu": _only("silu", beta=1.0),
    "hard_silu": _one("hard_silu"),
    "hard_sigmoid": _one("hard_sigmoid", slope=1 / 6),
    "sigmoid": _one("sigmoid"),
    "tanh": _one("tanh"),
    "softmax": _softmax,
}
