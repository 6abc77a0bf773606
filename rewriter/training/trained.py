"""The layers of a rewritten model that hold what was trained, by the names of the original's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rewriter import keras_compat
from rewriter.layers.batch_norm import FusedBatchNormalizationMixin
from rewriter.layers.host import QuantizedHostMixin
from rewriter.layers.layer_norm import QuantizedLayerNormalizationMixin


def trained_layers(model: Any) -> dict[str, Any]:
    """The layers that hold the trained weights, by the names that they had in the original model.

    A convolution and the batch normalization after it are one layer of a rewritten model, so that
    ``model.layers`` has no batch normalization to freeze, and ``model.get_layer("conv")`` stands
    for both. Here each is by itself::

        for layer in rewriter.trained_layers(qat).values():
            layer.trainable = isinstance(layer, rewriter.layers.keras.FusedBatchNormalization)

    Args:
      model: a rewritten model, or a model that one is a layer of.

    Returns:
      The stock layer for a convolution, a Dense layer and the like, our
      ``FusedBatchNormalization`` for a batch normalization, and every other layer with weights as
      it stands in the model; in the order of ``model.layers``. Their variables are the model's own.
      Where two have the same name, the later one has the name of its layer in ``model`` before it:
      ``"conv_1/bn"``; a layer of a model inside has that model's.
    """
    found: dict[str, Any] = {}
    for owner, name, layer in _parts(model):
        key = name if name not in found else f"{owner}/{name}"
        found.setdefault(key, layer)
    return found


def _parts(model: Any) -> Iterator[tuple[str, str, Any]]:
    """(name of the layer or model that holds it, its name, the layer itself)."""
    flavour = keras_compat.flavour_of(model)
    kind = flavour.keras.Model
    for layer in model.layers:
        name = layer.name
        if isinstance(layer, kind):
            inside = _parts(layer)
            yield from ((f"{name}/{owner}", called, part) for owner, called, part in inside)
        elif isinstance(layer, QuantizedHostMixin):
            yield name, name, layer.host
            if layer.batch_norm is not None:
                yield name, layer.batch_norm.name, layer.batch_norm
        elif isinstance(layer, QuantizedLayerNormalizationMixin):
            yield name, name, layer.norm
        elif isinstance(layer, FusedBatchNormalizationMixin) or (
            layer.weights and not flavour.is_ours(layer)  # others of ours have ranges only
        ):
            yield model.name, name, layer
