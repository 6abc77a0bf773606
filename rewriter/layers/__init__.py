"""The quantization-aware layers, once for each Keras that can be used in this process.

``layers.tf_keras`` and ``layers.keras`` hold the classes, so that a model can be built from them
from the start: ``rewriter.layers.keras.FusedBatchNormalization()``. They are registered for
saving, so ``import rewriter`` is all that a saved model needs to load.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter import keras_compat
from rewriter.keras_compat import Flavour
from rewriter.layers.batch_norm import FusedBatchNormalizationMixin
from rewriter.layers.fake_quantize import FakeQuantizeMixin
from rewriter.layers.host import QuantizedHostMixin
from rewriter.layers.layer_norm import QuantizedLayerNormalizationMixin
from rewriter.layers.model_part import ModelPartMixin
from rewriter.layers.off_zero import OffZeroMixin
from rewriter.layers.operator import IntegerOperatorMixin, QuantizeInputMixin
from rewriter.layers.quantize import QuantizeMixin
from rewriter.layers.still_rows import StillRowsMixin
from rewriter.layers.tie import TieMixin


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layer classes of one Keras."""

    FusedBatchNormalization: Any
    QuantizedHost: Any
    QuantizedLayerNormalization: Any
    Quantize: Any
    IntegerOperator: Any
    QuantizeInput: Any
    FakeQuantize: Any
    ModelPart: Any
    StillRows: Any
    OffZero: Any
    Tie: Any


def _define(flavour: Flavour) -> Layers:
    mixins = (
        FusedBatchNormalizationMixin,
        QuantizedHostMixin,
        QuantizedLayerNormalizationMixin,
        QuantizeMixin,
        IntegerOperatorMixin,
        QuantizeInputMixin,
        FakeQuantizeMixin,
        ModelPartMixin,
        StillRowsMixin,
        OffZeroMixin,
        TieMixin,
    )
    base = flavour.keras.layers.Layer
    classes = {}
    for mixin in mixins:
        name = mixin.__name__.removesuffix("Mixin")
        body = {"flavour": flavour, "__doc__": mixin.__doc__, "__module__": __name__}
        classes[name] = flavour.register(type(name, (mixin, base), body))
    return Layers(**classes)


_BY_FLAVOUR = {flavour.name: _define(flavour) for flavour in keras_compat.usable()}


def of(flavour: Flavour) -> Layers:
    """The layer classes of ``flavour``."""
    return _BY_FLAVOUR[flavour.name]


tf_keras: Layers | None = _BY_FLAVOUR.get("tf_keras")
keras: Layers | None = _BY_FLAVOUR.get("keras")
