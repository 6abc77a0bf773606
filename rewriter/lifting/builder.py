"""Makes the layers: their names, their values, and those that several calls share."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError
from rewriter.keras_compat import Flavour
from rewriter.lifting import affine, elementwise, evaluator, idioms, layer_norm, operators, values
from rewriter.lifting.computed import Dependence
from rewriter.lifting.graph import Graph, Node, Out, direct
from rewriter.lifting.values import Known, Repeated, Sizes, Symbol, Value, identity

Weights = dict[str, Known]  # by the attribute of the layer


class Builder:
    """What the rows work with.

    Attributes:
      graph: of the signature.
      flavour: the Keras of the layers.
      layers: its module of layers.
      domains: what depends on the inputs.
      norms: the batch normalizations that are in pieces.
      layer_norms: the layer normalizations that are in pieces.
      pieces: the activation functions that are in pieces.
      done: the nodes that a row for another has taken in.
      dilated: of convolutions that are dilated through the batch: the rates and the padding.
      back: the operators behind those, which then do nothing.
      recognised: for each layer by name: the operators that it stands for.
      kept: the layers that hold operators as they are.
      fixed_batch: how many samples the signature takes, where it takes no other number.
      trains: whether the graph is one that trains, so that what computes the same in inference
        only may not stand for it.
    """

    def __init__(
        self, graph: Graph, flavour: Flavour, where: str, operation: Any, trains: bool = False
    ):
        graph = idioms.plain(direct(graph))
        self.graph, self.flavour, self.where = graph, flavour, where
        self.trains = trains
        self.layers = flavour.keras.layers
        self.domains = values.Domains(graph)
        self.evaluator = evaluator.Evaluator(graph)
        self.dependence = Dependence(graph)
        self.read_by: dict[int, str] = {}  # variables of others, and the name of what reads them
        found = {} if trains else affine.Finder(graph, self.domains, self.evaluator).find()
        self.norms = found
        self.done: set[int] = {n for norm in self.norms.values() for n in norm.nodes}
        self.layer_norms: dict[int, layer_norm.Norm] = {}
        if not trains:
            finder = layer_norm.Finder(graph, self.domains, self.evaluator, self.done)
            self.layer_norms = finder.find()
            self.done |= {n for norm in self.layer_norms.values() for n in norm.nodes}
        stops = {n for n, node in enumerate(graph.nodes) if trains and node.op == "StopGradient"}
        self.pieces = elementwise.Finder(
            graph, self.domains, self.evaluator, elementwise.named(flavour), self.done | stops
        ).find()
        self.done |= {n for match in self.pieces.values() for n in match.nodes}
        self.dilated: dict[int, tuple[tuple[int, int], str]] = {}
        self.back: set[int] = set()
        self.recognised: dict[str, str] = {}
        self.kept: list[str] = []
        self._operation = operation
        self._values: dict[Out, Value] = {}
        self.fixed_batch: int | None = None
        self._read = {out.node for out, readers in graph.consumers.items() if readers}
        self._names: set[str] = set()
        self._shared: dict[Any, Any] = {}
        self._weights: list[tuple[Any, Weights]] = []

    @property
    def weighted(self) -> list[tuple[Any, Weights]]:
        """The layers that have weights, with those."""
        return [(layer, weights) for layer, weights in self._weights if weights]

    def share(self, layers: dict[Any, Any]) -> None:
        """Take layers that were made for the same variables before, and add new ones there."""
        self._shared = layers
        self._names |= {layer.name for layer in layers.values()}

    # Values

    def set(self, out: Out, value: Value) -> None:
        """Say what a tensor is."""
        self._values[out] = value

    def value(self, out: Out) -> Value:
        """What a tensor is.

        Raises:
          LoadError: it depends on the batch in a way that is not known here.
        """
        if out in self._values:
            return self._values[out]
        if self.domains.known(out):
            return self.evaluator.known(out)
        node = self.graph.nodes[out.node]
        repeated = self.evaluator.repeated(out, self.domains, self.shape)
        if repeated is not None:
            self._values[out] = repeated
            return repeated
        raise LoadError(
            f"{self.where}: {node.name!r} ({node.op}) computes sizes from the number of samples in "
            "a way that is not known here. Export it with a fixed shape, or save it with its "
            "layers: model.save('model.keras')."
        )

    def tensor(self, out: Out) -> Any:
        """The Keras tensor behind a symbolic one.

        Raises:
          LoadError: it is no tensor of the model.
        """
        value = self.value(out)
        if not isinstance(value, Symbol):
            raise self.refusal(self.graph.nodes[out.node], "its input is no tensor of the model")
        return value.tensor

    def known(self, out: Out) -> Known | None:
        """The value, where constants and variables alone decide it."""
        return self.evaluator.known(out) if self.domains.known(out) else None

    def shape(self, out: Out) -> tuple[int | None, ...]:
        """The shape of a symbolic tensor, None for the batch and what is left open."""
        return tuple(self.tensor(out).shape)

    def only_reader(self, out: Out) -> tuple[int, Node] | None:
        """The one operator that reads a tensor; None if there are several or none."""
        readers = self.graph.consumers[out]
        if len(readers) != 1 or readers[0] < 0:
            return None
        return readers[0], self.graph.nodes[readers[0]]

    def refusal(self, node: Node, reason: str) -> LoadError:
        """The error about an operator."""
        return LoadError(
            f"{self.where}: the operator {node.op} ({node.name!r}) cannot be made a layer: "
            f"{reason}. Save the model with its layers instead: model.save('model.keras')."
        )

    def needed(self, number: int) -> bool:
        """Whether anyone reads an output of a node."""
        return number in self._read

    # Layers

    def take(self, name: str) -> None:
        """Let no layer be called so."""
        self._names.add(name)

    def free(self, name: str) -> bool:
        """Whether no layer is called so, and one can be."""
        return (
            name not in self._names
            and re.fullmatch(r"[A-Za-z0-9.][A-Za-z0-9_.-]*", name) is not None
        )

    def name(self, node: Node, weights: Weights | None = None) -> str:
        """A name for the layer of an operator: that of its variables' owner, or of its scope."""
        variable = next(
            (k.variable for k in (weights or {}).values() if k.variable is not None), None
        )
        if id(variable) in self.read_by:
            parts = [self.read_by[id(variable)]]
        elif variable is not None and "/" in variable.name:
            parts = variable.name.split(":")[0].split("/")[:-1]
        else:
            scope = node.scope
            parts = scope[-2:-1] or scope[-1:]
            parts = [re.sub(r"_\d+$", "", part) for part in parts]
        base = re.sub(r"[^A-Za-z0-9_.-]", "_", "_".join(parts)).lstrip("_.-") or node.op.lower()
        options = itertools.chain([base], (f"{base}_{i}" for i in itertools.count(1)))
        name = next(option for option in options if option not in self._names)
        self._names.add(name)
        return name

    def apply(
        self,
        node: Node,
        make: Callable[..., Any],
        inputs: Any,
        weights: Weights | None = None,
        **options: Any,
    ) -> Any:
        """Call a layer on Keras tensors; the same layer again for the same variables.

        Args:
          node: for which it stands.
          make: its class.
          inputs: a tensor or several.
          weights: its values by attribute.
          options: of its constructor.
        """
        own, key = weights or {}, None
        if any(k.variable is not None for k in own.values()):
            ids = tuple((a, identity(k)) for a, k in own.items())
            key = make, ids, repr(([k.view for k in own.values()], sorted(options.items())))
        layer = self._shared.get(key) if key else None
        if layer is None:
            layer = make(name=self.name(node, weights), **options)
            self._weights.append((layer, own))
            if key:
                self._shared[key] = layer
            self.recognised[layer.name] = node.op
        return layer(inputs)

    def divided(self) -> list[str]:
        """The names of the variables that several layers have as weights of their own."""
        places: dict[int, int] = {}
        for _, ids, _ in self._shared:
            for _, each in ids:
                if isinstance(each, int):
                    places[each] = places.get(each, 0) + 1
        variables = {id(v): v for v in self.graph.variables.values()}
        return [variables[i].name for i, count in places.items() if count > 1 and i in variables]

    def assign(self) -> None:
        """Give the layers, which are built by now, their values.

        Raises:
          LoadError: a layer has another number of values.
        """
        for layer, weights in self._weights:
            for attribute, known in weights.items():
                variable = getattr(layer, attribute)
                shape = tuple(variable.shape)
                if int(np.prod(shape)) != known.array.size:
                    raise LoadError(
                        f"{self.where}: {layer.name!r} takes values of shape {shape}. Received: "
                        f"{known.array.shape}."
                    )
                variable.assign(known.array.reshape(shape))

    def keep(self, node: Node) -> list[Value]:
        """The operator as it is, in a layer of its own.

        Raises:
          LoadError: an operand depends on the number of samples.
        """
        tensors, constants, weights, repeated = [], {}, {}, set()
        for place, out in enumerate(node.inputs):
            value = self.value(out)
            if isinstance(value, Symbol):
                if value.rows:
                    raise self.refusal(node, "it works on rows of several samples")
                tensors.append(value.tensor)
                continue
            if isinstance(value, Repeated):
                repeated.add(place)
                value = value.row
            if isinstance(value, Sizes):
                if None in value.values:
                    raise self.refusal(node, "an operand depends on the number of samples")
                array = np.array(value.values[0] if value.scalar else value.values, np.int32)
                value = Known(array)
            if self.trains and out.node in self.dependence.computed and value.variable is None:
                raise self.refusal(node, "an operand is computed from variables")
            if value.array.dtype.kind not in "biuf":
                raise self.refusal(node, f"an operand is of type {value.array.dtype}")
            if value.variable is not None or value.array.size > 64 or place in repeated:
                weights[place] = value
            else:
                constants[str(place)] = value.array
        # One weight for all operands that show the same variable.
        first = {(identity(k), k.view): place for place, k in reversed(weights.items())}
        operands = [(place, first[identity(k), k.view], k) for place, k in weights.items()]
        outputs = self.apply(
            node,
            self._operation,
            tensors,
            {f"operand_{place}": k for place, own, k in operands if place == own},
            operator=operators.to_json(node.definition),
            constants={
                place: {"values": array.tolist(), "dtype": array.dtype.name}
                for place, array in constants.items()
            },
            operands={
                str(place): {
                    **operators.operand(k.array, k.variable),
                    **({"repeated": True} if place in repeated else {}),
                    **({"weight": str(own)} if own != place else {}),
                }
                for place, own, k in operands
            },
        )
        self.kept.append(f"{node.name} ({node.op})")
        return [Symbol(t) for t in tf.nest.flatten(outputs)]
