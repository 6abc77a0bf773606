"""A linear layer with its quantized kernel, its batch normalization and its activation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import kernels as arithmetic
from rewriter.keras_compat import paths
from rewriter.keras_compat.variables import read
from rewriter.layers import bias_correction, channels, coarse_bias, learned_kernels, preserved
from rewriter.layers.linear import LINEAR
from rewriter.layers.phased import PhasedMixin
from rewriter.layers.unfolding import unfold
from rewriter.quantization import learned, phases, quantizer_names, quantizers, replicated
from rewriter.reading import hosts


class QuantizedHostMixin(PhasedMixin):
    """A host layer made quantization-aware, with the BatchNormalization after it fused in.

    Computes ``activation(batch_norm(linear(x, Q(kernel)) + bias))``: one convolution and the
    fused batch-norm kernel, in training and in inference. With per-channel scales
    ``Q(W * s) = s * Q(W)``, so folding the normalization later adds no error (Jacob et al. 2018,
    arXiv:1712.05877, section 3.2, without the second convolution). ``Q`` acts in phase
    ``quantize`` only.

    Args:
      host: the stock layer (or its serialized form): configuration and variables.
      batch_norm: our batch normalization, its serialized form, or None.
      kernel_quantizers: one per kernel of the host's row, or their serialized forms.
      between: a Quantize layer for the tensor between two kernels (SeparableConv2D).
      before_activation: a Quantize layer for the input of an activation that LiteRT does not
        fuse into the linear operator (softmax, sigmoid, ...).
      output_quantizer: a Quantize layer for the output, where it is quantized right here.
      distributed: apply the host to every step of axis 1, as ``TimeDistributed`` does.
      preserve: what training keeps of each kernel, of :data:`rewriter.layers.preserved.KINDS`.
      bias_correction: whether it has a variable for what calibration adds to its bias.
    """

    def __init__(
        self,
        host: Any,
        batch_norm: Any = None,
        kernel_quantizers: Any = (),
        between: Any = None,
        before_activation: Any = None,
        output_quantizer: Any = None,
        distributed: bool = False,
        preserve: Sequence[Sequence[str]] = (),
        bias_correction: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        load = self._load
        self.host = load(host)
        self.batch_norm = load(batch_norm)
        self.between = load(between)
        self.before_activation = load(before_activation)
        self.output_quantizer = load(output_quantizer)
        parts = {"host": self.host, "batch_norm": self.batch_norm}
        self._frozen = tuple(name for name, p in parts.items() if p is not None and not p.trainable)
        self.distributed = bool(distributed)
        self.row = hosts.known(self.host)
        # The axes are the row's, also where a quantizer made elsewhere says otherwise.
        self.kernel_quantizers = channels.along(
            [quantizer_names.given(q) for q in kernel_quantizers], self.row.kernels
        )
        self.preserve = tuple(map(tuple, preserve)) or ((),) * len(self.row.kernels)
        self.bias_correction = bool(bias_correction)
        self.supports_masking = True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "trainable":  # Keras 3 does nothing where the flag was so, whatever its parts'
            for part in (getattr(self, "host", None), getattr(self, "batch_norm", None)):
                if part is not None:
                    part.trainable = value

    def _load(self, value: Any) -> Any:
        return self.flavour.deserialize(value) if isinstance(value, dict) else value

    def build(self, input_shape: Any) -> None:
        # Between construction and here tf_keras's SavedModel loader sets the outer layer's flag,
        # which reaches the parts: a frozen normalization would come back trainable.
        for name in self._frozen:
            getattr(self, name).trainable = False
        self.add_phase()
        host = self.host
        with self.flavour.part_scope(paths.scope(host)):
            host.build(channels.without_steps(input_shape) if self.distributed else input_shape)
            host.built = True
        output_shape = self.compute_output_shape(input_shape)
        self._kernel_weights = []
        adapter = self.flavour.quantizer_adapter(self, "float32")
        for index, (kernel, quantizer) in enumerate(
            zip(self.kernel_names, self.kernel_quantizers, strict=True)
        ):
            shape = tuple(getattr(host, kernel).shape)
            self._kernel_weights.append(quantizer.build(shape, f"kernel{index}", adapter))
            preserved.build(self, index)
        bias_correction.build(self)
        parts = {
            "batch_norm": output_shape,
            "before_activation": output_shape,
            "output_quantizer": output_shape,
            "between": input_shape,
        }
        for name, shape in parts.items():
            part = getattr(self, name)
            if part is not None:
                part.state_scope, part.owner = name, self.name
                with self.flavour.part_scope(paths.scope(part)):
                    part.build(tuple(shape))
                    part.built = True
        super().build(input_shape)

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """The attributes of ``host`` that hold its kernels."""
        attribute = self.flavour.kernel_attribute
        return tuple(attribute(self.row.name, kernel.name) for kernel in self.row.kernels)

    @property
    def kernel(self) -> Any:
        """The host's last kernel, the one that the normalization folds into."""
        return getattr(self.host, self.kernel_names[-1])

    @property
    def bias(self) -> Any:
        """The host's bias, or None."""
        return self.host.bias

    @property
    def folds_first(self) -> bool:
        """Whether the last kernel is quantized with the normalization folded in.

        Only symmetric per-channel scales that may be any number commute with the normalization.
        With any other quantizer the folded kernel ``W * s`` itself is quantized (Krishnamoorthi
        2018, arXiv:1806.08342, section 3.2.2).
        """
        commutes = getattr(self.kernel_quantizers[-1], "commutes", False)
        return self.batch_norm is not None and not commutes

    def quantized_kernels(self) -> list[Any]:
        """The kernels as the device has them, as tensors; the last one maybe with the
        normalization folded in (see :attr:`folds_first`)."""
        phase = tf.constant(phases.QUANTIZE)
        if not self.folds_first:
            return [arithmetic.connected(k) for k in self._switched(phase, training=False)]
        weights, folded = self._kernel_weights[-1], learned_kernels.folded(self, phase)
        last = self.kernel_quantizers[-1](folded, training=False, weights=weights)
        before = self._switched(phase, training=False)[:-1]
        return [*(arithmetic.connected(k) for k in before), last]

    @property
    def kernel_weights(self) -> list[dict[str, Any]]:
        """What the quantizer of each kernel has built."""
        return self._kernel_weights

    def kernel_ranges(self, index: int) -> list[np.ndarray]:
        """The ends of the range that the quantizer of a kernel keeps, as TFMOT's do; or none."""
        return [read(variable) for variable in self.kernel_range_variables(index)]

    def kernel_range_variables(self, index: int) -> list[Any]:
        """The variables of :meth:`kernel_ranges`."""
        kept = self._kernel_weights[index]
        return [kept[key] for key in ("min_var", "max_var") if key in kept]

    def start_learning(self) -> None:
        """Give the scales that training learns their first values, where they have none."""
        learned_kernels.start(self)

    def factor(self, phase: Any) -> Any:
        """``gamma / sqrt(moving_variance + epsilon)`` in a shape that multiplies the kernel."""
        norm = self.batch_norm
        values = norm.variables_in(phase)
        factor = values["gamma"] * tf.math.rsqrt(values["moving_variance"] + norm.epsilon)
        shape = [1] * len(self.kernel.shape)
        for axis in self.row.kernels[-1].channel_axes:
            shape[axis] = self.kernel.shape[axis]
        return tf.reshape(factor, shape)

    def _switched(self, phase: Any, training: bool) -> list[Any]:
        """The kernels in ``phase``; may be pending."""
        result = []
        for index, quantizer in enumerate(self.kernel_quantizers):
            kernel, weights = preserved.kernel(self, index), self._kernel_weights[index]
            ours = isinstance(quantizer, quantizers.PerChannelQuantizer)
            if ours and kernel.dtype == tf.float32:
                result.append(quantizer.switch(kernel, phase))
                continue
            if isinstance(quantizer, learned.LearnedKernelQuantizer):
                result.append(learned_kernels.switched(self, index, phase))
                continue
            last = index == len(self.kernel_names) - 1

            def quantize(
                kernel: Any = kernel,
                quantizer: Any = quantizer,
                weights: Any = weights,
                fold: bool = last and self.folds_first,
            ) -> Any:
                dtype, kernel = kernel.dtype, tf.cast(kernel, tf.float32)
                if not fold:
                    return tf.cast(replicated.called(quantizer, kernel, training, weights), dtype)
                # One convolution serves the statistics and the output: the folded kernel is
                # quantized, and the factor taken out again, so that the normalization after it
                # puts it back, with the batch's statistics in training (the correction) and the
                # moving ones in inference.
                factor = tf.cast(self.factor(phase), tf.float32)
                stopped = tf.stop_gradient(kernel * factor)
                folded = replicated.called(quantizer, stopped, training, weights)
                return tf.cast(unfold(kernel, factor, tf.stop_gradient(folded)), dtype)

            whether = phase >= phases.QUANTIZE
            result.append(replicated.chosen(whether, quantize, lambda k=kernel: k, weights))
        return result

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and tracing is slower
    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        # An activation that is a layer is built by its first call.
        plain = not self.flavour.is_layer(self.host.activation)
        symbolic = self.signature(inputs, self.host.compute_dtype) if plain else None
        if symbolic is not None:
            return symbolic
        known = self.flavour.static_training(training)
        inputs = tf.cast(inputs, self.host.compute_dtype)
        phase = phases.read(self.phase)
        kernels = self._switched(phase, known is True)
        *inner, shift = coarse_bias.shifts(self, kernels, phase)
        if any(arithmetic.tensor(kernel).dtype != inputs.dtype for kernel in kernels):
            kernels = [tf.cast(arithmetic.connected(kernel), inputs.dtype) for kernel in kernels]
        x = channels.steps_as_samples(inputs) if self.distributed else inputs

        def between(x: Any) -> Any:
            x = x if inner[0] is None else channels.add(self, x, tf.cast(inner[0], x.dtype))
            return self.between(x, training=training)

        y = LINEAR[self.row.name](self.host, x, kernels, between)
        if shift is not None and channels.is_einsum(self):
            shift = tf.reshape(shift, channels.sizes(self))
        norm, mask = self.batch_norm, self.compute_mask(inputs, mask)
        taken = {} if shift is None else {"shift": shift}
        if hosts.uses_bias(self.host):
            bias = tf.convert_to_tensor(self.host.bias)
            if norm is None and shift is not None:
                bias = bias + tf.cast(shift, bias.dtype)
            bias = tf.cast(bias, arithmetic.tensor(y).dtype)
            if norm is not None and norm.takes_bias(arithmetic.tensor(y), training, mask):
                taken["bias"] = bias
                y = arithmetic.moved(y, functools.partial(channels.add, self), bias)
            else:
                y = channels.add(self, arithmetic.connected(y), bias)
        elif norm is None and shift is not None:  # the file has a bias all the same
            y = arithmetic.connected(y)
            y = channels.add(self, y, tf.cast(shift, y.dtype))
        if self.distributed:
            y = channels.samples_as_steps(arithmetic.connected(y), inputs)
        if norm is not None:
            y = norm.after(y, training, mask, **taken)
        y = bias_correction.through(self, y)
        if self.before_activation is not None:
            y = self.before_activation.after(y, training)
        if self.host.activation is not None and not self._clamps():
            y = self.host.activation(arithmetic.connected(y))
        if self.output_quantizer is not None:
            y = self.output_quantizer.after(y, training)
        return arithmetic.connected(y)

    def _clamps(self) -> bool:
        # The quantizer of the output applies the activation.
        return self.output_quantizer is not None and self.output_quantizer.clamp != "none"

    def compute_output_shape(self, input_shape: Any) -> Any:
        if channels.is_einsum(self) and self.host.built:
            return channels.output_shape(self, input_shape)
        if not self.distributed:
            return self.host.compute_output_shape(input_shape)
        shape = self.host.compute_output_shape(channels.without_steps(input_shape))
        return (input_shape[0], input_shape[1], *tuple(shape)[1:])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        # As the stock layer: a convolution ends the mask.
        return mask if self.host.supports_masking or self.distributed else None

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        for name in ("host", "batch_norm", "between", "before_activation", "output_quantizer"):
            part = getattr(self, name)
            config[name] = None if part is None else self.flavour.serialize(part)
        config["distributed"] = self.distributed
        config["bias_correction"] = self.bias_correction
        config["preserve"] = [list(kinds) for kinds in self.preserve]
        config["kernel_quantizers"] = [quantizer_names.serialize(q) for q in self.kernel_quantizers]
        return config
