"""The call graph of a model: what a front end makes, and everything after it reads.

A node of the graph is a *call*, not a layer: a layer that is called twice has two nodes. Nested
models are inlined, so the graph has only layers and operations. The same representation serves
both Kerases. Each call has a *role* (:mod:`rewriter.reading.roles`), found once by the front end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from rewriter.keras_compat import Flavour

if TYPE_CHECKING:
    from rewriter.reading.roles import Role

# Ends the name of a layer that gave its own to the Quantize layer after it, an output's.
UNQUANTIZED = "_unquantized"


@dataclasses.dataclass(frozen=True)
class Ref:
    """The ``index``-th tensor (flattened) that call number ``call`` returns."""

    call: int
    index: int = 0


@dataclasses.dataclass(eq=False)
class Call:
    """One call of one layer.

    Attributes:
      layer: the layer or operation object.
      path: its name, with the names of the models around it: ``"backbone/conv1"``.
      args, kwargs: the arguments, with a :class:`Ref` in the place of every tensor.
      shapes: static shapes of the flattened outputs.
      dtypes: dtype names of the flattened outputs.
      input_shapes, input_dtypes: static shapes and dtype names of :attr:`refs`.
      masked: whether it is called under a mask, given to it or attached to an input.
      always: the ``training`` that a user's code gives it, whatever the model's; else None.
      closed: why it has no integer form, or stays one call where it may be several, with what to
        do; "" for others.
      repeated: whether it is a step of several that the layer makes, whose results have one range.
      role: what it is to us.
    """

    layer: Any
    path: str
    args: tuple
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    input_shapes: tuple[tuple[int | None, ...], ...] = ()
    input_dtypes: tuple[str, ...] = ()
    masked: bool = False
    always: bool | None = None
    closed: str = ""
    repeated: bool = False
    role: Role = dataclasses.field(init=False)

    @functools.cached_property
    def refs(self) -> list[Ref]:
        """The tensors this call consumes, in order."""
        return self.tensors((self.args, self.kwargs))

    @staticmethod
    def tensors(structure: Any) -> list[Ref]:
        """The tensors in any nested arguments, in order."""
        return [leaf for leaf in tf.nest.flatten(structure) if isinstance(leaf, Ref)]


@dataclasses.dataclass(frozen=True)
class Part:
    """A model inside the model.

    Attributes:
      name: its own, without those of the models around it.
      calls: of its layers, as indices.
      trainable: its flag.
    """

    name: str
    calls: list[int]
    trainable: bool


@dataclasses.dataclass(eq=False)
class Graph:
    """All calls of a model in topological order.

    Attributes:
      flavour: the Keras of the model.
      name: the model's name.
      calls: topologically sorted; the index of a call is its identity.
      inputs, outputs: the model's inputs and outputs, nested as the user gave them, as Refs.
      output_names: one per flattened output, as Keras names them.
      parts: the models inside that have weights.
      reopened: whether a model inside leaves sizes open that the tensors have that it is given.
      whole: the tensors that are whole numbers in a program, see
        :mod:`rewriter.reading.whole_numbers`.
      regularized: layers that were opened, and have an activity regularizer, which no call has.
    """

    flavour: Flavour
    name: str
    calls: list[Call]
    inputs: Any
    outputs: Any
    output_names: tuple[str, ...]
    regularized: tuple[str, ...] = ()
    reopened: bool = False
    parts: tuple[Part, ...] = ()
    whole: frozenset[Ref] = frozenset()

    def consumers(self) -> dict[Ref, list[int]]:
        """For every tensor the calls that read it (a call appears once per use)."""
        found: dict[Ref, list[int]] = {}
        for index, call in enumerate(self.calls):
            for ref in call.refs:
                found.setdefault(ref, []).append(index)
        return found

    def output_refs(self) -> list[Ref]:
        """The outputs, flattened."""
        return tf.nest.flatten(self.outputs)

    def input_refs(self) -> list[Ref]:
        """The inputs, flattened."""
        return tf.nest.flatten(self.inputs)

    def shape(self, ref: Ref) -> tuple[int | None, ...]:
        return self.calls[ref.call].shapes[ref.index]


def map_refs(structure: Any, function: Callable[[Ref], Any]) -> Any:
    """``structure`` with every Ref replaced by ``function(ref)``."""
    return tf.nest.map_structure(
        lambda leaf: function(leaf) if isinstance(leaf, Ref) else leaf, structure
    )
