"""The layer around one operator that became no other layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import keras_compat
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.base import PACKAGE
from rewriter.lifting import operators


class GraphOperatorMixin:
    """One operator of TensorFlow, as a graph had it.

    It trains and is saved as any layer; it has no integer form.

    Args:
      operator: the operator and its attributes, as ``operators.to_json`` describes it.
      constants: operands that are no tensors of the model, by place: ``values`` and ``dtype``.
      operands: ``shape`` and ``dtype`` of operands that are weights, by place; with ``repeated``,
        the one row is given once for each sample; with ``weight``, it shows that of another place;
        with ``trainable`` as false it is never trained, whatever the layer's flag.
    """

    flavour: Flavour

    def __init__(
        self,
        operator: Mapping[str, Any],
        constants: Mapping[str, Any],
        operands: Mapping[str, Any],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._definition = operators.from_json(operator)
        self._operator = dict(operator)
        self._constants, self._operands = dict(constants), dict(operands)
        for place, kept in self._operands.items():
            if "weight" in kept:
                continue
            # In HDF5 tf_keras keeps what an optimizer has of a variable by its name alone.
            with tf.name_scope(self.name):  # type: ignore[attr-defined]
                weight = self.add_weight(  # type: ignore[attr-defined]
                    name=f"operand_{place}",
                    shape=tuple(kept["shape"]),
                    dtype=kept["dtype"],
                    initializer="zeros",
                    trainable=kept.get("trainable", True)
                    and kept["dtype"].startswith(("float", "bfloat")),
                )
            setattr(self, f"operand_{place}", weight)

    @property
    def operator(self) -> str:
        """The name of the operator."""
        return str(self._definition.op)

    @property
    def fixed(self) -> tuple[str, ...]:
        """The attributes of the weights that are never trained."""
        operands = self._operands.items()
        return tuple(f"operand_{p}" for p, kept in operands if not kept.get("trainable", True))

    def call(self, inputs: Any) -> Any:
        tensors = tf.nest.flatten(inputs)
        count = len(tensors) + len(self._constants) + len(self._operands)
        given, left = [], iter(tensors)
        for place in map(str, range(count)):
            if place in self._constants:
                kept = self._constants[place]
                given.append(tf.constant(np.array(kept["values"], kept["dtype"])))
            elif place in self._operands:
                kept = self._operands[place]
                own = getattr(self, f"operand_{kept.get('weight', place)}")
                weight = tf.convert_to_tensor(own)
                if "weight" in kept:
                    weight = tf.reshape(tf.cast(weight, kept["dtype"]), kept["shape"])
                if kept.get("repeated"):
                    weight = tf.repeat(weight, tf.shape(tensors[0])[0], axis=0)
                given.append(weight)
            else:
                given.append(next(left))
        outputs = operators.run(self._definition, given)
        return outputs if len(outputs) != 1 else outputs[0]

    def get_config(self) -> dict[str, Any]:
        own = {"operator": self._operator, "constants": self._constants, "operands": self._operands}
        return {**super().get_config(), **own}  # type: ignore[misc]


def _define(flavour: Flavour) -> Any:
    body = {"flavour": flavour, "__doc__": GraphOperatorMixin.__doc__, "__module__": __name__}
    cls = type("GraphOperator", (GraphOperatorMixin, flavour.keras.layers.Layer), body)
    register = flavour.keras.saving.register_keras_serializable(package=PACKAGE)
    return register(cls)


_BY_FLAVOUR = {flavour.name: _define(flavour) for flavour in keras_compat.usable()}


def of(flavour: Flavour) -> Any:
    """The class of the layer in a Keras."""
    return _BY_FLAVOUR[flavour.name]
