"""Quantizers: how a kernel or an activation is put on its integer grid while training.

They follow the ``Quantizer`` protocol of tensorflow-model-optimization
(``tfmot.quantization.keras.quantizers.Quantizer``): ``build(tensor_shape, name, layer)`` creates
variables through ``layer.add_weight`` and returns them in a dict, ``__call__(inputs, training,
weights)`` returns the quantized values, ``get_config()`` the arguments of the constructor. So a
user's TFMOT quantizer can stand in for ours, and ours for TFMOT's.

Formulas: Jacob et al. 2018 (arXiv:1712.05877) for the affine grid, Krishnamoorthi 2018
(arXiv:1806.08342) for per-channel kernels; gradients are straight-through (Bengio et al. 2013,
arXiv:1308.3432).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from rewriter import grid as grids
from rewriter import kernels
from rewriter.errors import RecipeError
from rewriter.grid import Grid
from rewriter.quantization import phases
from rewriter.quantization.scalars import initializer

UNSET_MIN = float("inf")  # the neutral elements of min and max: nothing observed yet
UNSET_MAX = float("-inf")

# How calibration makes a range of what it has seen; the first is what a range is without any.
CALIBRATIONS = ("minmax", "percentile", "mse", "entropy")


def calibration_method(name: Any) -> str:
    """``name`` itself if it is one of ``CALIBRATIONS``.

    Raises:
      RecipeError: otherwise.
    """
    if name not in CALIBRATIONS:
        raise RecipeError(f"calibration must be one of {list(CALIBRATIONS)}. Received: {name!r}.")
    return name


class Quantizer(Protocol):
    """The protocol of tensorflow-model-optimization, as this package relies on it."""

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]: ...

    def __call__(
        self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any
    ) -> Any: ...

    def get_config(self) -> dict[str, Any]: ...


class _Sized:
    """A quantizer of ours: of a width, and without variables."""

    _widest = grids.BITS

    def __init__(self, num_bits: int = grids.BITS):
        self.num_bits = grids.width(num_bits, self._widest, type(self).__name__)

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}


class KernelQuantizer(_Sized):
    """A quantizer of kernels: its grid is symmetric and narrow.

    Attributes:
      channel_axes: the axes of the kernel that index its scales.
      commutes: whether quantizing and scaling by a normalization commute.
    """

    commutes = False
    channel_axes: tuple[int, ...] = ()

    @property
    def grid(self) -> Grid:
        """The integers that kernels are put on."""
        return grids.kernel(self.num_bits, self.channel_axes)

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        quantized = kernels.quantized_kernel(inputs, tf.constant(phases.QUANTIZE), self.grid)
        return kernels.connected(quantized)

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits}


class PerChannelQuantizer(KernelQuantizer):
    """Symmetric, narrow-range, per-channel quantizer of kernels.

    Forward: ``round(w / s) * s`` with ``s = max|w| / (2**(num_bits-1) - 1)`` for every output
    channel. Gradient: identity. Has no variables.

    Args:
      num_bits: width of the integers, 2 to 8; a ``RecipeError`` for any other.
      channel_axes: kernel axes that index the output channels. In a rewritten model they are the
        host's, whatever is given here.
    """

    commutes = True

    def __init__(self, num_bits: int = grids.BITS, channel_axes: Sequence[int] = (-1,)):
        super().__init__(num_bits)
        self.channel_axes = tuple(channel_axes)

    def along(self, channel_axes: Sequence[int]) -> PerChannelQuantizer:
        """The same quantizer for kernels with these channel axes."""
        placed = copy.copy(self)
        placed.channel_axes = tuple(channel_axes)
        return placed

    def switch(self, kernel: Any, phase: Any) -> Any:
        """The kernel as it is, or quantized in phase ``quantize``; pending, straight through."""
        return kernels.quantized_kernel(kernel, phase, self.grid)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channel_axes": list(self.channel_axes)}


class PerTensorQuantizer(KernelQuantizer):
    """As :class:`PerChannelQuantizer`, with one scale for the whole kernel.

    A normalization after the kernel is folded in first.

    Args:
      num_bits: width of the integers, 2 to 8; a ``RecipeError`` for any other.
    """


class _ActivationQuantizer(_Sized):
    """A quantizer of activations: one grid for the whole tensor, of 16 bits symmetric."""

    _widest = 16  # of TensorFlow's emulated grids
    switch: Any

    @property
    def grid(self) -> Grid:
        """The integers that activations are put on."""
        carried = self.num_bits in grids.ACTIVATION_WIDTHS
        return grids.activation(self.num_bits) if carried else Grid(self.num_bits)

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        follow = False if training is None else training  # an observed range: the batch, first
        outputs, _ = self.switch(inputs, tf.constant(phases.QUANTIZE), weights, follow)
        return kernels.connected(outputs)


class RangeQuantizer(_ActivationQuantizer):
    """Per-tensor quantizer of activations with an observed range: asymmetric, of 16 bits symmetric.

    Forward: TensorFlow's ``fake_quant_with_min_max_vars`` on ``[min_var, max_var]``, nudged so
    that 0 is exact; of 16 bits ``round(x / s) * s`` with ``s = max(-min_var, max_var) / 32767``.
    Gradient: straight through; with a ReLU before it, the ReLU's at the
    output. The range starts unset (``+inf, -inf``), is widened in phase ``observe``, and follows
    the batches by an exponential moving average while training in ``quantize``. It always
    contains 0.

    A range that calibration has made otherwise than of the smallest and the largest value (by
    another method than ``"minmax"``, or of an input whose values are ``levels``) stays as
    calibrated: following the batches' extremes would undo it.

    Args:
      num_bits: width of the integers, 2 to 16 (a file takes 8 and 16); a ``RecipeError`` for any
        other.
      momentum: weight of the old range in the moving average.
      calibration: how :func:`rewriter.calibrate` makes the range of what it has seen: one of
        ``CALIBRATIONS``.
      levels: where the values are equidistant: the first, the step, and how many; calibration sets
        it.
      held: whether training leaves the range as it is; calibration sets it. None: where
        ``calibration`` is another method than ``"minmax"``.
    """

    def __init__(
        self,
        num_bits: int = grids.BITS,
        momentum: float = 0.99,
        calibration: str = CALIBRATIONS[0],
        levels: Sequence[float] | None = None,
        held: bool | None = None,
    ):
        super().__init__(num_bits)
        self.momentum = momentum
        self.calibration = calibration_method(calibration)
        self.levels = None if levels is None else tuple(levels)
        self.held = calibration != CALIBRATIONS[0] if held is None else bool(held)

    @property
    def takes_levels(self) -> bool:
        """Whether the range of an input with levels is chosen so that none is on a tie."""
        return not self.grid.symmetric

    @property
    def holds_range(self) -> bool:
        """Whether training leaves a calibrated range as it is."""
        return self.levels is not None or self.held

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        def add(suffix: str, value: float) -> Any:
            return layer.add_weight(
                name + suffix,
                shape=(),
                initializer=initializer(value),
                trainable=False,
                # As the statistics of a batch normalization: each replica has seen its own part.
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )

        return {"min_var": add("_min", UNSET_MIN), "max_var": add("_max", UNSET_MAX)}

    def switch(
        self,
        inputs: Any,
        phase: Any,
        weights: dict[str, Any],
        follow: Any,
        clamp: str = "none",
        before: Any = None,
    ) -> tuple[Any, Any]:
        """What ``phase`` (int32 scalar) says: activate only, observe too, or quantize; pending.

        Args:
          inputs: float32, any shape; may be pending.
          phase: see :mod:`rewriter.quantization.phases`.
          weights: what :meth:`build` returned; the range is updated in place.
          follow: whether the range follows the batch in phase ``quantize``.
          clamp: activation to apply first: ``"none"``, ``"relu"``, ``"relu6"``.
          before: for all but the first tensor of a batch that this range serves, what was returned
            for that.

        Returns:
          The outputs, and the range before this batch.
        """
        return kernels.activation(
            inputs,
            weights["min_var"],
            weights["max_var"],
            phase,
            rate=1.0 - self.momentum,
            follow=follow,
            clamp=clamp,
            grid=self.grid,
            before=before,
        )

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"num_bits": self.num_bits, "momentum": self.momentum}
        if self.calibration != CALIBRATIONS[0]:
            config["calibration"] = self.calibration
        if self.held != (self.calibration != CALIBRATIONS[0]):
            config["held"] = self.held
        if self.levels is not None:
            config["levels"] = list(self.levels)
        return config


class FixedQuantizer(_ActivationQuantizer):
    """Affine quantizer on a range that LiteRT prescribes (softmax, sigmoid, tanh).

    Args:
      minimum, maximum: the smallest and largest representable value.
      num_bits: width of the integers, 2 to 16 (a file takes 8 and 16); a ``RecipeError`` for any
        other.
    """

    def __init__(self, minimum: float, maximum: float, num_bits: int = grids.BITS):
        super().__init__(num_bits)
        self.minimum = minimum
        self.maximum = maximum

    def switch(
        self,
        inputs: Any,
        phase: Any,
        weights: dict[str, Any],
        follow: Any,
        clamp: str = "none",
        before: Any = None,
    ) -> tuple[Any, Any]:
        """As :meth:`RangeQuantizer.switch`, on the fixed range."""
        found = kernels.fixed_activation(
            inputs, self.minimum, self.maximum, phase, clamp=clamp, grid=self.grid
        )
        return found, None

    def get_config(self) -> dict[str, Any]:
        return {"minimum": self.minimum, "maximum": self.maximum, "num_bits": self.num_bits}
