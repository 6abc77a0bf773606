"""Where a layer stands in the models that it is part of, and what is inside of it.

Keras has a node for each call.
"""

from __future__ import annotations

from typing import Any


def flat_layers(layer: Any) -> list[Any]:
    """A layer or model and all layers inside it, outer ones first; none for an operation."""
    flatten = getattr(layer, "_flatten_layers", None)
    return list(flatten()) if flatten else []


class Calls:
    """The symbolic calls of layers and operations, and what is before and after them."""

    def places(self, layer: Any) -> int:
        """In how many places of its model a layer stands; 0 for a part of another layer."""
        return len(layer._inbound_nodes)

    def calls(self, layer: Any) -> list[Any]:
        """The nodes of the calls of a layer; none for a part of another layer."""
        return list(layer._inbound_nodes)

    def rename(self, layer: Any, name: str) -> None:
        """Give a layer that has not been called yet another name."""
        raise NotImplementedError

    def called(self, node: Any) -> Any:
        """The layer or operation that a node is a call of."""
        raise NotImplementedError

    def maker(self, tensor: Any) -> Any:
        """The layer or operation whose call a symbolic tensor comes from."""
        return tensor._keras_history[0]

    def earlier(self: Any, node: Any) -> list[Any]:
        """The nodes that make what a node reads; of one that passes a tensor on, that of this."""
        parents = list(node.parent_nodes)
        return parents[:1] if self.passes_on(self.called(node)) else parents

    def later(self, node: Any) -> list[Any]:
        """The nodes that read what a node makes."""
        readers = self.called(node)._outbound_nodes
        return [reader for reader in readers if any(n is node for n in self.earlier(reader))]

    def is_masked(self, tensor: Any) -> bool:
        """Whether a symbolic tensor carries a mask."""
        return getattr(tensor, "_keras_mask", None) is not None

    def sublayers(self, layer: Any) -> list[Any]:
        """All layers inside ``layer``; none for an operation."""
        return [inner for inner in flat_layers(layer) if inner is not layer]

    def own_variables(self, layer: Any) -> list[Any]:
        """The variables of ``layer`` that belong to no layer inside it."""
        inner = {id(v) for part in self.sublayers(layer) for v in part.variables}
        return [v for v in layer.variables if id(v) not in inner]

    def restrained(self, layer: Any) -> bool:
        """Whether one of those has a regularizer or a constraint."""
        held = ("regularizer", "constraint")
        own = self.own_variables(layer)
        # tf_keras keeps the regularizers of a layer's variables as functions of the layer.
        losses = getattr(layer, "_callable_losses", None)
        return bool(losses) or any(getattr(v, name, None) is not None for v in own for name in held)

    def input_dropout(self, recurrent: Any) -> str:
        """The stock layer that drops what a recurrent layer's ``dropout`` does; ``""``: none."""
        raise NotImplementedError
