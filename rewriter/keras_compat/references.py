"""The functions that a layer was given, kept as they are when the layer is copied in memory.

A configuration names a function, and what has that name may be another one: Keras's own, or the
code of a lambda without the globals that it uses. So a copy in memory is given the functions and
objects themselves, and a file is refused that could not hold them. An activation that a file could
not hold, and that is one of Keras's own but for its name, becomes that.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from rewriter.errors import SaveError
from rewriter.keras_compat import same_functions

_ARGUMENT = re.compile(r"_?(\w*activation|\w+_(initializer|regularizer|constraint))")
_OF_LAMBDA = ("function", "output_shape", "mask")


def configuration(flavour: Any, layer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A layer's configuration with its functions in it, where they are not Keras's own.

    The second result: what ``custom_object_scope`` must know for ``from_config``.
    """
    named: dict[str, Any] = {}
    if not _plain(flavour, layer) or next(_all(flavour, layer, set()), None) is None:
        return layer.get_config(), named
    config = _view(flavour, layer, {}).get_config()
    return _filled(flavour, layer, config, named), named


def values(flavour: Any, config: Any) -> Any:
    """``config`` with values in the place of variables, which a new layer would share."""
    if isinstance(config, Mapping):
        return {key: values(flavour, value) for key, value in config.items()}
    if type(config) in (list, tuple):
        return type(config)(values(flavour, value) for value in config)
    return np.asarray(config).tolist() if flavour.is_variable(config) else config


def holds_variables(flavour: Any, config: Any) -> bool:
    """Whether a configuration holds some: a layer may say what it has made of an argument."""
    if isinstance(config, (Mapping, list, tuple)):
        inside = config.values() if isinstance(config, Mapping) else config
        return any(holds_variables(flavour, each) for each in inside)
    return bool(flavour.is_variable(config))


def say_values(flavour: Any, layer: Any) -> None:
    """Have the configuration of a layer say values where it would say variables."""
    get_config = layer.get_config
    object.__setattr__(layer, "get_config", lambda: values(flavour, get_config()))


def guard(flavour: Any, layer: Any, name: str) -> None:
    """Have the configuration of a copy refused where a file would lose a function of it.

    ``name``: of the original.
    """
    if next(_all(flavour, layer, set()), None) is None:
        return
    get_config = layer.get_config

    def checked() -> dict[str, Any]:
        refuse(flavour, layer, name)
        return get_config()

    object.__setattr__(layer, "get_config", checked)


def refuse(flavour: Any, layer: Any, name: str | None = None) -> None:
    """Raise a SaveError if a file cannot hold a function that ``layer`` was given."""
    for owner, argument, value in _all(flavour, layer, set()):
        reason = _lost(flavour, owner, argument, value)
        if reason and _kept(flavour, owner, argument, value) is value:
            called = name or owner.name if owner is layer else owner.name
            raise SaveError(
                f"The layer {called!r} cannot be saved: its {argument.lstrip('_')} {reason}. "
                f"Received: {value!r}. Give the layer a function or class of a module, registered "
                f"with @{flavour.name}.saving.register_keras_serializable()."
            )


def _lost(flavour: Any, owner: Any, argument: str, value: Any) -> str:
    """Why no file brings ``value`` back; empty if one does."""
    name = getattr(value, "__name__", None)
    kept = type(value) if name is None else value
    if name is None and not hasattr(value, "get_config"):
        return "is an object that has no configuration"
    if flavour.is_lambda(owner) and argument in _OF_LAMBDA and flavour.keeps_code(value):
        used = sorted(inspect.getclosurevars(value).globals) if name == "<lambda>" else []
        if used and not flavour.keeps_globals:
            return f"is a lambda that uses the globals {used}, which a file does not hold"
        return ""
    if name == "<lambda>":
        return "is a lambda, which has no name that a file could hold"
    saving = flavour.keras.saving
    if saving.get_registered_object(saving.get_registered_name(kept)) is kept:
        return ""
    called = kept.__name__
    if called in flavour.known or called in flavour.stock_functions:
        if _root(value) == "tensorflow":
            return ""  # what Keras's own function of that name computes
        return f"is not registered, and a file would name {flavour.name}'s own {called!r}"
    return ""  # loaded with custom_objects


def _kept(flavour: Any, owner: Any, argument: str, value: Any) -> Any:
    """What a copy of ``owner`` is given: ``value``, or the function of Keras that it is."""
    if flavour.is_lambda(owner) or not argument.endswith("activation"):
        return value
    twin = same_functions.twin(flavour, value) if _lost(flavour, owner, argument, value) else None
    return value if twin is None else twin


def _root(value: Any) -> str:
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).split(".")[0]


def _is_given(flavour: Any, value: Any) -> bool:
    """Whether it is a function or object of a user's, to be had by reference."""
    if not callable(value) or isinstance(value, type) or flavour.is_layer(value):
        return False
    return _root(value) != flavour.keras.__name__


