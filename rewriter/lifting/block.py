"""A layer of a user's as layers: its call is run as a graph, cut where it calls layers inside it.

Between those calls stand operators of TensorFlow and the layer's own variables. Each operator
becomes a layer, as in a graph that is lifted from a file, and the variables are its weights. The
difference is that this graph trains as it stands: nothing in it may be taken for what computes
the same in inference only, and no variable may become a constant.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import LoadError, short
from rewriter.keras_compat import Flavour, flat_layers, private_tensorflow
from rewriter.keras_compat.recording import recorded
from rewriter.keras_compat.variables import handles
from rewriter.lifting.computed import Dependence
from rewriter.lifting.flatten import Flat
from rewriter.lifting.graph import Graph, Out, shows
from rewriter.lifting.values import Domains

_REPEATS = frozenset({"Tile", "BroadcastTo"})


class ClosedError(LoadError):
    """A layer cannot be opened: the message is the reason, as the rest of a sentence."""


@dataclasses.dataclass(eq=False)
class Inner:
    """One call of a layer inside.

    Attributes:
      layer: which one.
      args, kwargs: of the call, with an ``Out`` in the place of every tensor; without
        ``training``.
      training: the flag that it was called with.
      outputs: its results, with an ``Out`` for each tensor.
    """

    layer: Any
    args: Any
    kwargs: dict[str, Any]
    training: Any
    outputs: Any


@dataclasses.dataclass(eq=False)
class Block:
    """The graph of a call.

    Attributes:
      graph: its inputs are the arguments and what the layers inside return.
      arguments: the nodes of the arguments.
      inner: the calls of layers inside, by the nodes of their results.
      outputs: what the call returns, with an ``Out`` for each tensor.
    """

    graph: Graph
    arguments: list[int]
    inner: dict[int, Inner]
    outputs: Any


def trace(
    flavour: Flavour,
    layer: Any,
    specs: Sequence[tf.TensorSpec],
    call: Callable[[Sequence[Any]], tuple[tuple, dict[str, Any]]],
    training: bool,
) -> Block:
    """The graph of one call of a layer.

    Args:
      flavour: its Keras.
      layer: it has been built.
      specs: of the tensors that it is given.
      call: makes the arguments of these tensors.
      training: whether it runs as in training.

    Raises:
      ClosedError: it cannot be run so, or does what no layer can be made of.
    """
    if flavour.restrained(layer):
        raise ClosedError("a variable of its own has a regularizer or a constraint")
    records: list[tuple[Any, tuple, dict[str, Any], Any]] = []
    run: list[Any] = []
    outer = _context(flavour, layer)

    def record(inner: Any, original: Callable[..., Any], args: tuple, kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        tensors = [t for t in tf.nest.flatten((args, kwargs)) if tf.is_tensor(t)]
        with tf.control_dependencies(tensors):
            marked = tf.nest.map_structure(
                lambda t: tf.compat.v1.placeholder(t.dtype, t.shape, name="inside"), made
            )
        records.append((inner, args, dict(kwargs), marked))
        return marked

    def function(*tensors: Any) -> Any:
        args, kwargs = call(tensors)
        run.append(outer(args, kwargs, training))
        return tf.nest.flatten(run[0])

    losses = len(getattr(layer, "_losses", ()))
    with contextlib.ExitStack() as stack:
        for part in flat_layers(layer):
            stack.enter_context(flavour.added_losses(part))
        stack.enter_context(recorded(flavour.sublayers(layer), record))
        try:
            wrapped = tf.compat.v1.wrap_function(function, list(specs))
        except Exception as error:  # of a user's call: whatever it raises is the reason
            raise ClosedError(f"its call cannot be run as a graph: {short(error)}") from error
        if len(getattr(layer, "_losses", ())) > losses:
            raise ClosedError("its call adds losses of its own")
    return _read(flavour, layer, wrapped, records, run[0])


def _context(flavour: Flavour, layer: Any) -> Callable[[tuple, dict[str, Any], bool], Any]:
    """Calls ``layer`` from within another one, which is where it gets its flag from."""

    class Context(flavour.keras.layers.Layer):  # type: ignore[name-defined]
        given: tuple = ()

        def call(self, inputs: Any, training: Any = None) -> Any:
            args, kwargs = self.given
            return layer(*args, **kwargs)

    context = Context(dtype=layer.compute_dtype, name="context")

    def run(args: tuple, kwargs: dict[str, Any], training: bool) -> Any:
        # By an attribute that Keras does not look at, so that it touches none of the arguments.
        object.__setattr__(context, "given", (args, kwargs))
        tensors = [t for t in tf.nest.flatten((args, kwargs)) if tf.is_tensor(t)]
        return context(tensors[0], training=training)

    return run


def _read(
    flavour: Flavour,
    layer: Any,
    wrapped: Any,
    records: list[tuple[Any, tuple, dict[str, Any], Any]],
    outputs: Any,
) -> Block:
    try:
        flat = Flat(wrapped.graph.as_graph_def(), "its call")

        def out(value: Any) -> Any:
            if not tf.is_tensor(value):
                return value
            if isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
                return value  # of no graph: a constant
            return flat.tensors([value.name])[0]

        results = tf.nest.map_structure(out, outputs)
        inner: dict[int, Inner] = {}
        for part, args, kwargs, marked in records:
            tensors = [t for t in tf.nest.flatten(marked) if tf.is_tensor(t)]
            if not any(flat.placed(t.op.name) is not None for t in tensors):
                continue  # nothing waits for it
            given = {k: v for k, v in kwargs.items() if k != "training" and v is not None}
            own, options = tf.nest.map_structure(out, (args, given))
            results_of = tf.nest.map_structure(out, marked)
            made = Inner(part, own, options, kwargs.get("training"), results_of)
            inner.update((o.node, made) for o in tf.nest.flatten(made.outputs))
        arguments = [flat.tensors([t.name])[0] for t in wrapped.inputs if t.dtype != tf.resource]
    except LoadError as error:
        raise ClosedError(str(error).partition(". ")[0]) from error
    variables, constants = _captured(flavour, layer, wrapped, flat)
    given_nodes = [a.node for a in arguments if a.node not in constants]
    handed = [(each.args, each.kwargs) for each in inner.values()]
    read = [out for out in tf.nest.flatten((results, handed)) if _is_out(out)]
    ends = {str(i): o for i, o in enumerate(read)}
    inputs = {
        str(number): (number, tf.TensorShape(None), tf.float32) for number in (*given_nodes, *inner)
    }
    graph = Graph(flat.nodes, inputs, ends, variables, constants)
    _check(graph)
    return Block(graph, given_nodes, inner, results)


def _is_out(value: Any) -> bool:
    return isinstance(value, Out)


def _captured(
    flavour: Flavour, layer: Any, wrapped: Any, flat: Flat
) -> tuple[dict[int, tf.Variable], dict[int, np.ndarray]]:
    """What stands outside of the graph: variables of the layer, and values."""
    owned = map(flavour.tf_variable, layer.variables)
    held = {id(handle): variable for variable in owned for handle in handles(variable)}
    bound = {  # by what an operator would not have
        id(flavour.tf_variable(v)): part.name
        for part in flavour.sublayers(layer)
        if flavour.restrained(part)
        for v in flavour.own_variables(part)
    }
    variables: dict[int, tf.Variable] = {}
    constants: dict[int, np.ndarray] = {}
    for external, internal in wrapped.graph.captures:
        number = flat.placed(internal.op.name)
        if number is None:
            continue  # what reads it counts for nothing
        if external.dtype != tf.resource:
            constants[number] = external.numpy()
            continue
        variable = held.get(id(external))
        if variable is None:
            raise ClosedError("its call reads a variable that is not the layer's")
        if id(variable) in bound:
            raise ClosedError(
                f"its call reads a variable of {bound[id(variable)]!r}, which has a regularizer or "
                "a constraint, without calling that layer"
            )
        variables[number] = variable
    return variables, constants


def _check(graph: Graph) -> None:
    """Raise ClosedError where the graph does more than compute, or trains in another way.

    A value that is computed from variables, and not only shown in another shape, would become a
    constant; only a layer's kernel may be one.
    """
    dependence = Dependence(graph)
    computed, kernels = dependence.own, dependence.kernels()
    for node in graph.nodes:
        if "_gradient_op_type" in node.definition.attr:
            raise ClosedError("its call has a gradient of its own (tf.custom_gradient)")
        definition = private_tensorflow.op_definition(node.op)
        passive = ("Placeholder", "ReadVariableOp", "ResourceGather", "VarHandleOp")
        if definition is not None and definition.is_stateful and node.op not in passive:
            raise ClosedError(f"its call has {node.op}, which gives another result every time")
    symbolic = _symbolic(graph)
    domains = Domains(graph)
    for number, node in enumerate(graph.nodes):
        if number in symbolic or number in graph.variables or number not in computed - kernels:
            continue
        if node.op in _REPEATS and not domains.known(Out(number)):
            continue  # once for each sample
        if not shows(graph, node) and node.op != "Transpose":
            raise ClosedError(
                f"its call computes with its own variables ({node.op}) before it uses them, so "
                "they are the weights of no layer"
            )


def _symbolic(graph: Graph) -> set[int]:
    found = {number for number, _, _ in graph.inputs.values()}
    for number, node in enumerate(graph.nodes):
        if node.op not in ("Shape", "ShapeN", "Size", "Rank") and any(
            out.node in found for out in node.inputs
        ):
            found.add(number)
    return found
