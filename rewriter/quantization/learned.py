"""Quantizers whose scales training learns: LSQ, LSQ+ and power-of-two thresholds (TQT).

The formulas and their papers are in :mod:`rewriter.kernels.learned`. What is learned are trainable
variables of the layer. They get their first values when the layer goes into phase ``quantize``: an
activation's from its calibrated (or observed) range, a kernel's from its own statistics. A variable
``started`` says that they have them; until then the first values are computed where they are asked
for, so that a model that has only been calibrated exports, too.

An optimizer's weight decay would shrink them: leave out variables called ``range_learned`` and
``kernel0_learned`` (``optimizer.exclude_from_weight_decay(var_names=["_learned"])``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from rewriter import grid as grids
from rewriter import kernels
from rewriter.errors import RecipeError
from rewriter.kernels import learned as arithmetic
from rewriter.kernels.closest import closest_scale
from rewriter.kernels.codes import FLOAT, OBSERVE, QUANTIZE_FROZEN
from rewriter.quantization.quantizers import (
    CALIBRATIONS,
    KernelQuantizer,
    RangeQuantizer,
)
from rewriter.quantization.scalars import initializer


def _method(name: Any, owner: str) -> str:
    if name not in arithmetic.METHODS:
        raise RecipeError(
            f"{owner}: method must be one of {list(arithmetic.METHODS)}. Received: {name!r}."
        )
    return name


class LearnedKernelQuantizer(KernelQuantizer):
    """Symmetric, narrow-range quantizer of kernels whose scales are learned.

    Args:
      method: ``"lsq"``, ``"lsq+"`` (which differs from it in the first value) or ``"tqt"``.
      num_bits: width of the integers, 2 to 8, with ``"tqt"`` 3 to 8: a file keeps 2 bits as
        multiples of 7, whose scale is no power of two; a ``RecipeError`` for any other.
      channel_axes: kernel axes that index the output channels, of which each has a scale; none: one
        scale for the whole kernel. In a rewritten model they are the host's.
      rooted: whether what is learned is the scale times the root of the number of steps, which no
        step of Adam drives to 0; False: the scale. ``"tqt"`` learns a logarithm.

    With ``"tqt"`` and with one scale for all, a normalization after the kernel is folded in before
    it is quantized: the scale of the folded kernel is then a power of two.
    """

    def __init__(
        self,
        method: str = "lsq",
        num_bits: int = grids.BITS,
        channel_axes: Sequence[int] = (-1,),
        rooted: bool = True,
    ):
        super().__init__(num_bits)
        self.rooted = bool(rooted)
        self.method = _method(method, type(self).__name__)
        self.channel_axes = tuple(channel_axes)
        if self.power_of_two and num_bits < 3:
            raise RecipeError(
                f"{type(self).__name__}: with method {method!r} num_bits must be in 3..8, for a "
                "file keeps 2 bits as multiples of 7, whose scale is no power of two. "
                f"Received: {num_bits}. Use 3 bits or ranges 'lsq'."
            )

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two."""
        return arithmetic.METHODS[self.method].power_of_two

    @property
    def commutes(self) -> bool:  # type: ignore[override]
        """Whether quantizing and scaling by a normalization commute."""
        return bool(self.channel_axes) and not self.power_of_two

    def along(self, channel_axes: Sequence[int]) -> LearnedKernelQuantizer:
        """The same quantizer for kernels with these channel axes."""
        placed = copy.copy(self)
        placed.channel_axes = tuple(channel_axes) if self.channel_axes else ()
        return placed

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        shape = [math.prod(tensor_shape[axis] for axis in self.channel_axes)]
        return {
            "learned": layer.add_weight(
                f"{name}_learned", shape=shape if self.channel_axes else (), initializer="zeros"
            ),
            "started": _flag(layer, f"{name}_started"),
        }

    def start(self, kernel: Any, weights: dict[str, Any]) -> None:
        """Give what is learned its first value, unless it has one.

        That of ``"lsq"`` and, below 8 bits, of ``"lsq+"`` is the scale with the smallest squared
        error; what stands for it before, in graphs, is that of their papers, which takes one pass.
        A scale that is not ``rooted`` keeps that of 8 bits: Adam drives a smaller one to 0.

        Args:
          kernel: float32, with the normalization folded in where this is quantized so.
          weights: what :meth:`build` returned.
        """
        if not float(weights["started"].numpy()):
            closest = self.num_bits < grids.BITS or (self.rooted and self.method == "lsq")
            first = self._first(kernel)
            if closest and not self.power_of_two:
                first = closest_scale(kernel, self.grid) * self._row.unit(self.grid)
            weights["learned"].assign(first)
            weights["started"].assign(1.0)

    def scales(self, kernel: Any, weights: dict[str, Any]) -> Any:
        """The scales, float32 (channels,) or (); ``kernel`` as for :meth:`start`."""
        learned = self._learned(kernel, weights)
        nothing = tf.zeros_like(learned)
        return arithmetic.placed(learned, nothing, nothing, self._row, self.grid)[0]

    def switch(self, kernel: Any, phase: Any, weights: dict[str, Any], factor: Any = None) -> Any:
        """The kernel as ``phase`` has it; see :func:`rewriter.kernels.learned.kernel`."""
        folded = kernel if factor is None else kernel * factor
        return arithmetic.kernel(
            kernel,
            self._learned(folded, weights),
            phase,
            method=self._row,
            grid=self.grid,
            factor=factor,
        )

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        return self.switch(inputs, tf.constant(QUANTIZE_FROZEN), weights)

    @property
    def _row(self) -> arithmetic.Method:
        row = arithmetic.METHODS[self.method]
        rooted = self.rooted and not row.power_of_two
        return arithmetic.Method(row.kernel_start, False, row.power_of_two, rooted)

    def _first(self, kernel: Any) -> Any:
        return tf.stop_gradient(arithmetic.kernel_start(kernel, self._row, self.grid))

    def _learned(self, kernel: Any, weights: dict[str, Any]) -> Any:
        learned = tf.convert_to_tensor(weights["learned"])
        started = tf.convert_to_tensor(weights["started"]) > 0
        return tf.where(started, learned, self._first(kernel))

    def get_config(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "num_bits": self.num_bits,
            "channel_axes": list(self.channel_axes),
            "rooted": self.rooted,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LearnedKernelQuantizer:
        """Models that were saved before there was a choice hold scales."""
        return cls(**{"rooted": False, **config})


class LearnedRangeQuantizer(RangeQuantizer):
    """Quantizer of activations, one scale for the whole tensor, whose scale is learned.

    With ``"lsq"`` and ``"tqt"`` the zero point is the smallest integer where the range that it
    starts from has nothing negative, and else 0; with ``"lsq+"`` it follows a learned offset. An
    input whose values are ``levels`` keeps the scale that calibration gave it, but with ``"tqt"``.

    Args:
      method: ``"lsq"``, ``"lsq+"`` or ``"tqt"``.
      num_bits, calibration, levels: as of :class:`RangeQuantizer`.
    """

    def __init__(
        self,
        method: str = "lsq",
        num_bits: int = grids.BITS,
        calibration: str = CALIBRATIONS[0],
        levels: Sequence[float] | None = None,
    ):
        self.method = _method(method, type(self).__name__)
        super().__init__(num_bits, calibration=calibration, levels=levels)
        if self.grid.symmetric:
            raise RecipeError(
                f"{type(self).__name__}: ranges of activations of {num_bits} bits are not learned, "
                "for there is nothing to gain: a step is a 65,534th of the range. Use ranges "
                "'observed', or 8 bits."
            )

    @property
    def holds_range(self) -> bool:
        return self.levels is not None

    @property
    def takes_levels(self) -> bool:
        return not self.power_of_two

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two."""
        return self._row.power_of_two

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        def add(suffix: str, trainable: bool) -> Any:
            return layer.add_weight(
                name + suffix, shape=(), initializer=initializer(0.0), trainable=trainable
            )

        return {
            **super().build(tensor_shape, name, layer),
            "learned": add("_learned", True),
            "offset": add("_offset_learned" if self._row.offset else "_offset", self._row.offset),
            "zero_point": add("_zero_point", False),
            "started": _flag(layer, f"{name}_started"),
        }

    def start(self, weights: dict[str, Any]) -> None:
        """Give what is learned its first values, those of the range, unless it has some."""
        if not float(weights["started"].numpy()):
            for name, value in zip(_LEARNED, self._first(weights), strict=True):
                weights[name].assign(value)
            weights["started"].assign(1.0)

    def forget(self, weights: dict[str, Any]) -> None:
        """Let what is learned start again from the range."""
        weights["started"].assign(0.0)

    def placed(self, weights: dict[str, Any]) -> tuple[Any, Any]:
        """The scale and the zero point, float32 scalar tensors."""
        learned, offset, zero = self._values(weights)
        return arithmetic.placed(learned, offset, zero, self._row, self.grid)

    def switch(
        self,
        inputs: Any,
        phase: Any,
        weights: dict[str, Any],
        follow: Any,
        clamp: str = "none",
        before: Any = None,
    ) -> tuple[Any, Any]:
        """As :meth:`RangeQuantizer.switch`; in phase ``quantize`` on the learned grid."""
        # In float and while observing, all else is as of an observed range; after that it is still.
        known = tf.get_static_value(phase)
        if known is None:
            still = tf.where(phase == OBSERVE, phase, FLOAT)
        else:
            still = tf.constant(OBSERVE if known == OBSERVE else FLOAT)
        x, seen = super().switch(inputs, still, weights, follow, clamp, before)
        learned, offset, zero = self._values(weights)
        x = kernels.connected(x)
        y = arithmetic.activation(x, learned, offset, zero, phase, method=self._row, grid=self.grid)
        return y, seen

    @property
    def _row(self) -> arithmetic.Method:
        return arithmetic.METHODS[self.method]

    def _first(self, weights: dict[str, Any]) -> tuple[Any, ...]:
        low, high = (kernels.read_variable(weights[key]) for key in ("min_var", "max_var"))
        exact = self.levels is not None
        return arithmetic.activation_start(low, high, self._row, self.grid, exact=exact)

    def _values(self, weights: dict[str, Any]) -> list[Any]:
        started = tf.convert_to_tensor(weights["started"]) > 0
        return [
            tf.where(started, tf.convert_to_tensor(weights[name]), tf.stop_gradient(first))
            for name, first in zip(_LEARNED, self._first(weights), strict=True)
        ]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["momentum"]
        return {**config, "method": self.method, "calibration": self.calibration}


_LEARNED = ("learned", "offset", "zero_point")  # as rewriter.kernels.learned has them


def _flag(layer: Any, name: str) -> Any:
    return layer.add_weight(name, shape=(), initializer=initializer(0.0), trainable=False)