def _arguments(flavour: Any, layer: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of one layer, those inside it left out, that hold such functions."""
    own = (*_OF_LAMBDA, "_output_shape") if flavour.is_lambda(layer) else ()
    for name, value in vars(layer).items():
        if (name in own or _ARGUMENT.fullmatch(name)) and _is_given(flavour, value):
            yield name, value


def _inner(flavour: Any, layer: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of a layer that are layers or lists of them."""
    for name, value in vars(layer).items():
        if flavour.is_layer(value) or _are_layers(flavour, value):
            yield name, value


def _are_layers(flavour: Any, value: Any) -> TypeGuard[Sequence[Any]]:
    several = isinstance(value, (list, tuple)) and len(value) > 0
    return several and all(flavour.is_layer(each) for each in value)


def _all(flavour: Any, layer: Any, seen: set[int]) -> Iterator[tuple[Any, str, Any]]:
    """``(layer, attribute, function)`` of a layer and of all layers inside it."""
    if id(layer) in seen or not hasattr(layer, "__dict__"):
        return
    seen.add(id(layer))
    for name, value in _arguments(flavour, layer):
        yield layer, name, value
    for _, value in _inner(flavour, layer):
        for each in value if isinstance(value, (list, tuple)) else [value]:
            yield from _all(flavour, each, seen)


def _view(flavour: Any, layer: Any, seen: dict[int, Any]) -> Any:
    """``layer``, or where it holds such functions, one that says Keras's own in their place.

    Asking the layer itself for its configuration may fail: there is none for some of them. The
    view serves for that only, and shares everything else with the layer, which is left alone.
    """
    if id(layer) in seen or not hasattr(layer, "__dict__"):
        return seen.get(id(layer), layer)
    seen[id(layer)] = layer
    if not _plain(flavour, layer) or flavour.is_model(layer):
        return layer  # a model knows its layers by their identities
    changed = {name: _instead(flavour, name) for name, _ in _arguments(flavour, layer)}
    for name, value in _inner(flavour, layer):
        parts = value if isinstance(value, (list, tuple)) else [value]
        views = [_view(flavour, part, seen) for part in parts]
        if any(new is not old for new, old in zip(views, parts, strict=True)):
            changed[name] = views if isinstance(value, (list, tuple)) else views[0]
    if not changed:
        return layer
    view = object.__new__(type(layer))
    own = {key: value for key, value in vars(layer).items() if key != "get_config"}
    vars(view).update({**own, **changed})  # and not a method that asks the layer
    seen[id(layer)] = view
    return view


def _plain(flavour: Any, layer: Any) -> bool:
    """Whether Keras makes this layer from its configuration, which is then the arguments."""
    return _root(type(layer).from_config) == flavour.keras.__name__


def _instead(flavour: Any, name: str) -> Any:
    """What a view has in place of a function."""
    if name.endswith("_initializer"):
        return flavour.keras.initializers.Zeros()
    return flavour.keras.activations.linear if name.endswith(("activation", "function")) else None


def _filled(flavour: Any, layer: Any, config: Mapping[str, Any], named: dict[str, Any]) -> Any:
    """``config`` with the functions of ``layer``, and of the layers inside it, in their places."""
    filled = dict(config)
    if flavour.is_lambda(layer):
        for key in _OF_LAMBDA:
            value = getattr(layer, "_output_shape" if key == "output_shape" else key, None)
            if _is_given(flavour, value):
                flavour.give_lambda(filled, key, value, named)
    if flavour.is_model(layer):
        inside = {each.name: each for each in layer.layers}
        entries = config.get("layers", ())
        return {**filled, "layers": [_entry(flavour, inside, e, named) for e in entries]}
    for key, value in config.items():
        own = getattr(layer, key, None)
        own = getattr(layer, "_" + key, None) if own is None else own
        if _ARGUMENT.fullmatch(key) and _is_given(flavour, own):
            filled[key] = _kept(flavour, layer, key, own)
        elif flavour.is_layer(own) and isinstance(value, Mapping) and "config" in value:
            filled[key] = _within(flavour, own, value, named)
        elif own is not None and _are_layers(flavour, own) and isinstance(value, (list, tuple)):
            pairs = zip(own, value, strict=True)
            filled[key] = [_within(flavour, part, entry, named) for part, entry in pairs]
    return filled


def _entry(flavour: Any, inside: Mapping[str, Any], entry: Any, named: dict[str, Any]) -> Any:
    layer = inside.get(entry["config"].get("name"))
    return entry if layer is None else _within(flavour, layer, entry, named)


def _within(flavour: Any, layer: Any, entry: Any, named: dict[str, Any]) -> Any:
    if not _plain(flavour, layer):
        return entry
    return {**entry, "config": _filled(flavour, layer, entry["config"], named)}


def by_name(value: Callable[..., Any], named: dict[str, Any]) -> dict[str, Any]:
    """A reference that Keras 3 looks up among the custom objects."""
    name = f"rewriter_reference_{len(named)}"
    named[name] = value
    return {
        "module": "builtins",
        "class_name": "function",
        "config": name,
        "registered_name": name,
    }
