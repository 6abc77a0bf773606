"""Values that the variables of a layer have at the moment, in a call of it on symbolic tensors.

An operation of such a call that is given a variable, or what was computed of one, has a constant:
the variable would not be trained through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import Flavour


def inside(flavour: Flavour, layer: Any) -> list[tf.Variable]:
    """The variables in floating point of the layers inside a layer."""
    parts = flavour.sublayers(layer)
    held = {id(v): flavour.tf_variable(v) for part in parts for v in part.variables}
    return [variable for variable in held.values() if variable.dtype.is_floating]


def read(flavour: Flavour, model: Any, variables: Sequence[Any], tape: tf.GradientTape) -> bool:
    """Whether operations of a functional model may be given variables of the layers inside.

    They are given them as such, or as values of the moment, which would be constants: those of
    several elements may be, single numbers are if they have a gradient.

    Args:
      flavour, model: the model.
      variables: of :func:`inside`.
      tape: of the call that made the model; it watched them.
    """

    def is_one(leaf: Any) -> bool:
        if flavour.is_variable(leaf):
            return True
        if not (tf.is_tensor(leaf) and hasattr(leaf, "numpy") and leaf.dtype.is_floating):
            return False
        found = tape.gradient(leaf, variables) if leaf.shape.rank == 0 else variables
        return any(each is not None for each in found)

    given = [(args, kwargs) for _, args, kwargs, _ in flavour.nodes(model)]
    return any(map(is_one, tf.nest.flatten(given)))
