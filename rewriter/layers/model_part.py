"""What stands for a model that was nested in the original one, of which the layers are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter.keras_compat import Flavour, flat_layers


class ModelPartMixin:
    """The layers of a nested model by its name: ``q.get_layer("backbone").trainable = True``.

    It passes its input on, and stands somewhere among those layers. Setting ``trainable`` sets it
    of all of them, as it does of a nested model.

    Input: any tensor. Output: the same.

    Args:
      members: the names of the layers in the model that it is part of.
    """

    flavour: Flavour

    def __init__(self, members: Sequence[str] = (), **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.members = tuple(members)

    def call(self, inputs: Any) -> Any:
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    @property
    def layers(self) -> list[Any]:
        """The layers of the nested model, in the order of the original's calls."""
        found = self._reached()
        return [found[name] for name in self.members if name in found]

    def get_layer(self, name: str) -> Any:
        """The layer of that name.

        Raises:
          ValueError: the nested model had none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(f"{self.name!r} has no layer {name!r}. It has: {list(self.members)}.")

    def _reached(self) -> dict[str, Any]:
        """All layers that are connected with this one, by name."""
        todo = self.flavour.calls(self)[:1]
        seen = {id(call) for call in todo}
        found: dict[str, Any] = {}
        while todo:
            call = todo.pop()
            layer = self.flavour.called(call)
            found.setdefault(layer.name, layer)
            for other in (*self.flavour.earlier(call), *self.flavour.later(call)):
                if id(other) not in seen:
                    seen.add(id(other))
                    todo.append(other)
        return found

    @property
    def trainable(self) -> bool:
        """What was set last, or how the original was."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        base: Any = super(ModelPartMixin, type(self)).trainable
        base.fset(self, value)
        for layer in self.layers if getattr(self, "members", ()) else ():
            for part in flat_layers(layer):
                part.trainable = value

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "members": list(self.members)}
