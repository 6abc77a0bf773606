"""A copy of a layer that its configuration does not make: the object itself once more.

A layer of a user's may have no configuration, or one that its class cannot be built from. What it
holds is copied then: the layers inside it and their variables with it, its functions and other
objects by reference where they cannot be copied. The calls that it was part of are left out.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np

from rewriter.errors import SaveError, short
from rewriter.keras_compat.calls import flat_layers

# Made anew with every object, or bound to the old one.
_OWN = ("build", "get_config")


def copied(layer: Any) -> Any:
    """A layer that shares neither variables nor calls with ``layer``, which has been built."""
    parts = flat_layers(layer) or [layer]
    memo: dict[int, Any] = {}
    for part in parts:
        cls: Any = type(part)
        memo[id(part)] = cls.__new__(cls)
        for nodes in ("_inbound_nodes", "_outbound_nodes", "_losses"):
            held = vars(part).get(nodes)
            if held is not None:
                memo[id(held)] = []
        for generator in vars(part).get("_seed_generators") or ():
            # Keras 3's: it holds the module that it draws with, which cannot be copied.
            made = type(generator).from_config(generator.get_config())
            made.state.assign(generator.state)
            memo |= {id(generator): made, id(generator.state): made.state}
    for part in parts:
        new = memo[id(part)]
        for key, value in vars(part).items():
            if key in _OWN:
                continue
            vars(new)[key] = _copied(value, memo)
        _mend(new)
    return memo[id(layer)]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) not in memo and type(value).__module__.startswith("keras.src.utils.tracking"):
        # What Keras 3 puts in the place of containers asks for its tracker, which has none yet.
        if isinstance(value, (list, set, tuple)):
            kind: Any = next(k for k in (list, set, tuple) if isinstance(value, k))
            memo[id(value)] = kind(_copied(each, memo) for each in value)
        elif isinstance(value, dict):
            memo[id(value)] = {key: _copied(each, memo) for key, each in value.items()}
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a module, a graph: nothing that a layer changes
        for key in list(memo)[known:]:
            del memo[key]  # the half of it that has been copied
        return value


def _mend(layer: Any) -> None:
    """Let what Keras 3 knows a layer's variables and parts by say those of the copy."""
    tracker = vars(layer).get("_tracker")
    for name, (_, store) in getattr(tracker, "config", {}).items():
        if isinstance(store, list):
            kept = list({id(each): each for each in store}.values())
            list.__setitem__(store, slice(None), kept)
            tracker.stored_ids[name] = {id(each) for each in store}


def takes_nothing(layer: Any) -> bool:
    """Whether a layer is made with no arguments but those that all layers have."""
    parameters = inspect.signature(type(layer).__init__).parameters.values()
    return all(p.name == "self" or p.kind is p.VAR_KEYWORD for p in parameters)


def plainly(layer: Any, name: str) -> Any:
    """Such a layer of Keras 3 again; given an object as its dtype it has no configuration."""
    return type(layer)(
        name=name,
        dtype=layer.dtype_policy.name,
        trainable=layer.trainable,
        activity_regularizer=layer.activity_regularizer,
    )


def operation(original: Any) -> Any:
    """An operation of Keras 3 again, with plain numbers in the place of NumPy's.

    Raises:
      TypeError: it does not keep what it was made with.
    """
    names = inspect.signature(type(original).__init__).parameters
    given = {name: _plain(getattr(original, name)) for name in names if name in vars(original)}
    return type(original)(**given)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(each) for each in value)
    return value.item() if isinstance(value, np.generic) else value


def refuse_saving(flavour: Any, layer: Any, original: Any, error: BaseException) -> None:
    """Have the configuration of a copy refused, with the reason that it has none.

    Raises:
      SaveError: not here: when the copy is asked for its configuration.
    """
    message = unsaved(flavour, original, error)

    def refused() -> dict[str, Any]:
        raise SaveError(message)

    object.__setattr__(layer, "get_config", refused)


def unsaved(flavour: Any, layer: Any, error: BaseException) -> str:
    """Why a layer cannot be saved with its model, and what to do."""
    return (
        f"The layer {layer.name!r} ({type(layer).__qualname__}) cannot be saved with its model: "
        f"Keras cannot build it from its configuration ({short(error)}). Give the class a "
        f"get_config with all arguments of its __init__, as values that JSON has, an __init__ that "
        f"hands **kwargs on, and register it with "
        f"@{flavour.name}.saving.register_keras_serializable(). Until then "
        "save_weights keeps the values."
    )
