"""Conditions in the graph that are traced once for all layers.

``tf.cond`` traces both branches, and their gradients, wherever it stands, and each of the hundreds
of conditions of a model is a graph of its own that TensorFlow optimizes and inlines before the
first step. A :class:`Switch` traces its branches once, for any shape, and puts one ``Case``
operator into the graph of the caller, which runs the chosen branch as a function. That costs two
or three microseconds a step. Gradients are given by hand by those who use it.

TensorFlow chooses oneDNN's kernels in a pass over the graphs that it places and partitions, which
the branches of a ``Case`` are not: a fused batch normalization in one is up to four times as slow
there. A ``lowered`` switch lets TensorFlow put the operators of its branches into the graph of the
caller before that pass, as it does with those of ``tf.cond``: no function is called, but the first
step takes longer. (Behind a function of their own in the branch, oneDNN's gradients of batch
normalizations corrupted memory.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


class Switch:
    """Functions of one signature, of which an index chooses one.

    Args:
      specs: a ``tf.TensorSpec`` for each argument.
      branches: functions of those arguments, each returning a tuple of tensors; the same number
        and dtypes for all. They may use nothing else.
      lowered: whether the branches become part of the caller's graph.
    """

    def __init__(
        self,
        specs: Sequence[Any],
        *branches: Callable[..., tuple[Any, ...]],
        lowered: bool = False,
    ):
        self._branches = branches
        self._lowered = lowered
        with tf.init_scope():
            self._traced = [
                tf.function(branch, input_signature=specs, autograph=False).get_concrete_function()
                for branch in branches
            ]
        self._dtypes = [tensor.dtype for tensor in self._traced[0].outputs]

    def __call__(
        self, index: Any, arguments: Sequence[Any], shapes: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The outputs of the branch that ``index`` names, as tensors.

        Args:
          index: int32 scalar; where it is known, no condition is made.
          arguments: tensors of the specs' dtypes.
          shapes: the static shape of each output, None where it is not known.
        """
        known = tf.get_static_value(index)
        if known is not None:  # there is nothing to choose later
            return tuple(self._branches[int(known)](*arguments))
        graph = tf.compat.v1.get_default_graph()
        for function in self._traced:
            function.add_to_graph(graph)
        outputs = tf.raw_ops.StatelessCase(
            branch_index=index,
            input=list(arguments),
            Tout=self._dtypes,
            branches=self._traced,
            output_shapes=[tf.TensorShape(shape) for shape in shapes],
        )
        if self._lowered:  # what tf.switch_case marks its operators with
            value = tf.compat.v1.AttrValue(b=True)
            outputs[0].op._set_attr("_lower_using_switch_merge", value)
        return tuple(outputs)
