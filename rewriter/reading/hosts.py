"""The hosts: linear layers that a batch normalization folds into, as rows of data.

A row says where the kernels are, and which of their axes index output channels. How a layer
computes its linear part from given kernels is in :mod:`rewriter.layers.linear`, what the device
makes of a row in :mod:`rewriter.lowering.host_layers`. To support another host, add a row to all
three.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from rewriter.keras_compat import Flavour


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a host.

    Attributes:
      name: attribute of the layer that holds it (as tf_keras calls it).
      channel_axes: its axes that index output channels; one scale for each.
    """

    name: str
    channel_axes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One host.

    Attributes:
      name: class name of the layer.
      kernels: in the order in which they are applied; the normalization folds into the last.
      operators: the LiteRT operator of each kernel; none where LiteRT has no integer ones.
    """

    name: str
    kernels: tuple[Kernel, ...]
    operators: tuple[str, ...] = ()

    @property
    def float_only(self) -> bool:
        """Whether LiteRT has no integer kernel for it."""
        return not self.operators


_KERNEL = (Kernel("kernel", (-1,)),)
_TRANSPOSED = (Kernel("kernel", (-2,)),)
_DEPTHWISE = (Kernel("depthwise_kernel", (-2, -1)),)
_SEPARABLE = (*_DEPTHWISE, Kernel("pointwise_kernel", (-1,)))

HOSTS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("Conv1D", _KERNEL, ("CONV_2D",)),
        Row("Conv2D", _KERNEL, ("CONV_2D",)),
        Row("Conv3D", _KERNEL),
        Row("DepthwiseConv1D", _DEPTHWISE, ("DEPTHWISE_CONV_2D",)),
        Row("DepthwiseConv2D", _DEPTHWISE, ("DEPTHWISE_CONV_2D",)),
        Row("SeparableConv1D", _SEPARABLE, ("DEPTHWISE_CONV_2D", "CONV_2D")),
        Row("SeparableConv2D", _SEPARABLE, ("DEPTHWISE_CONV_2D", "CONV_2D")),
        Row("Conv1DTranspose", _TRANSPOSED, ("TRANSPOSE_CONV",)),
        Row("Conv2DTranspose", _TRANSPOSED, ("TRANSPOSE_CONV",)),
        Row("Conv3DTranspose", _TRANSPOSED),
        Row("Dense", _KERNEL, ("FULLY_CONNECTED",)),
    )
}


def spatial_axes(layer: Any, rank: int) -> list[int]:
    """The axes of a convolution's input and output that a kernel moves along."""
    first = layer.data_format == "channels_first"
    return list(range(2, rank)) if first else list(range(1, rank - 1))


def channel_axis(layer: Any, rank: int) -> int:
    """The axis of a host's output that holds its channels."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def find(flavour: Flavour, layer: Any) -> tuple[Row, Any, bool] | None:
    """The row of a stock layer that is a host, the layer that holds the kernels, and whether it is
    applied to every step of axis 1 (``TimeDistributed``); None if it is no host."""
    name = flavour.class_name(layer)
    if name in HOSTS:
        return HOSTS[name], layer, False
    inner = flavour.class_name(layer.layer) if name == "TimeDistributed" else ""
    # Such a layer would sum its regularizer over the steps in ways of its own.
    if inner in HOSTS and getattr(layer.layer, "activity_regularizer", None) is None:
        return HOSTS[inner], layer.layer, True
    return None
