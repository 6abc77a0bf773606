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
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


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
            return self._case(tf.raw_ops.StatelessCase, self._by_value, index, arguments, shapes)
        if not tf.distribute.has_strategy():
            handles = [variable.handle for variable in variables]
            inputs = [*arguments, *handles]
            return self._case(tf.raw_ops.Case, self._by_handle, index, inputs, shapes)
        # What a strategy's variable is, only the caller's graph knows.
        values = [variable.value() for variable in variables]
        inputs, shapes = [*arguments, *values], [*shapes, *self._shapes]
        outputs = self._case(tf.raw_ops.StatelessCase, self._by_value, index, inputs, shapes)
        for variable, value in zip(variables, outputs[-len(variables) :], strict=True):
            variable.assign(value, read_value=False)
        return outputs[: -len(variables)]

    def _case(
        self, operator: Any, traced: Any, index: Any, inputs: Any, shapes: Any
    ) -> tuple[Any, ...]:
        graph = tf.compat.v1.get_default_graph()
        for function in traced:
            function.add_to_graph(graph)
        outputs = operator(
            branch_index=index,
            input=list(inputs),
            Tout=[tensor.dtype for tensor in traced[0].outputs],
            branches=traced,
            output_shapes=[tf.TensorShape(shape) for shape in shapes],
        )
        return tuple(outputs)

    @functools.cached_property
    def _by_handle(self) -> list[Any]:
        def given(branch: Any, tensors: Any, handles: Any) -> Any:
            return branch(*tensors, *map(_Handle, handles, self._shapes))

        return self._trace(given, [tf.TensorSpec((), tf.resource)] * len(self._shapes))

    @functools.cached_property
    def _by_value(self) -> list[Any]:
        def given(branch: Any, tensors: Any, values: Any) -> Any:
            held = [_Value(value) for value in values]
            outputs = branch(*tensors, *held)
            return *outputs, *(each.value() for each in held)

        return self._trace(given, [tf.TensorSpec(shape, tf.float32) for shape in self._shapes])

    def _trace(self, given: Any, specs: Sequence[Any]) -> list[Any]:
        """Each branch as a function of tensors; ``given`` calls one with the variables' specs."""
        count = len(self._specs)

        def traced(branch: Any) -> Any:
            def function(*inputs: Any) -> Any:
                return given(branch, inputs[:count], inputs[count:])

            signature = [*self._specs, *specs]
            return tf.function(function, input_signature=signature, autograph=False)

        with tf.init_scope():
            return [traced(branch).get_concrete_function() for branch in self._branches]
