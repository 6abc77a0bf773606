"""What a fused batch normalization is made from: its arguments, its config, a stock layer."""

from __future__ import annotations

import inspect
from typing import Any

from rewriter.keras_compat import Flavour, references
from rewriter.layers.phased import PhasedMixin
from rewriter.quantization.pipeline import BatchNormPipeline, Pipe

_PLAIN = (
    "axis",
    "momentum",
    "epsilon",
    "center",
    "scale",
    "bessel_correction",
    "synchronized",
)
_OBJECTS = {
    "initializers": (
        "beta_initializer",
        "gamma_initializer",
        "moving_mean_initializer",
        "moving_variance_initializer",
    ),
    "regularizers": ("beta_regularizer", "gamma_regularizer"),
    "constraints": ("beta_constraint", "gamma_constraint"),
}


class NormArguments(PhasedMixin):
    """The arguments of :class:`rewriter.layers.batch_norm.FusedBatchNormalizationMixin`."""

    flavour: Flavour
    bessel_correction: bool | None

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        beta_constraint: Any = None,
        gamma_constraint: Any = None,
        bessel_correction: bool | None = None,
        synchronized: bool = False,
        pipeline: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.axis = int(axis[0]) if isinstance(axis, (list, tuple)) else int(axis)
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.center = bool(center)
        self.scale = bool(scale)
        self.bessel_correction = bessel_correction
        self.synchronized = bool(synchronized)
        if pipeline is not None and not isinstance(pipeline, BatchNormPipeline):
            pipeline = BatchNormPipeline(**pipeline)
        self.pipeline = pipeline
        # Keras layers in the pipeline, as attributes, so that their variables are tracked.
        self._pipes: dict[str, Pipe] = {}
        given = locals()
        for module, names in _OBJECTS.items():
            for name in names:
                setattr(self, name, getattr(self.flavour.keras, module).get(given[name]))
        self.supports_masking = True

    @classmethod
    def like(cls, original: Any, name: str) -> Any:
        """An unbuilt layer that computes what ``original``, a stock layer or ours, computes."""
        if isinstance(original, cls):
            new = cls.from_config({**original._plain_config(serialized=False), "name": name})
            new.pipeline = original.pipeline
            return new
        config, _ = references.configuration(cls.flavour, original)
        parameters = inspect.signature(NormArguments.__init__).parameters
        kept = {key: config[key] for key in (*parameters, "trainable", "dtype") if key in config}
        kept.update(name=name, bessel_correction=cls.flavour.bessel_correction(original))
        # SyncBatchNormalization does not say so in its configuration.
        kept["synchronized"] = bool(getattr(original, "synchronized", False))
        return cls.from_config(kept)

    def get_config(self) -> dict[str, Any]:
        references.refuse(self.flavour, self)
        pipeline = None if self.pipeline is None else self.pipeline.to_dict()
        return {**self._plain_config(), "pipeline": pipeline}

    def _plain_config(self, serialized: bool = True) -> dict[str, Any]:
        """Without the pipeline, whose operations may have no name.

        ``serialized``: with the configurations of the other objects, not the objects themselves.
        """
        config = super().get_config()
        for name in _PLAIN:
            config[name] = getattr(self, name)
        for module, names in _OBJECTS.items():
            serialize = getattr(self.flavour.keras, module).serialize
            for name in names:
                value = getattr(self, name)
                config[name] = serialize(value) if serialized and value is not None else value
        return config
