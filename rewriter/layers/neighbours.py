"""Which layers quantize what a layer reads, and what becomes of its output.

Found in the calls of the model that a layer is part of, in which every form of saving, cloning and
nesting keeps it, so nothing about its neighbours has to be kept in its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter import kernels
from rewriter.keras_compat import Flavour
from rewriter.quantization import quantizers


def quantizer_before(flavour: Flavour, layer: Any) -> Any | None:
    """The one Quantize layer whose grid all inputs of ``layer`` are on, or None.

    Layers in between only move values: others have a Quantize layer after them.
    """
    return _one(flavour.calls(layer), flavour, flavour.earlier)


def quantizer_after(flavour: Flavour, layer: Any) -> Any | None:
    """The one Quantize layer that gives the outputs of ``layer`` their grid, or None.

    Between them there may be an activation that fuses into the layer's operator.
    """
    return _one(flavour.calls(layer), flavour, flavour.later)


def _one(
    calls: Iterable[Any], flavour: Flavour, neighbours: Callable[[Any], Iterable[Any]]
) -> Any | None:
    """The only Quantize layer that is nearest to any of these calls, going one way."""
    todo = [other for call in calls for other in neighbours(call)]
    seen: set[int] = set()
    found: dict[int, Any] = {}
    while todo:
        call = todo.pop()
        if id(call) in seen:
            continue
        seen.add(id(call))
        layer = flavour.called(call)
        if getattr(layer, "rewriter_phased", False):
            quantizer = layer if hasattr(layer, "quantizer") else None
            quantizer = quantizer or getattr(layer, "output_quantizer", None)
            if quantizer is not None:
                found[id(quantizer)] = quantizer
        else:
            todo += neighbours(call)
    return next(iter(found.values())) if len(found) == 1 else None


def range_of(layer: Any) -> list[Any]:
    """The ends of a Quantize layer's range, as tensors; none for a quantizer without one."""
    quantizer, variables = layer.quantizer, layer.range_variables
    if layer.learned_grid is not None:
        scale, zero = layer.learned_grid
        grid = grids.of(quantizer)
        return [tf.stop_gradient(scale * (end - zero)) for end in (grid.qmin, grid.qmax)]
    if isinstance(quantizer, quantizers.FixedQuantizer):
        return [tf.constant(quantizer.minimum), tf.constant(quantizer.maximum)]
    return [
        kernels.read_variable(variables[key]) for key in ("min_var", "max_var") if key in variables
    ]
