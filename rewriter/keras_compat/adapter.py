"""What a TFMOT quantizer sees of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class QuantizerAdapter:
    """Offers ``add_weight(name, ...)`` as tf_keras has it, and hands out TensorFlow variables."""

    def __init__(self, flavour: Any, layer: Any, dtype: str | None):
        self._flavour = flavour
        self._layer = layer
        self._options = {} if dtype is None else {"dtype": dtype}

    def add_weight(
        self,
        name: str,
        shape: Sequence[int] | int | None = None,
        initializer: Any = "zeros",
        trainable: bool = True,
        **options: Any,
    ) -> tf.Variable:
        # TFMOT's quantizers say None for a scalar, and a number for a vector.
        sizes = (shape,) if isinstance(shape, int) else tuple(shape or ())
        options = {**self._options, **options}
        variable = self._flavour.add_weight(
            self._layer, name, sizes, initializer, trainable=trainable, **options
        )
        self._flavour.keep(self._layer, name, variable)
        return self._flavour.tf_variable(variable)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)
