"""A layer that quantizes an activation."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rewriter import kernels
from rewriter.errors import CalibrationError
from rewriter.layers import masked, observing, shared_ranges
from rewriter.layers.phased import PhasedMixin
from rewriter.quantization import (
    learned,
    phases,
    quantizer_names,
    quantizers,
    replicated,
)
from rewriter.quantization.powers_of_two import PowerOfTwoRangeQuantizer, widened


class QuantizeMixin(PhasedMixin):
    """Emulates the integer grid of one activation tensor.

    In phase ``float`` it only applies ``clamp``; in ``observe`` the quantizer records the range
    too; in ``quantize`` the output is the quantizer's. Called in several places, it holds one range
    for all of them, which follows the smallest and the largest value of a batch in any of them.
    With ``trainable=False`` training does not move the range (unless there is none yet), as it does
    not move the statistics of a batch normalization.

    Input shape: any; output shape: the same. float16 and bfloat16 are quantized in float32.

    Args:
      quantizer: an object of TFMOT's ``Quantizer`` protocol, or its serialized form.
      clamp: an activation that LiteRT fuses, applied first: ``"none"``, ``"relu"`` or
        ``"relu6"``. Quantizing clamps anyway, so in phase ``quantize`` it costs nothing.
      floor: values below it are masked, for the softmax that reads them. A range ends a little
        below the others, see :mod:`rewriter.layers.masked`. None: there is no mask.
    """

    def __init__(
        self, quantizer: Any, clamp: str = "none", floor: float | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.floor = None if floor is None else float(floor)
        self.quantizer = quantizer_names.given(quantizer)
        self.clamp = clamp
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        self.add_phase()
        adapter = self.flavour.quantizer_adapter(self, "float32")
        scope = self.state_scope
        if isinstance(self.quantizer, learned.LearnedRangeQuantizer):
            # A name of its own: HDF5 keeps an optimizer's state of all layers by the names.
            scope = f"{self.owner or self.name}/{scope}"
        with self.flavour.part_scope(scope):
            self._quantizer_weights = self.quantizer.build(tuple(input_shape), "range", adapter)
        super().build(input_shape)

    @property
    def range_variables(self) -> dict[str, Any]:
        """The quantizer's variables by name (``min_var`` and ``max_var`` for ranges)."""
        return observing.variables_of(self, self._quantizer_weights)

    @property
    def range_is_set(self) -> bool:
        """Whether there is a range of ours, with a value."""
        if not isinstance(self.quantizer, quantizers.RangeQuantizer):
            return False
        low, high = self._ends()
        return low <= high

    def _ends(self) -> tuple[float, float]:
        low, high = (self._quantizer_weights[name].numpy() for name in ("min_var", "max_var"))
        return float(low), float(high)

    @property
    def holds_range(self) -> bool:
        """Whether training leaves a calibrated range as it is."""
        return getattr(self.quantizer, "holds_range", False)

    def set_range(self, low: float, high: float, levels: tuple[float, ...] | None = None) -> None:
        """Give a range of ours these bounds, or those that hold them with a power of two as step.

        Args:
          low, high: the smallest and the largest value.
          levels: see :class:`RangeQuantizer`.
        """
        if isinstance(self.quantizer, PowerOfTwoRangeQuantizer):
            low, high = widened(low, high, self.quantizer.grid)
        self._quantizer_weights["min_var"].assign(low)
        self._quantizer_weights["max_var"].assign(high)
        self.quantizer.levels = levels
        if isinstance(self.quantizer, learned.LearnedRangeQuantizer):
            self.quantizer.forget(self._quantizer_weights)

    def start_learning(self) -> None:
        """Give what training learns of the range its first values, where it has none.

        One with a power of two as its step is widened to that, if it has only been observed.

        Raises:
          CalibrationError: there is no range to start from.
        """
        learns = isinstance(self.quantizer, learned.LearnedRangeQuantizer)
        if not learns and not isinstance(self.quantizer, PowerOfTwoRangeQuantizer):
            return
        if not self.range_is_set:
            what = (
                f"is learned ({self.quantizer.method})" if learns else "has a power of two as step"
            )
            raise CalibrationError(
                f"The range of {self.name!r} {what}, and nothing has been observed to start from. "
                "Run rewriter.calibrate(model, data), or train in phase 'observe', before phase "
                "'quantize'."
            )
        if learns:
            self.quantizer.start(self._quantizer_weights)
        else:
            self.set_range(*self._ends())

    @property
    def learned_grid(self) -> tuple[Any, Any] | None:
        """Scale and zero point that training learns, float32 scalar tensors; None: it does not."""
        if not isinstance(self.quantizer, learned.LearnedRangeQuantizer):
            return None
        return self.quantizer.placed(self._quantizer_weights)

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and tracing is slower
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        symbolic = self.signature(inputs)
        if symbolic is not None:
            return symbolic
        training = self.flavour.static_training(training)
        if self.floor is not None:
            inputs = masked.raised(inputs, self.floor, phases.read(self.phase), training)
        if hasattr(self.quantizer, "switch"):  # ours
            outputs = self._switched(tf.cast(inputs, tf.float32), training)
            outputs = tf.cast(kernels.connected(outputs), inputs.dtype)
            if inputs.dtype != tf.float64:
                return outputs
            # What is not quantized keeps its precision.
            quantized = phases.read(self.phase) >= phases.QUANTIZE
            return tf.cond(quantized, lambda: outputs, lambda: kernels.clamped(inputs, self.clamp))
        inputs = kernels.clamped(inputs, self.clamp)
        if isinstance(training, bool):
            return self._switch(inputs, training)
        return tf.cond(
            tf.cast(training, tf.bool),
            lambda: self._switch(inputs, True),
            lambda: self._switch(inputs, False),
        )

    def after(self, inputs: Any, training: Any) -> Any:
        """As a call, for inputs that may be pending; the result may be, too."""
        ours = hasattr(self.quantizer, "switch")
        if ours and kernels.tensor(inputs).dtype == tf.float32 == self.compute_dtype:
            return self._switched(inputs, self.flavour.static_training(training))
        return self(kernels.connected(inputs), training=training)

    def _switched(self, inputs: Any, training: Any) -> Any:
        # The parts of another layer are in the model as often as that is, which they cannot know.
        phase = phases.read(self.phase)
        if not self.trainable and training is not False:
            # As Keras's own: in training, a layer that is frozen keeps its statistics.
            still = tf.logical_and(phase == phases.OBSERVE, tf.cast(training, tf.bool))
            phase, training = tf.where(still, phases.FLOAT, phase), False
        outputs, before = self.quantizer.switch(
            inputs,
            phase,
            self.range_variables,
            follow=training,
            clamp=self.clamp,
            before=shared_ranges.recalled(self, self.flavour.places(self)),
        )
        shared_ranges.remember(self, before)
        observing.show(self, kernels.tensor(outputs))
        return outputs

    def _switch(self, inputs: Any, training: bool) -> Any:
        """Any quantizer of the protocol, under a condition of its own."""
        frozen = training and not self.trainable
        training = training and not frozen
        branches = {
            phases.FLOAT: lambda: tf.identity(inputs),
            phases.OBSERVE: lambda: tf.identity(inputs) if frozen else self._observe(inputs),
            phases.QUANTIZE: lambda: self._quantize(inputs, training),
            phases.QUANTIZE_FROZEN: lambda: self._quantize(inputs, False),
        }
        phase = phases.read(self.phase)
        if training and replicated.waits(self._quantizer_weights):
            outputs = self._without_conditions(inputs, phase)
        else:
            outputs = tf.switch_case(phase, branches)
        outputs.set_shape(inputs.shape)
        observing.show(self, outputs)
        return outputs

    def _without_conditions(self, inputs: Any, phase: Any) -> Any:
        """In training, on replicas that wait for each other."""
        still = self._quantize(inputs, False)
        moves = tf.logical_or(phase == phases.OBSERVE, phase == phases.QUANTIZE)
        moved = replicated.chosen(
            moves, lambda: self._quantize(inputs, True), lambda: still, self._quantizer_weights
        )
        quantized = tf.where(phase == phases.QUANTIZE, moved, still)
        return tf.where(phase >= phases.QUANTIZE, quantized, inputs)

    def _observe(self, inputs: Any) -> Any:
        # TFMOT's quantizers learn their range when they are called in training.
        self._quantize(inputs, True)
        return tf.identity(inputs)

    def _quantize(self, inputs: Any, training: bool) -> Any:
        kept = self._kept() if training else []
        inputs_32 = tf.cast(inputs, tf.float32)
        values = replicated.called(self.quantizer, inputs_32, training, self._quantizer_weights)
        now = [tf.convert_to_tensor(variable) for variable, _ in kept]
        finite = [tf.reduce_all(tf.math.is_finite(value)) for value in now]
        for (variable, before), value in zip(kept, now, strict=True):
            # All as before, if a batch that is not finite has made one of them so.
            variable.assign(tf.where(tf.reduce_all(finite), value, before))
        return tf.cast(values, inputs.dtype)

    def _kept(self) -> list[tuple[Any, Any]]:
        """The range of a quantizer that is not ours, and its values before the batch."""
        variables = [v for v in self._quantizer_weights.values() if hasattr(v, "assign")]
        floating = [v for v in variables if tf.as_dtype(v.dtype).is_floating]
        return [(v, tf.identity(v)) for v in floating if not getattr(v, "trainable", False)]

    def reset_range(self) -> None:
        """Forget what has been observed."""
        variables = self._quantizer_weights
        if isinstance(self.quantizer, quantizers.RangeQuantizer):
            variables["min_var"].assign(quantizers.UNSET_MIN)
            variables["max_var"].assign(quantizers.UNSET_MAX)
            self.quantizer.levels = None
            if isinstance(self.quantizer, learned.LearnedRangeQuantizer):
                self.quantizer.forget(variables)
            if int(self.phase.numpy()) == phases.QUANTIZE_FIXED:
                phases.assign(self, phases.QUANTIZE_FROZEN)

    def get_config(self) -> dict[str, Any]:
        own: dict[str, Any] = {
            "quantizer": quantizer_names.serialize(self.quantizer),
            "clamp": self.clamp,
        }
        if self.floor is not None:
            own["floor"] = self.floor
        return {**super().get_config(), **own}
