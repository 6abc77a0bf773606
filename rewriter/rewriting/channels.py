"""A model with its channels first, with the channels last inside: the layout that LiteRT computes.

The layers are called again with the other layout and the same weights. A tensor that one of them
makes stays so as long as what reads it does not care, such as an activation or a sum; anything else
is given it as it was. Inputs and outputs of the model keep their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.pure_functions import words
from rewriter.reading.graph import Call, Graph, Ref
from rewriter.reading.operations import Operation
from rewriter.reading.roles import BatchNorm, Within

# Each element of their output is computed from the same element of their inputs.
_ELEMENTWISE = words(
    """abs add affine average bytes cast clamp elu exp function gelu hard_sigmoid hard_silu identity
    leaky_relu log maximum minimum multiply sigmoid silu squared_difference subtract tanh
    times_function"""
)


def are_first(graph: Graph) -> bool:
    """Whether a layer of a model has its channels first."""
    return any(_is_first(call) for call in graph.calls)


def _is_first(call: Call) -> bool:
    return getattr(call.layer, "data_format", None) == "channels_first" and len(call.refs) == 1


class Layout:
    """Which tensors of a model that is called again have their channels last.

    Args:
      graph: of the original.
    """

    def __init__(self, graph: Graph):
        self._flavour: Flavour = graph.flavour
        self._last: set[Ref] = set()
        self._moved: dict[tuple[Ref, bool], Any] = {}
        self._changed: dict[int, bool] = {}

    def changes(self, call: Call) -> Mapping[str, Any] | None:
        """What is different in the configuration of a call's layer; None if it is called as it is.

        Raises:
          UnsupportedModelError: a layer is called in both layouts.
        """
        found = self._changes(call)
        if self._changed.setdefault(id(call.layer), found is not None) != (found is not None):
            raise UnsupportedModelError(
                f"The layer {call.path!r} is called on tensors with the channels first and on "
                "others, which one layer cannot do with the channels last. Use two layers."
            )
        return found

    def _changes(self, call: Call) -> Mapping[str, Any] | None:
        layer, name = call.layer, self._flavour.class_name(call.layer)
        if _is_first(call) and name and name != "Flatten":
            return {"data_format": "channels_last"}
        if not call.refs or any(len(shape) < 3 for shape in call.input_shapes):
            return None
        read = [ref in self._last for ref in call.refs]
        if isinstance(call.role, BatchNorm) and read == [True]:
            axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
            return {"axis": -1} if axis % len(call.shapes[0]) == 1 else None
        if not any(read) or len({len(shape) for shape in call.input_shapes}) > 1:
            return None
        if name == "Concatenate" and layer.axis % len(call.shapes[0]) == 1:
            return {"axis": -1}
        return {} if _is_elementwise(call) else None

    def given(self, ref: Ref, tensor: Any, last: bool) -> Any:
        """A tensor in the layout that a call takes.

        Args:
          ref: which one.
          tensor: as the new model has it.
          last: whether the channels are to be last.
        """
        rank = len(tensor.shape)
        if rank < 3 or (ref in self._last) == last:
            return tensor
        if (ref, last) not in self._moved:
            spatial = list(range(1, rank))
            order = [*spatial[1:], 1] if last else [rank - 1, *spatial[:-1]]
            self._moved[ref, last] = self._flavour.keras.layers.Permute(order)(tensor)
        return self._moved[ref, last]

    def made(self, ref: Ref, tensor: Any) -> None:
        """Say that a call with changes has made a tensor."""
        if len(tensor.shape) >= 3:
            self._last.add(ref)


def _is_elementwise(call: Call) -> bool:
    if isinstance(call.role, Within):
        return True
    if not isinstance(call.role, Operation) or call.role.name not in _ELEMENTWISE:
        return False
    # A constant of several numbers lies along an axis.
    return all(np.ndim(value) == 0 for value in call.role.options.values())
