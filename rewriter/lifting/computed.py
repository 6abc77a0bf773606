"""Linear layers whose kernel is computed from variables: standardized, masked, of a norm of 1.

A layer of a user's may compute the kernel of its convolution from its variables, which are trained
through that computation. It is read as the stock layer, with the variables as its weights and the
computation in its configuration: operators of TensorFlow by name, as in a layer around one of them.
What quantizes kernels quantizes the computed one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from rewriter import keras_compat
from rewriter.errors import LoadError, short
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import operators
from rewriter.lifting.graph import Graph, Out, shows
from rewriter.lifting.values import Known

if TYPE_CHECKING:
    from rewriter.lifting.builder import Builder, Weights

_SHAPES = words("Shape ShapeN Size Rank")
# Which operand of an operator is the kernel of a layer.
_KERNELS = {
    "Conv2D": 1,
    "Conv3D": 1,
    "DepthwiseConv2dNative": 1,
    "Conv2DBackpropInput": 1,
    "MatMul": 1,
    "BatchMatMul": 1,
    "BatchMatMulV2": 1,
    "BatchMatMulV3": 1,
}
_SMALL = 64  # elements of a constant that stands in the configuration; larger ones are weights


class Dependence:
    """Which tensors of a graph are computed from its variables, and from nothing that is given.

    Attributes:
      own: the nodes whose results depend on variables, but not on inputs.
      computed: those of them that do not merely show a variable.
    """

    def __init__(self, graph: Graph):
        inputs = {number for number, _, _ in graph.inputs.values()}
        self.own: set[int] = set()
        self.computed: set[int] = set()
        self._given, self._graph = inputs, graph
        sized: set[int] = set()  # what depends on the sizes of inputs, such as the batch's
        for number, node in enumerate(graph.nodes):
            before = [out.node for out in node.inputs]
            if number in graph.variables:
                self.own.add(number)
            elif node.op in _SHAPES:  # a size says nothing of a value
                sized.update({number} if any(b in inputs | sized for b in before) else ())
            elif number in inputs:
                continue
            elif any(b in inputs for b in before):
                inputs.add(number)
            elif any(b in self.own for b in before):
                self.own.add(number)
                if not shows(graph, node) or any(b in self.computed for b in before):
                    self.computed.add(number)
            if any(b in sized for b in before):
                sized.add(number)
        self._fixed = self.computed - sized

    def kernels(self) -> set[int]:
        """Those of :attr:`computed` that are read for nothing but the kernels of layers."""
        read: dict[int, list[tuple[Out, int]]] = {}
        for out, readers in self._graph.consumers.items():
            read.setdefault(out.node, []).extend((out, reader) for reader in readers)
        found: set[int] = set()
        for number in sorted(self.computed, reverse=True):
            used = [r in found or self._is_kernel(out, r) for out, r in read.get(number, ())]
            if used and all(used) and number in self._fixed:
                found.add(number)
        return found

    def _is_kernel(self, out: Out, reader: int) -> bool:
        """Whether a node reads a tensor as the kernel of a layer, and as nothing else."""
        if reader not in self._given:
            return False
        node = self._graph.nodes[reader]
        places = [place for place, read in enumerate(node.inputs) if read == out]
        return places == [_KERNELS.get(node.op)]


def layer(
    b: Builder, make: Any, out: Out, order: Sequence[int] = ()
) -> tuple[Any, Weights, dict[str, Any]]:
    """The layer whose kernel is what a graph computes from variables.

    Args:
      b: of the graph.
      make: the class of the stock layer.
      out: the kernel.
      order: of that one's axes in the kernel; empty if it is as they are.

    Returns:
      its class, its weights, and what its constructor takes beside the stock layer's arguments.

    Raises:
      LoadError: it is computed in another type than float32, or by what no layer may hold.
    """
    entries: list[dict[str, Any]] = []
    places: dict[Any, int] = {}  # of nodes, and of variables by identity
    weights: Weights = {}
    node, own = b.graph.nodes[out.node], b.dependence.own

    def operand(known: Known) -> int:
        array, key = known.array, id(known.variable)
        if known.variable is None or key not in places:
            trained = known.variable is not None and bool(known.variable.trainable)
            places[key] = len(entries)
            weights[f"operand_{len(entries)}"] = known
            entries.append(
                {"shape": list(array.shape), "dtype": array.dtype.name, "trainable": trained}
            )
        return places[key]

    def constant(known: Known) -> int:
        array = known.array
        if array.dtype.kind not in "biuf":
            raise b.refusal(node, f"its kernel is computed with values of type {array.dtype}")
        if array.size > _SMALL:
            return operand(known)
        values = array.ravel().tolist()
        shape = list(array.shape)
        entries.append({"constant": values, "shape": shape, "dtype": array.dtype.name})
        return len(entries) - 1

    todo = [out.node]
    while todo:
        number = todo[-1]
        if number in places:
            todo.pop()
            continue
        current = b.graph.nodes[number]
        if number in b.graph.variables or current.op in ("ReadVariableOp", "VarHandleOp"):
            places[number] = operand(b.evaluator.known(Out(number)))
            continue
        missing = [i.node for i in current.inputs if i.node not in places and i.node in own]
        if missing:
            todo += missing
            continue
        if current.op not in operators.ALLOWED - operators.STRUCTURE:
            raise b.refusal(current, "it may not stand in a layer")
        reads = [
            [places[i.node], i.index] if i.node in own else [constant(b.evaluator.known(i)), 0]
            for i in current.inputs
        ]
        places[number] = len(entries)
        entries.append({"operator": operators.to_json(current.definition), "inputs": reads})
    array = b.evaluator.known(out).array
    types = {array.dtype.name} | {
        k.array.dtype.name for k in weights.values() if k.variable is not None
    }
    if types != {"float32"}:
        raise b.refusal(node, f"its kernel is computed in {', '.join(sorted(types))}")
    result, shape = [places[out.node], out.index], list(array.shape)
    if order:
        axes = constant(Known(np.array(order, np.int32)))
        entries.append({"operator": {"op": "Transpose"}, "inputs": [result, [axes, 0]]})
        result, shape = [len(entries) - 1, 0], [shape[axis] for axis in order]
    function = {"values": entries, "result": result, "shape": shape}
    made = b.flavour.registered[f"Computed{make.__name__}"]
    return made, weights, {"kernel_of": json.dumps(function)}


class ComputedKernelMixin:
    """A linear layer of Keras whose kernel is a function of its weights.

    Args:
      kernel_of: the function as JSON: ``values``, each a weight (``shape``, ``dtype``,
        ``trainable``), a ``constant`` or an ``operator`` with the places of its ``inputs``; the
        place of the ``result``, and its ``shape``.

    Raises:
      LoadError: the function cannot be read, or has an operator that does more than compute.
    """

    flavour: Flavour
    stands_for: str  # the stock layer
    # Of that:
    use_bias: bool
    bias_initializer: Any
    add_weight: Any
    _kernel_entries: tuple[list[dict[str, Any]], dict[str, Any]]

    def __init__(self, *args: Any, kernel_of: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._kernel_of = kernel_of
        try:
            read = json.loads(kernel_of)
            entries, result = read["values"], read["result"]
            self._kernel_shape = tuple(map(int, read["shape"]))
            nodes = {
                str(i): operators.from_json(entry["operator"])
                for i, entry in enumerate(entries)
                if "operator" in entry
            }
            self._kernel_result = (int(result[0]), int(result[1]))
        except LoadError:
            raise
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise LoadError(
                f"The kernel of a {self.stands_for} is not described as a function of its weights: "
                f"{short(error)}. Rewrite the original model again."
            ) from error
        # Out of sight of what Keras makes of lists.
        object.__setattr__(self, "_kernel_entries", (entries, nodes))

    def build(self, input_shape: Any) -> None:
        for place, entry in enumerate(self._kernel_entries[0]):
            if "trainable" in entry:
                weight = self.add_weight(
                    name=f"operand_{place}",
                    shape=tuple(entry["shape"]),
                    dtype=entry["dtype"],
                    initializer="zeros",
                    trainable=entry["trainable"],
                )
                setattr(self, f"operand_{place}", weight)
        self.bias = None
        if self.use_bias:
            channels = self._kernel_shape[-1]
            if self.stands_for == "DepthwiseConv2D":
                channels *= self._kernel_shape[-2]
            elif self.stands_for == "Conv2DTranspose":
                channels = self._kernel_shape[-2]
            self.bias = self.add_weight(
                name="bias", shape=(channels,), initializer=self.bias_initializer, trainable=True
            )
        self.built = True

    @property
    def fixed(self) -> tuple[str, ...]:
        """The attributes of the weights that are never trained."""
        entries = enumerate(self._kernel_entries[0])
        return tuple(f"operand_{i}" for i, e in entries if not e.get("trainable", True))

    def computed_kernel(self) -> tf.Tensor:
        """The kernel, as a tensor through which the weights are trained: float32, as stock."""
        entries, nodes = self._kernel_entries
        values: list[list[Any]] = []
        for place, entry in enumerate(entries):
            if "operator" in entry:
                read = [values[i][k] for i, k in entry["inputs"]]
                values.append(operators.run(nodes[str(place)], read))
            elif "constant" in entry:
                array = np.array(entry["constant"], entry["dtype"]).reshape(entry["shape"])
                values.append([tf.constant(array)])
            else:
                values.append([tf.convert_to_tensor(getattr(self, f"operand_{place}"))])
        place, index = self._kernel_result
        return tf.ensure_shape(values[place][index], self._kernel_shape)

    def save_own_variables(self, store: Any) -> None:
        """As any layer: Keras 3 would look for a variable that is the kernel."""
        self.flavour.keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        """As any layer, likewise."""
        self.flavour.keras.layers.Layer.load_own_variables(self, store)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_of": self._kernel_of}  # type: ignore[misc]


def _define(flavour: Flavour, name: str) -> None:
    own = "depthwise_kernel" if name == "DepthwiseConv2D" else "kernel"
    attribute = flavour.kernel_attribute(name, own)
    body = {
        "flavour": flavour,
        "stands_for": name,
        attribute: property(lambda self: self.computed_kernel()),
        "__doc__": ComputedKernelMixin.__doc__,
        "__module__": __name__,
    }
    stock = getattr(flavour.keras.layers, name)
    flavour.register(type(f"Computed{name}", (ComputedKernelMixin, stock), body))


for _flavour in keras_compat.usable():
    for _name in ("Conv2D", "Conv3D", "DepthwiseConv2D", "Conv2DTranspose", "Dense"):
        _define(_flavour, _name)
