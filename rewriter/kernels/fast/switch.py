"""Conditions in the graph that are traced once for all layers.

``tf.cond`` traces both branches, and their gradients, wherever it stands, and each of the hundreds
of conditions of a model is a graph of its own that TensorFlow optimizes and inlines before the
first step. A :class:`Switch` traces its branches once, for any shape, and puts one ``Case``
operator into the graph of the caller, which runs the chosen branch as a function. That costs two
or three microseconds a step. Gradients are given by hand by those who use it.

TensorFlow chooses oneDNN's kernels in a pass over the graphs that it places and partitions, which
the branches of a ``Case`` are not: what is to be oneDNN's stands outside of them. (Behind a
function of their own in a branch, oneDNN's gradients of batch normalizations corrupted memory.)

Branches may read and write variables: the operator is given their handles, so that neither reading
nor writing is in the graph of the caller, and a branch that needs none touches none.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from rewriter.kernels.fast import nodes


class _Handle:
    """A float32 variable inside a branch, by its handle: as much of ``tf.Variable`` as it takes."""

    def __init__(self, handle: Any, shape: Any):
        self._handle = handle
        self._shape = shape

    def value(self) -> Any:
        found = tf.raw_ops.ReadVariableOp(resource=self._handle, dtype=tf.float32)
        found.set_shape(self._shape)
        return found

    def assign(self, value: Any, read_value: bool = False) -> None:
        tf.raw_ops.AssignVariableOp(resource=self._handle, value=value)


class _Value:
    """The same, where the value is an argument of the branch, and what becomes of it a result."""

    def __init__(self, value: Any):
        self._value = value

    def value(self) -> Any:
        return self._value

    def assign(self, value: Any, read_value: bool = False) -> None:
        self._value = value


class Switch:
    """Functions of one signature, of which an index chooses one.

    Args:
      specs: a ``tf.TensorSpec`` for each argument.
      branches: functions of those arguments and then the variables, each returning a tuple of
        tensors; the same number and dtypes for all. They may use nothing else, and of a variable
        ``value()`` and ``assign(value, read_value=False)`` only.
      variables: the shape of each float32 variable.
    """

    def __init__(
        self,
        specs: Sequence[Any],
        *branches: Callable[..., tuple[Any, ...]],
        variables: Sequence[Any] = (),
    ):
        self._specs = list(specs)
        self._branches = branches
        self._shapes = list(variables)

    def __call__(
        self,
        index: Any,
        arguments: Sequence[Any],
        shapes: Sequence[Any],
        variables: Sequence[Any] = (),
    ) -> tuple[Any, ...]:
        """The outputs of the branch that ``index`` names, as tensors.

        Args:
          index: int32 scalar; where it is known, no condition is made.
          arguments: tensors of the specs' dtypes.
          shapes: the static shape of each output, None where it is not known.
          variables: as many ``tf.Variable`` as the switch has shapes of.
        """
        known = tf.get_static_value(index)
        if known is not None:  # there is nothing to choose later
            return tuple(self._branches[int(known)](*arguments, *variables))
        if not variables:
            return self._by_value(index, arguments, shapes)
        shared = [isinstance(each, tf.distribute.DistributedValues) for each in variables]
        if not tf.distribute.has_strategy() and not any(shared):
            handles = [variable.handle for variable in variables]
            return self._by_handle(index, [*arguments, *handles], shapes)
        # What a strategy's variable is, only the caller's graph knows; outside of the strategy, a
        # handle would be that of the first replica alone.
        values = [variable.value() for variable in variables]
        outputs = self._by_value(index, [*arguments, *values], [*shapes, *self._shapes])
        for variable, value in zip(variables, outputs[-len(variables) :], strict=True):
            variable.assign(value, read_value=False)
        return outputs[: -len(variables)]

    @functools.cached_property
    def _by_handle(self) -> _Case:
        def given(branch: Any, tensors: Any, handles: Any) -> Any:
            return branch(*tensors, *map(_Handle, handles, self._shapes))

        specs = [tf.TensorSpec((), tf.resource)] * len(self._shapes)
        return _Case("Case", *self._trace(given, specs))

    @functools.cached_property
    def _by_value(self) -> _Case:
        def given(branch: Any, tensors: Any, values: Any) -> Any:
            held = [_Value(value) for value in values]
            outputs = branch(*tensors, *held)
            return *outputs, *(each.value() for each in held)

        specs = [tf.TensorSpec(shape, tf.float32) for shape in self._shapes]
        return _Case("StatelessCase", *self._trace(given, specs))

    def _trace(self, given: Any, specs: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Each branch as a function of tensors; ``given`` calls one with the variables' specs.

        The second result is the order of the arguments, in which the branches first use them. In
        another one TensorFlow's optimizer makes every operator functions of its own.
        """
        count, signature = len(self._specs), [*self._specs, *specs]

        def traced(branch: Any, order: Sequence[int]) -> Any:
            def function(*inputs: Any) -> Any:
                given_order = [inputs[order.index(i)] for i in range(len(order))]
                return given(branch, given_order[:count], given_order[count:])

            ordered = [signature[i] for i in order]
            whole = tf.function(function, input_signature=ordered, autograph=False)
            return whole.get_concrete_function()

        with tf.init_scope():
            # What is chosen for an argument mostly uses the variables before the other arguments.
            order = [0, *range(count, len(signature)), *range(1, count)]
            distinct = dict.fromkeys(self._branches)  # one function for equal ones: 0.1 MB each
            found = {branch: traced(branch, order) for branch in distinct}
            used = [order[i] for i in _order_of_use([*found.values()])]
            if used != order:
                found, order = {branch: traced(branch, used) for branch in distinct}, used
        return [found[branch] for branch in self._branches], order


