"""Batch normalization on TensorFlow's fused kernel, for any rank and axis, in both Kerases."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import tensorflow as tf

from rewriter import kernels
from rewriter.keras_compat import paths
from rewriter.kernels import composed_norm, moments
from rewriter.layers.norm_arguments import NormArguments
from rewriter.quantization import phases
from rewriter.quantization.pipeline import VARIABLES, Pipe, piped
from rewriter.quantization.pipeline_ops import copy_op, is_layer


class FusedBatchNormalizationMixin(NormArguments):
    """A drop-in for ``BatchNormalization`` that always runs the fused kernel.

    ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta`` (Ioffe and Szegedy 2015,
    arXiv:1502.03167), with the batch's mean and variance in training and the moving ones in
    inference. As in Keras, ``trainable=False`` means inference in training too.

    Input shape: any rank from 2; float16, bfloat16, float32 or float64.
    Output shape: the same.

    Args:
      axis, momentum, epsilon, center, scale, *_initializer, *_regularizer, *_constraint: as in
        ``BatchNormalization``.
      bessel_correction: whether the moving variance takes the batch's variance times n/(n-1).
        None: as the stock layer of the same Keras does (tf_keras where it has a fused kernel:
        rank 4 or 5, channels on axis 1 or the last; Keras 3 never).
      synchronized: whether the replicas of a distribution strategy share their batch statistics.
      pipeline: operations on the variables before they normalize: a mapping with ``gamma``,
        ``beta``, ``moving_mean``, ``moving_variance`` and ``phases``, as in
        :class:`rewriter.BatchNormPipeline`; or its serialized form.

    Variables beside those of ``BatchNormalization``: ``phase`` (see
    :mod:`rewriter.quantization.phases`) and ``frozen`` (int32; 1: training uses the moving
    statistics and keeps them).
    """

    def build(self, input_shape: Any) -> None:
        with self.flavour.part_scope(place) if (place := paths.given(self)) else nullcontext():
            self._build_weights(input_shape)
        self.add_phase()
        self.frozen = self.add_switch("frozen")
        self._build_pipeline(input_shape[self.axis % len(input_shape)])
        super().build(input_shape)

    def _build_weights(self, input_shape: Any) -> None:
        rank = len(input_shape)
        axis = self.axis % rank
        channels = input_shape[axis]
        self._like_fused = self.flavour.drop_in_fused(rank, axis, self.compute_dtype)
        if self.bessel_correction is None:
            self.bessel_correction = self._like_fused
        add = self.flavour.add_weight
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = add(
                self,
                "gamma",
                (channels,),
                self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
            )
        if self.center:
            self.beta = add(
                self,
                "beta",
                (channels,),
                self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
            )
        self.moving_mean = add(
            self, "moving_mean", (channels,), self.moving_mean_initializer, statistic=True
        )
        self.moving_variance = add(
            self, "moving_variance", (channels,), self.moving_variance_initializer, statistic=True
        )

    def _build_pipeline(self, channels: int) -> None:
        if self.pipeline is None:
            return
        adapter = self.flavour.quantizer_adapter(self)
        for name in VARIABLES:
            op = getattr(self.pipeline, name)
            if op is None or getattr(self, name) is None:
                continue
            pipe = Pipe(copy_op(op))
            if is_layer(pipe.op):
                setattr(self, f"{name}_pipe", pipe.op)
            with tf.name_scope(f"{name}_pipe"):
                pipe.build((channels,), name, adapter)
            self._pipes[name] = pipe

    @property
    def pipeline_variables(self) -> list[Any]:
        """The variables that belong to the operations in the pipeline."""
        return [v for name in VARIABLES if name in self._pipes for v in self._pipes[name].variables]

    @property
    def _pipes_statistics(self) -> bool:
        return any(name in self._pipes for name in VARIABLES[2:])

    def variables_in(self, phase: Any, training: bool = False) -> dict[str, Any]:
        """gamma, beta, moving_mean and moving_variance as a phase has them, as tensors (C,).

        Args:
          phase: int32 scalar of :mod:`rewriter.quantization.phases`.
          training: whether stateful quantizers in the pipeline may update themselves.
        """
        return self._piped(self._read(), phase, training)

    def _read(self, with_gradients: bool = True) -> dict[str, Any]:
        """The variables as tensors; ones for a gamma and zeros for a beta that is not there.

        Moving statistics have gradients, for who asks a tape for them, only ``with_gradients``.
        """
        result = {}
        for name in VARIABLES:
            variable = getattr(self, name)
            if variable is None:
                like = tf.convert_to_tensor(self.moving_mean)
                result[name] = tf.ones_like(like) if name == "gamma" else tf.zeros_like(like)
                continue
            direct = name in VARIABLES[2:] and not with_gradients
            read = kernels.read_variable if direct else tf.convert_to_tensor
            result[name] = read(variable)
        return result

    def _piped(self, variables: dict[str, Any], phase: Any, training: bool) -> dict[str, Any]:
        if not self._pipes:
            return variables
        return piped(self._pipes, variables, self.pipeline.phases, phase, training)

    @tf.autograph.experimental.do_not_convert  # nothing to convert, and tracing is slower
    def call(
        self,
        inputs: Any,
        training: Any = None,
        mask: Any = None,
        bias: Any = None,
        shift: Any = None,
    ) -> Any:
        symbolic = self.signature(inputs)
        if symbolic is not None:
            return symbolic
        training = self._training(training)
        if isinstance(training, bool):
            return self._normalize(inputs, training, mask, bias, shift)
        return tf.cond(
            tf.cast(training, tf.bool),
            lambda: self._normalize(inputs, True, mask, shift=shift),
            lambda: self._normalize(inputs, False, mask, shift=shift),
        )

    def after(
        self, inputs: Any, training: Any, mask: Any, bias: Any = None, shift: Any = None
    ) -> Any:
        """As a call, for inputs that may be pending; the result may be, too.

        ``bias``: see :meth:`takes_bias`. ``shift``: float32 (C,), added to beta without a gradient.
        """
        x, known = kernels.tensor(inputs), self._training(training)
        plain = len(x.shape) == 4 and self.axis % 4 == 3 and x.dtype == self.compute_dtype
        if isinstance(known, bool) and plain and self._on_kernel(x, known, mask):
            return self._fused(inputs, *self._values(known, True, shift), known, bias)
        optional = {"bias": bias, "shift": shift}
        given = {name: value for name, value in optional.items() if value is not None}
        return self(kernels.connected(inputs), training=training, mask=mask, **given)

    def takes_bias(self, inputs: Any, training: Any, mask: Any) -> bool:
        """Whether the gradient of a bias in the inputs can be had from the normalization.

        Then ``call`` may be given the bias, and inputs that are not connected to it.
        """
        return self._training(training) is True and self._on_kernel(inputs, True, mask)

    def _training(self, training: Any) -> Any:
        if not self.trainable:
            return False
        return composed_norm.is_as_in_training(self) or self.flavour.static_training(training)

    def _on_kernel(self, inputs: Any, training: bool, mask: Any) -> bool:
        """Whether the fused kernel is used.

        It has no float64, and computes the moments of all elements of this replica. Its
        ``(x - mean) * factor + beta`` rounds otherwise than the formula in inference.
        """
        if composed_norm.share(self) is not None or inputs.dtype == tf.float64:
            return False
        if not training:
            return self._like_fused
        shared = self.synchronized and moments.replicas() > 1
        # The stock layer's fused kernel ignores the mask.
        return not shared and (mask is None or self._like_fused)

    def _normalize(
        self, inputs: Any, training: bool, mask: Any, bias: Any = None, shift: Any = None
    ) -> Any:
        x, restore = moments.channels_last_4d(inputs, self.axis)
        on_kernel = self._on_kernel(inputs, training, mask)
        values, averages = self._values(training, on_kernel, shift)
        share = composed_norm.share(self)
        if share is not None:
            y, mean, variance = composed_norm.reestimated(
                x,
                values[0],
                values[1],
                averages,
                share,
                epsilon=self.epsilon,
                bessel=bool(self.bessel_correction),
            )
            self._assign(mean, variance)
            return restore(y)
        if not on_kernel:
            shared = training and self.synchronized and moments.replicas() > 1
            masked = mask is not None and not self._like_fused
            weights = moments.weights(mask, inputs, x) if masked else None
            return restore(self._composed(x, values, averages, training, weights, shared))
        return restore(kernels.connected(self._fused(x, values, averages, training, bias)))

    def _values(
        self, training: bool, fused: bool, shift: Any
    ) -> tuple[tuple[Any, ...], tuple[Any, Any]]:
        """gamma, beta, mean and variance as the phase has them; the moving statistics."""
        phase = phases.read(self.phase) if self._pipes else None
        variables = self._read(with_gradients=not fused or self._pipes_statistics)
        averages = variables["moving_mean"], variables["moving_variance"]
        moves = training and not composed_norm.is_as_in_training(self)
        values = dict(self._piped(variables, phase, moves))
        if shift is not None:
            values["beta"] = values["beta"] + tf.cast(shift, values["beta"].dtype)
        return tuple(values.values()), averages

    def _fused(self, x: Any, values: Any, averages: Any, training: bool, bias: Any) -> Any:
        """On the kernel, (N, H, W, C); pending."""
        y, mean, variance = kernels.batch_norm(
            x,
            *values,
            kernels.read_variable(self.frozen) if training else tf.constant(1),
            epsilon=self.epsilon,
            momentum=self.momentum,
            bessel=bool(self.bessel_correction),
            averages=averages if self._pipes_statistics else None,
            bias=bias,
        )
        if training:
            self._assign(mean, variance)
        return y

    def _composed(
        self, x: Any, values: Any, averages: Any, training: bool, weights: Any, shared: bool
    ) -> Any:
        """Without the fused kernel: float64, masks, statistics across replicas."""
        if not training:
            return composed_norm.by_moving(x, values, self.epsilon)
        y, mean, variance = composed_norm.by_batch(
            x,
            values,
            averages,
            kernels.read_variable(self.frozen) > 0,
            epsilon=self.epsilon,
            momentum=self.momentum,
            bessel=bool(self.bessel_correction),
            weights=weights,
            shared=shared,
        )
        self._assign(mean, variance)
        return y

    def _assign(self, mean: Any, variance: Any) -> None:
        if composed_norm.is_as_in_training(self):
            return
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            variable = self.flavour.tf_variable(moving)
            kernels.assign_variable(variable, tf.cast(value, variable.dtype))
