"""Hosts of every kind, for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """A host before a normalization.

    Attributes:
      host: makes the layer, given ``keras.layers``.
      shape: of the input, without the batch.
      axes: the kernel's axes that index output channels, of the kernel that is folded into.
      refusal: what the export says, if it refuses.
      only: the one Keras that has it.
    """

    host: Callable[[Any], Any]
    shape: tuple[int, ...]
    axes: tuple[int, ...] = (-1,)
    refusal: str | None = None
    only: str | None = None


IMAGE, LINE, VOLUME = (7, 9, 4), (11, 4), (4, 5, 6, 3)
OUT, DEPTH, BACK = (-1,), (-2, -1), (-2,)
NO_3D = "'host' has no integer form"

CASES: dict[str, Case] = {
    "Conv1D": Case(lambda k: k.Conv1D(5, 3, strides=2, padding="same"), LINE),
    "Conv1D_causal": Case(lambda k: k.Conv1D(5, 3, dilation_rate=2, padding="causal"), LINE),
    "Conv1D_grouped": Case(lambda k: k.Conv1D(6, 3, groups=2), LINE),
    "Conv2D": Case(lambda k: k.Conv2D(5, 3, strides=2, padding="same"), IMAGE),
    "Conv2D_no_bias": Case(lambda k: k.Conv2D(5, (2, 3), use_bias=False), IMAGE),
    "Conv2D_grouped": Case(lambda k: k.Conv2D(6, 3, groups=2), IMAGE),
    "Conv2D_dilated": Case(lambda k: k.Conv2D(5, 3, dilation_rate=2, padding="same"), IMAGE),
    "Conv3D": Case(lambda k: k.Conv3D(5, 2, strides=2, padding="same"), VOLUME, refusal=NO_3D),
    "DepthwiseConv1D": Case(lambda k: k.DepthwiseConv1D(3, padding="same"), LINE, DEPTH),
    "DepthwiseConv1D_multiplied": Case(
        lambda k: k.DepthwiseConv1D(3, strides=2, depth_multiplier=2), LINE, DEPTH
    ),
    "DepthwiseConv2D": Case(lambda k: k.DepthwiseConv2D(3, strides=2), IMAGE, DEPTH),
    "DepthwiseConv2D_multiplied": Case(
        lambda k: k.DepthwiseConv2D((3, 2), depth_multiplier=3, padding="same"), IMAGE, DEPTH
    ),
    "DepthwiseConv2D_dilated": Case(
        lambda k: k.DepthwiseConv2D(3, dilation_rate=2, padding="same"), IMAGE, DEPTH
    ),
    "DepthwiseConv2D_strided_and_dilated": Case(
        lambda k: k.DepthwiseConv2D(3, strides=2, dilation_rate=2, padding="same"),
        IMAGE, DEPTH, only="keras",
    ),
    "SeparableConv1D": Case(lambda k: k.SeparableConv1D(5, 3, padding="same"), LINE),
    "SeparableConv1D_causal": Case(
        lambda k: k.SeparableConv1D(5, 3, padding="causal"), LINE, only="tf_keras"
    ),
    "SeparableConv2D": Case(lambda k: k.SeparableConv2D(5, 3, depth_multiplier=2), IMAGE),
    "Conv1DTranspose": Case(lambda k: k.Conv1DTranspose(5, 3, strides=2), LINE, BACK),
    "Conv1DTranspose_same": Case(
        lambda k: k.Conv1DTranspose(5, 4, strides=2, padding="same", use_bias=False), LINE, BACK
    ),
    "Conv2DTranspose": Case(lambda k: k.Conv2DTranspose(5, 3, strides=2), IMAGE, BACK),
    "Conv2DTranspose_same": Case(
        lambda k: k.Conv2DTranspose(5, (4, 3), strides=2, padding="same"), IMAGE, BACK
    ),
    "Conv2DTranspose_gaps": Case(lambda k: k.Conv2DTranspose(5, 2, strides=3), IMAGE, BACK),
    "Conv2DTranspose_output_padding": Case(
        lambda k: k.Conv2DTranspose(5, 3, strides=2, padding="same", output_padding=(1, 0)),
        IMAGE, BACK,
    ),
    "Conv2DTranspose_output_padding_valid": Case(
        lambda k: k.Conv2DTranspose(5, 3, strides=2, output_padding=1), IMAGE, BACK
    ),
    "Conv2DTranspose_dilated": Case(
        lambda k: k.Conv2DTranspose(5, 3, padding="same", dilation_rate=2), IMAGE, BACK,
        refusal="'host' is a transposed convolution with dilation_rate", only="tf_keras",
    ),
    "Conv3DTranspose": Case(
        lambda k: k.Conv3DTranspose(3, 2, strides=2), VOLUME, BACK, refusal=NO_3D
    ),
    "Dense": Case(lambda k: k.Dense(5), (6,)),
    "Dense_rank_3": Case(lambda k: k.Dense(5, use_bias=False), LINE),
    "Dense_rank_4": Case(lambda k: k.Dense(5), IMAGE),
    "Dense_rank_5": Case(lambda k: k.Dense(5), VOLUME),
    "EinsumDense": Case(lambda k: k.EinsumDense("abc,cd->abd", (11, 5), bias_axes="d"), LINE),
    "EinsumDense_two_sums": Case(
        lambda k: k.EinsumDense("abxy,xyz->abz", (7, 5), bias_axes="z"), IMAGE
    ),
    "TimeDistributed_Dense": Case(lambda k: k.TimeDistributed(k.Dense(5)), LINE),
    "TimeDistributed_Conv2D": Case(
        lambda k: k.TimeDistributed(k.Conv2D(5, 3, padding="same")), (3, *IMAGE)
    ),
    "TimeDistributed_Conv1D": Case(lambda k: k.TimeDistributed(k.Conv1D(5, 3)), (3, *LINE)),
    "TimeDistributed_DepthwiseConv2D": Case(
        lambda k: k.TimeDistributed(k.DepthwiseConv2D(3)), (3, *IMAGE), DEPTH
    ),
}  # fmt: skip