def _order_of_use(branches: Sequence[Any]) -> list[int]:
    """The arguments of some functions in the order in which their operators first use them."""
    order: dict[int, None] = {}
    for branch in branches:
        places = {x.name: index for index, x in enumerate(branch.graph.inputs)}
        for operator in branch.graph.get_operations():
            order.update(dict.fromkeys(places[x.name] for x in operator.inputs if x.name in places))
    return [*order, *(i for i in range(len(branches[0].inputs)) if i not in order)]


class _Case:
    """An operator that runs one of some functions.

    Through ``tf.raw_ops`` its node would take more than twice as long, most of that for the
    attributes, of which all but the shapes are always the same.
    """

    def __init__(self, kind: str, branches: Sequence[Any], order: Sequence[int]):
        self._kind = kind
        self._order = order
        self._branches = branches
        self._types = [tensor.dtype for tensor in branches[0].outputs]
        inputs = [tensor.dtype.as_datatype_enum for tensor in branches[0].inputs]
        outputs = [dtype.as_datatype_enum for dtype in self._types]
        names = [tf.compat.v1.NameAttrList(name=branch.name) for branch in branches]
        self._attributes = {
            "Tin": nodes.attribute(type=inputs),
            "Tout": nodes.attribute(type=outputs),
            "branches": nodes.attribute(func=names),
        }
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()  # that have the branches

    def __call__(self, index: Any, inputs: Sequence[Any], shapes: Sequence[Any]) -> tuple[Any, ...]:
        graph = tf.compat.v1.get_default_graph()
        if graph not in self._graphs:
            for branch in self._branches:
                branch.add_to_graph(graph)
            self._graphs.add(graph)
        known = [tf.TensorShape(shape).as_proto() for shape in shapes]
        attributes = {**self._attributes, "output_shapes": nodes.attribute(shape=known)}
        ordered = [inputs[i] for i in self._order]
        outputs = nodes.create(self._kind, [index, *ordered], self._types, attributes)
        return tuple(nodes.not_differentiable(outputs, inputs))
