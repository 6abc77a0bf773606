"""Layers once more: from their configurations, or where those do not make them, as objects."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rewriter.errors import SaveError
from rewriter.keras_compat import copying, references
from rewriter.keras_compat.calls import flat_layers


class Cloning:
    """How a Keras makes a layer again."""

    keras: ModuleType

    def clone(
        self: Any, layer: Any, name: str | None = None, changes: Mapping[str, Any] | None = None
    ) -> Any:
        """A new, unbuilt layer of the same configuration (weights are not copied), with changes.

        Functions and objects of a user's are the layer's own, by reference. A layer that its
        configuration does not make is copied as an object, variables and all. A file that could not
        hold either is refused (``SaveError``) when the configuration of the new layer is asked for.
        """
        try:
            new = self._from_configuration(layer, name, changes)
        except Exception as error:  # of a user's class: whatever it raises, the layer is copied
            if changes:
                raise
            if not self.is_layer(layer):
                return copying.operation(layer)
            if self.exact_name(layer) and copying.takes_nothing(layer):
                return copying.plainly(layer, name or layer.name)
            if not layer.built:
                raise
            new = copying.copied(layer)
            self.rename(new, name or layer.name)
            copying.refuse_saving(self, new, layer, error)
            return new
        references.guard(self, new, layer.name)
        self.build_by_calls(new)
        return new

    def may_be_saved(self: Any, layer: Any) -> None:
        """Have a layer of a user's, of a model that was loaded, saved as a copy of it would be."""
        if self.is_layer(layer) and not (self.class_name(layer) or self.is_ours(layer)):
            self.build_by_calls(layer)
            references.say_values(self, layer)

    def build_by_calls(self: Any, layer: Any) -> None:
        """Let a file of a functional model say nothing of the sizes that a layer was built for.

        Keras 3 would build a user's layer from lists where its call gives tuples, and some classes
        take no lists. The model's calls build the layer as well, as they did the first time.
        """

    def unsaved(self: Any, layer: Any) -> str:
        """Why a layer of a user's cannot be saved with its model, and what to do; "" if it can."""
        if not self.is_layer(layer) or not layer.built:
            return ""
        try:
            references.refuse(self, layer)
            if not self.exact_name(layer) or self.sublayers(layer):
                self._from_configuration(layer, None, None)
        except SaveError as error:
            return str(error)
        except Exception as error:  # of a user's class
            return copying.unsaved(self, layer, error)
        return ""

    def stock_clone(self: Any, layer: Any) -> Any:
        """As ``clone``; of a user's class that only adds to a stock layer: that stock layer."""
        base = self.layer_class(self.class_name(layer))
        if self.exact_name(layer) or base is None:
            return self.clone(layer)
        new = self._from_configuration(layer, None, None, base)
        references.guard(self, new, layer.name)
        return new

    def as_stock(self: Any, layer: Any) -> Any:
        """As ``clone``; of ours that stands for a stock layer: that one, its kernel a variable."""
        base = self.layer_class(self.stands_for(type(layer)))
        return (
            self.clone(layer) if base is None else self._from_configuration(layer, None, None, base)
        )

    def _from_configuration(
        self: Any,
        layer: Any,
        name: str | None,
        changes: Mapping[str, Any] | None,
        base: Any = None,
    ) -> Any:
        config, named = references.configuration(self, layer)
        if base is not None:
            config = {key: config[key] for key in base.get_config(layer) if key in config}
        of_variables = references.holds_variables(self, config)
        if of_variables:
            config = references.values(self, config)
        config = {**config, **(changes or {})}
        if name is not None:
            config = {**config, "name": name}
        # The code is in this process already.
        with self.keras.saving.custom_object_scope(named), self.allow_lambda():
            new = (base or type(layer)).from_config(config)
        if not self.exact_name(layer) and _parts(layer) & _parts(new):
            raise ValueError("it holds layers or variables of the layer itself")
        if of_variables:
            references.say_values(self, new)
        if name is not None and new.name != name:
            new._name = name  # a TensorFlowOpLayer puts a prefix before it
        return new


def _parts(layer: Any) -> set[int]:
    """A layer, what is inside it and its variables, by identity."""
    return {id(each) for each in (*flat_layers(layer), *getattr(layer, "variables", ()))}
