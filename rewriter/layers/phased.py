"""The phase that all our layers share."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter.keras_compat import Flavour, paths
from rewriter.quantization import scalars


class PhasedMixin:
    """Gives a layer its ``phase``, an int32 variable: see :mod:`rewriter.quantization.phases`."""

    flavour: Flavour
    rewriter_phased = True
    __call__: Any  # Keras's
    state_scope = "quantization"  # of the scalars' names; the parts of one layer have their own
    owner = ""  # the name of the layer that this one is a part of

    def add_phase(self) -> None:
        """Add the variable; for ``build``."""
        self.phase = self.add_switch("phase")

    def add_switch(self, name: str) -> Any:
        """An int32 scalar variable that starts at 0."""
        with self.flavour.part_scope(self.state_scope):
            return self.flavour.add_weight(
                self, name, (), scalars.ZERO, dtype="int32", trainable=False
            )

    def signature(self, inputs: Any, dtype: Any = None) -> Any:
        """A placeholder for the output, where nothing else is asked for; None otherwise.

        Tracing conditions into a graph that is thrown away was most of the time of ``rewrite``.
        """
        if not self.flavour.signature_only():
            return None
        shape = tuple(self.compute_output_shape(inputs.shape))
        return tf.compat.v1.placeholder(dtype or inputs.dtype, shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Keras's own part, with the activity regularizer, which one of them leaves out."""
        config = super().get_config()
        regularizer = getattr(self, "activity_regularizer", None)
        if regularizer is not None and "activity_regularizer" not in config:
            serialize = self.flavour.keras.regularizers.serialize
            config["activity_regularizer"] = serialize(regularizer)
        places = paths.kept(self)
        return {**config, "places": places} if places else config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """As Keras's, with the places that the paths of variables begin with."""
        config = dict(config)
        places = config.pop("places", {})
        layer = super().from_config(config)
        paths.put(layer, places)
        return layer
