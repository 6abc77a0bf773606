"""What a call is to us: classified once, when the graph is read, and matched on ever after.

To plan, to place quantizers, to build and to lower are all a ``match`` on these classes; none of
them asks a layer for its class again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from rewriter.keras_compat import Flavour
from rewriter.lifting.operation import GraphOperatorMixin
from rewriter.reading import functions, hosts, inside, stock_activations, stock_layers
from rewriter.reading.hosts import Row
from rewriter.reading.operations import Operation

if TYPE_CHECKING:
    from rewriter.reading.graph import Call, Ref


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of the model."""


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """A batch normalization: a stock one, or ours in a model that was built with it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Host:
    """A linear layer that a batch normalization folds into.

    Attributes:
      row: which of them.
      layer: the layer that holds the kernels.
      distributed: whether it is applied to every step of axis 1 (``TimeDistributed``).
      activation: what its own activation computes; None if that has no integer form.
    """

    row: Row
    layer: Any
    distributed: bool
    activation: Operation | None

    def channel_axis(self, rank: int) -> int:
        """The axis of the output, of ``rank`` axes, that holds the channels."""
        if self.distributed:
            return hosts.channel_axis(self.layer, rank - 1) + 1
        return hosts.channel_axis(self.layer, rank)


@dataclasses.dataclass(frozen=True, eq=False)
class Ours:
    """One of our layers, but a batch normalization: the model, or a part of it, has been rewritten.

    Attributes:
      quantizes: whether it only puts what it reads on a grid.
      quantized: whether its output is on one.
      final: whether it is a layer of a twin or a frozen copy, of which nothing can be made.
      activation: what the activation of a host computes; None if there is none of an integer form.
    """

    quantizes: bool = False
    quantized: bool = False
    final: bool = False
    activation: Operation | None = None


# Classes of ours, of which only the names are known here.
_QUANTIZE, _FINAL = "Quantize", ("IntegerOperator", "QuantizeInput", "FakeQuantize")
_OFF_ZERO = "OffZero"


@dataclasses.dataclass(frozen=True)
class Within:
    """A part of a chain of calls that is one operation: that of the last of them.

    Attributes:
      pole: of a function in the operation, if this is a call that reads its tensor.
    """

    pole: functions.Pole | None = None


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Anything else: it trains as it is, and has no integer form."""


Role: TypeAlias = Input | BatchNorm | Host | Operation | Ours | Within | Opaque


def classify(flavour: Flavour, call: Call) -> Role:
    """The role of a call, all other attributes of which are known."""
    layer = call.layer
    if flavour.is_batch_norm(layer):
        return BatchNorm()
    if flavour.is_ours(layer):
        name = type(layer).__name__
        if name == _OFF_ZERO:
            return Operation("off_zero", tuple(call.refs), {"width": layer.width})
        quantized = name == _QUANTIZE or getattr(layer, "output_quantizer", None) is not None
        host = getattr(layer, "host", None)
        activation = (
            None
            if host is None
            else stock_activations.function(flavour, call, host.activation, None)
        )
        return Ours(name == _QUANTIZE, quantized, name in _FINAL, activation)
    if flavour.class_name(layer) == "InputLayer":
        return Input()
    found = hosts.find(flavour, layer)
    if found is not None:
        row, inner, distributed = found
        activation = stock_activations.function(flavour, call, inner.activation, None)
        return Host(row, inner, distributed, activation)
    operation = stock_layers.read(flavour, call) or inside.operation(flavour, call)
    single = flavour.class_name(layer) not in ("", *inside.STOCK)  # users' may be several calls
    if operation is None and (single or isinstance(layer, GraphOperatorMixin)):
        operation = functions.of_call(flavour, call)
    return operation or Opaque()


def opaque(calls: Sequence[Call], refs: Iterable[Ref], start: int) -> bool:
    """Whether one of the calls from ``start`` on that values are made by has no integer form.

    What computes a size, which an operation is not given, makes no value.
    """
    frontier, seen = list(refs), set()
    while frontier:
        index = frontier.pop().call
        if index < start or index in seen:
            continue
        seen.add(index)
        role = calls[index].role
        if isinstance(role, Opaque):
            return True
        frontier += role.operands if isinstance(role, Operation) else calls[index].refs
    return False
