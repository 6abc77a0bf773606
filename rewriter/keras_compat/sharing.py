"""Which variables a layer holds and where, and another variable in the place of one of them.

Two layers may hold one variable: an output layer that multiplies by an embedding's table, a decoder
with its encoder's kernel. A copy of each has variables of its own, until the one's are put into the
other's places.
"""

from __future__ import annotations

import collections
import inspect
from collections.abc import Iterator
from typing import Any

from rewriter.keras_compat.calls import flat_layers

_MARKS = "_shown_in_another_shape"
# Objects of these are not looked into: what they hold is their own.
_FOREIGN = ("keras", "tf_keras", "tensorflow", "numpy", "builtins", "functools", "collections")


def places(flavour: Any, layer: Any) -> dict[str, Any]:
    """The variables of a layer and of the layers inside it, by where each stands.

    A place is made of the names of attributes, and of numbers and keys in lists and dicts:
    ``"host.kernel"``. Each variable has one, the shortest, the same for a layer that is built
    again in the same way. Nothing but a key of the result is ever looked up by a place.
    """
    wanted = {id(variable) for variable in getattr(layer, "variables", ())}
    found: dict[str, Any] = {}
    seen = {id(layer)}
    todo = collections.deque([("", layer)])
    while todo and wanted:
        path, value = todo.popleft()
        for key, each in _inside(flavour, value):
            place = f"{path}.{key}" if path else key
            if id(each) in wanted:
                wanted.discard(id(each))
                found[place] = each
            elif id(each) not in seen and (flavour.is_layer(each) or _is_container(each)):
                seen.add(id(each))
                todo.append((place, each))
    return found


def _inside(flavour: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, by name: of a layer, the attributes that people name first."""
    if flavour.is_layer(value):
        # That Keras keeps lists of all variables and parts must not decide about their places.
        yield from sorted(vars(value).items(), key=lambda item: item[0].startswith("_"))
    elif isinstance(value, dict):
        yield from ((str(key), each) for key, each in value.items())
    else:
        yield from ((str(index), each) for index, each in enumerate(value))


def _is_container(value: Any) -> bool:
    return isinstance(value, (list, tuple, dict))


def attached(layer: Any) -> list[Any]:
    """The variables that were added to a layer itself, as its own."""
    names = ("_trainable_weights", "_non_trainable_weights")
    if not hasattr(layer, names[0]):
        names = ("_trainable_variables", "_non_trainable_variables")
    return [variable for name in names for variable in getattr(layer, name, ())]


def mark(layer: Any, variable: int) -> None:
    """Note that a layer has a weight of its own for a variable, which it shows in another shape.

    ``variable``: the identity of TensorFlow's.
    """
    object.__setattr__(layer, _MARKS, (*marked(layer), variable))


def marked(layer: Any) -> tuple[int, ...]:
    """The identities of the variables that were noted with :func:`mark`."""
    return getattr(layer, _MARKS, ())


def known_by_functions(layer: Any) -> Iterator[Any]:
    """What the functions that a layer has as attributes know: by closures, defaults, globals."""
    for value in list(vars(layer).values()):
        if inspect.isfunction(value):
            known = inspect.getclosurevars(value)
            yield from known.nonlocals.values()
            yield from known.globals.values()
            yield from value.__defaults__ or ()
            yield from (value.__kwdefaults__ or {}).values()


def put(layer: Any, old: Any, new: Any) -> None:
    """Have a layer, and all that is inside it, hold the variable ``new`` wherever ``old`` is.

    The order of the layer's variables stays. A regularizer of ``old`` counts no more: ``new`` has
    its own.
    """
    seen: set[int] = set()
    for part in flat_layers(layer):
        own = vars(part)
        losses = own.get("_callable_losses")  # of tf_keras: functions of the variable
        if losses:
            losses[:] = [loss for loss in losses if not _is_of(loss, old)]
        for key, value in list(own.items()):
            changed = _changed(value, old, new, seen)
            if changed is not value:
                own[key] = changed
        tracker = own.get("_tracker")  # of Keras 3: it knows variables by their identities
        for name, (_, store) in getattr(tracker, "config", {}).items():
            tracker.stored_ids[name] = {id(each) for each in store}


def _is_of(loss: Any, variable: Any) -> bool:
    """Whether a loss of a variable, in the functions that tf_keras puts around it, is of this."""
    while hasattr(loss, "func"):
        if any(each is variable for each in loss.args):
            return True
        loss = loss.args[0] if loss.args else None
    return False


def _changed(value: Any, old: Any, new: Any, seen: set[int]) -> Any:
    """``value``, or what is to stand in its place; containers and objects of users' are changed."""
    if value is old:
        return new
    if id(value) in seen:
        return value
    if isinstance(value, tuple) and not hasattr(value, "__wrapped__"):
        held = [_changed(each, old, new, seen) for each in value]
        if all(a is b for a, b in zip(held, value, strict=True)):
            return value
        return value._make(held) if hasattr(value, "_make") else type(value)(held)
    seen.add(id(value))
    if hasattr(value, "__wrapped__") and _is_container(value):  # of TensorFlow, around a container
        inner = value.__wrapped__
        changed = _changed(inner, old, new, seen)
        return value if changed is inner else changed
    if isinstance(value, list):
        # Past what notes that a list has been changed: it would refuse to be saved.
        for index in range(list.__len__(value)):
            held = list.__getitem__(value, index)
            changed = _changed(held, old, new, seen)
            if changed is not held:
                list.__setitem__(value, index, changed)
    elif isinstance(value, dict):
        for key, held in list(dict.items(value)):
            changed = _changed(held, old, new, seen)
            if changed is not held:
                dict.__setitem__(value, key, changed)
    if _has_attributes(value):
        own = vars(value)
        for key, held in list(own.items()):
            changed = _changed(held, old, new, seen)
            if changed is not held:
                own[key] = changed
    return value


def _has_attributes(value: Any) -> bool:
    if isinstance(value, type) or callable(value) or not isinstance(vars_of(value), dict):
        return False
    root = type(value).__module__.split(".")[0]
    return _is_container(value) or root not in _FOREIGN


def vars_of(value: Any) -> Any:
    """The attributes of an object; None if it has none of its own."""
    return getattr(value, "__dict__", None)
