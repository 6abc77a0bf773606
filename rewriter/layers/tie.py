"""What has layers hold one variable that they had in common in the original model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.keras_compat import Flavour, sharing


class TieMixin:
    """Has the layers that make its inputs hold variables in common.

    It stands after the last of these layers, passes what that makes on, and reads a tensor of each
    of the others only so that it finds them: its symbolic call puts the variable of one layer into
    the others. So a model that is built again, from a file or as a copy, has the variables in
    common before it is given values.

    Input: a list of tensors, each made by one of the layers. Output: the first one.

    Args:
      ties: for each variable that several layers hold, where: pairs of the number of an input and a
        place in the layer that makes it (:func:`rewriter.keras_compat.sharing.places`). The
        variable in the first place is put into the others.
    """

    flavour: Flavour

    def __init__(self, ties: Sequence[Sequence[Sequence[Any]]] = (), **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        self.supports_masking = True
        self.ties = tuple(tuple((int(i), str(at)) for i, at in group) for group in ties)
        self._tied = False

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._tied and all(map(self.flavour.is_tensor, tf.nest.flatten(inputs))):
            self._tie([self.flavour.maker(tensor) for tensor in tf.nest.flatten(inputs)])
            self._tied = True
        return super().__call__(inputs, *args, **kwargs)

    def _tie(self, layers: Sequence[Any]) -> None:
        """Put the variables of some of these layers into others.

        Raises:
          LoadError: a layer has no variable in a place, or one of another shape or type.
        """
        for group in self.ties:
            found = [self._held(layers, *place) for place in group]
            for (number, place), variable in list(zip(group, found, strict=True))[1:]:
                first, tf_variable = found[0], self.flavour.tf_variable
                if tuple(variable.shape) != tuple(first.shape) or variable.dtype != first.dtype:
                    raise LoadError(
                        f"The layer {layers[number].name!r} cannot have the variable {place!r} in "
                        f"common with {layers[group[0][0]].name!r}: it is of shape "
                        f"{tuple(variable.shape)} and type {variable.dtype}. Received: "
                        f"{tuple(first.shape)}, {first.dtype}. Rewrite the original model again."
                    )
                if tf_variable(variable) is not tf_variable(first):
                    sharing.put(layers[number], variable, first)

    def _held(self, layers: Sequence[Any], number: int, place: str) -> Any:
        if 0 <= number < len(layers):
            variable = sharing.places(self.flavour, layers[number]).get(place)
            if variable is not None:
                return variable
        own, names = self.name, [layer.name for layer in layers]
        at = names[number] if 0 <= number < len(layers) else number
        raise LoadError(
            f"The layer {own!r} has variables in common between {names}, but {at!r} has none at "
            f"{place!r}. Load the file with the classes and the version that wrote it, or rewrite "
            "the original model again."
        )

    def call(self, inputs: Any) -> Any:
        return inputs[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return mask[0] if isinstance(mask, (list, tuple)) else mask

    def get_config(self) -> dict[str, Any]:
        ties = [[list(place) for place in group] for group in self.ties]
        return {**super().get_config(), "ties": ties}
