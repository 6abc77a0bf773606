"""What a Keras finds under the names in a file, and which of it is stock."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

from rewriter.keras_compat.pure_functions import words

_NO_VALUES = ("get", "serialize", "deserialize")  # of a module of functions: they make objects


# What a subclass may say anew without computing something else: how it is made, and how it is kept.
_ABOUT_ITSELF = words(
    """__module__ __qualname__ __doc__ __init__ __annotations__ __annotate__ __annotate_func__
    __dict__ __weakref__ __static_attributes__ __firstlineno__ __abstractmethods__ _abc_impl
    __slots__ __repr__ get_config from_config load_own_variables save_own_variables"""
)


class Names:
    """The names of one Keras. Nothing here imports a module or calls what it finds."""

    name: str
    keras: ModuleType
    registered: dict[str, type]  # our own layers, by class name

    # What subclasses supply.
    stock_bases: tuple[type, ...]  # of all stock classes that are made from a configuration
    function_modules: Sequence[str]  # public ones, with functions of tensors only
    more_functions: Sequence[str] = ()  # beside the public ones
    activation_names: ClassVar[Mapping[str, str]]  # ours, by its own
    slope_argument: str  # of the layer LeakyReLU

    def lookups(self) -> Iterator[Mapping[str, Any]]:
        """Where this Keras looks up a class that is named without its module."""
        raise NotImplementedError

    def symbol(self, module: str, name: str) -> Any:
        """What a module of this Keras calls ``name``; None if nothing."""
        raise NotImplementedError

    def user_object(self, name: Any, given: Mapping[str, Any]) -> Any:
        """What is registered with this Keras under ``name``, or given by it; else None."""
        if not isinstance(name, str):
            return None
        return self.keras.saving.get_registered_object(name, custom_objects=dict(given))

    def is_stock_class(self, value: Any) -> bool:
        """Whether it is a class of this Keras that is made from a configuration."""
        if not isinstance(value, type) or not issubclass(value, self.stock_bases):
            return False
        return value.__module__.split(".")[0] == self.keras.__name__

    def layer_class(self, name: str) -> type | None:
        """The layer class called ``name``, or None if this Keras has none."""
        return getattr(self.keras.layers, name, None)

    def stands_for(self, cls: type) -> str:
        """The stock layer that a class of ours is but for a computed kernel; ``""`` if none."""
        return getattr(cls, "stands_for", "") if cls in self.registered.values() else ""

    def unchanged_base(self, cls: type) -> str:
        """The name of the stock layer that a user's class only adds to; ``""`` if there is none.

        Nothing that the stock class has is defined again, but what says how the layer is made.
        """
        for base in cls.__mro__[1:]:
            if base is self.keras.layers.Layer:
                break
            if self.layer_class(base.__name__) is base:
                before = cls.__mro__[: cls.__mro__.index(base)]
                own = [item for each in before for item in vars(each).items()]
                # A property may stand for what the base keeps in an instance, such as its kernel.
                again = {n for n, v in own if hasattr(base, n) or isinstance(v, property)}
                return base.__name__ if again <= _ABOUT_ITSELF else ""
        return ""

    @functools.cached_property
    def known(self) -> Mapping[str, Any]:
        """All that this Keras may find under a name without a module, stock classes first."""
        tables = list(self.lookups())
        found: dict[str, Any] = {}
        for table in tables:
            for name, value in table.items():
                if name not in found or not self.is_stock_class(found[name]):
                    found[name] = value
        return found

    def stock_class(self, name: str) -> type | None:
        """The stock class that is found under ``name`` without a module."""
        found = self.known.get(name)
        return found if self.is_stock_class(found) else None

    @functools.cached_property
    def stock_functions(self) -> Mapping[str, Sequence[Any]]:
        """Functions that only compute, by the names that files have for them.

        Activations and operations share some names.
        """
        found: dict[str, list[Any]] = {}
        for module in self.function_modules:
            for name, value in vars(getattr(self.keras, module)).items():
                public = not name.startswith("_") and name not in _NO_VALUES
                if public and callable(value) and not isinstance(value, type):
                    found.setdefault(name, []).append(value)
        for name in self.more_functions:
            if callable(self.known.get(name)):
                found.setdefault(name, []).append(self.known[name])
        return found

    def is_stock_function(self, value: Any) -> bool:
        """Whether it is one of these, under whichever name."""
        return any(value is function for same in self.stock_functions.values() for function in same)

    def spelled(self, activation: str) -> str | None:
        """What this Keras calls an activation of that name of ours; None if it has none such."""
        for own, name in self.activation_names.items():
            if name == activation:
                return own
        known = activation not in self.activation_names
        return activation if known and hasattr(self.keras.activations, activation) else None

    def function(self, name: str) -> Any:
        """The function of symbolic tensors of that name in ``keras.ops``, as this Keras has it.

        Called as ``function(x, ...)`` with ``axis`` and ``keepdims`` as keywords; ``gelu_tanh`` is
        the GELU that is approximated.
        """
        raise NotImplementedError
