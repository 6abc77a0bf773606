"""The hosts: linear layers that a batch normalization folds into, as rows of data.

A row says where the kernels are, and which of their axes index output channels. How a layer
computes its linear part from given kernels is in :mod:`rewriter.layers.linear`, what the device
makes of a row in :mod:`rewriter.lowering.host_layers`. To support another host, add a row to all
three.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rewriter.errors import LoadError
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
        Row("EinsumDense", _KERNEL, ("FULLY_CONNECTED",)),  # axes by its equation: row_of
    )
}


def row_of(name: str, layer: Any) -> Row | None:
    """The row of a layer of the class ``name``, its channel axes as the layer has them.

    An ``EinsumDense`` is a host where it is a matrix product of the last axes of its input,
    ``"abc,cde->abde"``: what its kernel sums over is last in the input and first in the kernel, and
    what the kernel adds is last in both kernel and output.
    """
    row = HOSTS.get(name)
    if row is None or name != "EinsumDense":
        return row
    count = _channels(layer.equation)
    if count == 0:
        return None
    kernel = Kernel("kernel", tuple(range(-count, 0)))
    return dataclasses.replace(row, kernels=(kernel,))


def known(layer: Any) -> Row:
    """The row of a stock layer that is a host. LoadError, naming it, for any other."""
    name = type(layer).__name__
    row = row_of(getattr(layer, "stands_for", name), layer)
    if row is None:
        raise LoadError(
            f"The layer {layer.name!r} ({type(layer).__name__}) is none whose kernel can be "
            "quantized. Rewrite the original model again."
        )
    return row


def _channels(equation: str) -> int:
    """How many axes an ``EinsumDense`` adds; 0: its equation is no product of the last axes."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs, comma, kernel = left.partition(",")
    if inputs.startswith("...") and output.startswith("..."):
        # The axes in front, the batch among them; digits are no letters of an equation.
        inputs, output = "0" + inputs[3:], "0" + output[3:]
    summed = "".join(letter for letter in inputs if letter in kernel)
    added = "".join(letter for letter in kernel if letter not in inputs)
    leading = inputs.removesuffix(summed)
    plain = all(len(set(part)) == len(part) for part in (inputs, kernel, output))
    fits = kernel == summed + added and inputs == leading + summed and output == leading + added
    return len(added) if arrow and comma and plain and fits and leading and summed else 0


def uses_bias(layer: Any) -> bool:
    """Whether a host adds a bias."""
    return bool(layer.bias_axes if hasattr(layer, "bias_axes") else layer.use_bias)


def flat_sizes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int]:
    """Of a kernel that is a matrix product's, the sizes as a matrix: of the sum, and channels.

    Args:
      shape: of the kernel, its last axes those of the channels.
      axes: of the channels.
    """
    cut = len(shape) - len(axes)
    return math.prod(shape[:cut]), math.prod(shape[cut:])


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
    row = row_of(name, layer)
    if row is not None:
        return row, layer, False
    inner = flavour.class_name(layer.layer) if name == "TimeDistributed" else ""
    row = None if inner == "EinsumDense" else HOSTS.get(inner)
    # Such a layer would sum its regularizer over the steps in ways of its own.
    if row is not None and getattr(layer.layer, "activity_regularizer", None) is None:
        return row, layer.layer, True
    return None
