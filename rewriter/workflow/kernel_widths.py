"""The outputs of a model with its kernels on grids of chosen widths, and all else in float."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import grid as grids
from rewriter.errors import RecipeError, RewriterError
from rewriter.keras_compat import flat_layers, input_of, sharing
from rewriter.keras_compat.variables import read
from rewriter.kernels import connected
from rewriter.quantization import phases
from rewriter.quantization.learned import LearnedKernelQuantizer
from rewriter.quantization.quantizers import PerChannelQuantizer, PerTensorQuantizer
from rewriter.workflow import tasks
from rewriter.workflow.sensitivity_report import Measured


def integer_hosts(model: Any) -> list[Any]:
    """The linear layers of a rewritten model with integer operators, whose kernels can be assigned.

    A kernel that is computed cannot be, and one that another layer holds too would be another for
    that one as well: they keep the widths that the recipe says.
    """
    parts = flat_layers(model)
    holders = collections.Counter(id(v) for part in parts for v in sharing.attached(part))
    found = []
    for layer in parts:
        integer = hasattr(layer, "kernel_quantizers") and not layer.row.float_only
        if integer and not layer.flavour.stands_for(type(layer.host)):
            kernels = [getattr(layer.host, name) for name in layer.kernel_names]
            if all(holders[id(kernel)] == 1 for kernel in kernels):
                found.append(layer)
    return found


class Host:
    """A linear layer whose kernels can be put on grids of other widths.

    Args:
      layer: of ours.
      widths: those that are wanted.

    Attributes:
      widths: of those, what a file carries for it; the widest first.

    Raises:
      RecipeError: its kernel quantizer is not ours.
    """

    def __init__(self, layer: Any, widths: Sequence[int]):
        self.layer = layer
        ours = (PerChannelQuantizer, PerTensorQuantizer, LearnedKernelQuantizer)
        for quantizer in layer.kernel_quantizers:
            if not isinstance(quantizer, ours):
                raise RecipeError(
                    f"The kernel quantizer of {layer.name!r} is {type(quantizer).__qualname__}, "
                    "whose width cannot be chosen. Leave kernel_quantizer out of the recipe."
                )
        self.variables = [getattr(layer.host, name) for name in layer.kernel_names]
        self.values = [read(variable) for variable in self.variables]
        self.per_tensor = any(not quantizer.grid.axes for quantizer in layer.kernel_quantizers)
        self.widths = [bits for bits in widths if self._carried(bits)][::-1]

    def _carried(self, bits: int) -> bool:
        try:
            for kind in self.layer.row.operators:
                grids.storage(kind, grids.kernel(bits))
        except ValueError:
            return False
        return True

    @property
    def parameters(self) -> int:
        """How many elements its kernels have."""
        return sum(value.size for value in self.values)

    def bytes(self, bits: int) -> int:
        """Of the kernels in a file."""
        kinds = self.layer.row.operators
        stored = [grids.storage(kind, grids.kernel(bits)) for kind in kinds]
        pairs = zip(self.values, stored, strict=True)
        return sum(-(-value.size * width // 8) for value, width in pairs)

    def quantizers(self, bits: int) -> tuple[Any, ...]:
        """For the kernels, with the scales that they have before training."""
        return tuple(
            PerTensorQuantizer(bits)
            if self.per_tensor
            else PerChannelQuantizer(bits, row.channel_axes)
            for row in self.layer.row.kernels
        )

    def at(self, bits: int) -> Kernels:
        """Within: the kernels are on their grids of that width."""
        return Kernels([self], [bits])


class Kernels:
    """Within: the kernels of hosts are on grids of the given widths, in phase ``float``."""

    def __init__(self, hosts: Sequence[Host], widths: Sequence[int]):
        self._pairs = list(zip(hosts, widths, strict=True))

    def __enter__(self) -> None:
        for host, bits in self._pairs:
            for variable, quantized in zip(host.variables, _on_grid(host, bits), strict=True):
                variable.assign(quantized)

    def __exit__(self, *_: Any) -> None:
        for host, _bits in self._pairs:
            for variable, value in zip(host.variables, host.values, strict=True):
                variable.assign(value)


def _on_grid(host: Host, bits: int) -> list[Any]:
    """The kernels of a host as phase ``quantize`` has them, without a normalization in them."""
    layer, phase, found = host.layer, tf.constant(phases.QUANTIZE), []
    quantizers = host.quantizers(bits)
    for index, (value, quantizer) in enumerate(zip(host.values, quantizers, strict=True)):
        kernel, factor = tf.cast(value, tf.float32), None
        last = index == len(quantizers) - 1
        if last and layer.batch_norm is not None and not quantizer.commutes:
            factor = tf.cast(layer.factor(phase), tf.float32)
            kernel = kernel * factor
        quantized = connected(quantizer(kernel, training=False, weights={}))
        if factor is not None:
            quantized = tf.where(factor == 0, value, tf.math.divide_no_nan(quantized, factor))
        found.append(tf.cast(quantized, value.dtype))
    return found


_GROUPS = 20  # of samples, of which one at a time is left out


class Measure:
    """How good the outputs of a model in phase ``float`` are, with the kernels that it has now.

    Args:
      qat: a rewritten model with the kernels of the trained one.
      inputs: arrays in the order of its inputs.
      labels: see :func:`rewriter.sensitivity`.
      batch_size: samples at a time.

    Attributes:
      task_name, baseline: see :class:`rewriter.workflow.sensitivity_report.Sensitivity`.

    Raises:
      RewriterError: the labels do not fit.
    """

    def __init__(self, qat: Any, inputs: list[np.ndarray], labels: Any, batch_size: int):
        structure = input_of(qat)
        specs = [tf.TensorSpec((None, *t.shape[1:]), t.dtype) for t in tf.nest.flatten(structure)]

        def outputs(*flat: Any) -> list[Any]:
            packed = tf.nest.pack_sequence_as(structure, flat)
            return [tf.cast(y, tf.float32) for y in tf.nest.flatten(qat(packed, training=False))]

        with phases.only(phases.FLOAT):
            self._function = tf.function(outputs).get_concrete_function(*specs)
        self._inputs = [
            tf.constant(each, spec.dtype) for each, spec in zip(inputs, specs, strict=True)
        ]
        self._batch_size = batch_size
        self._wanted = self._outputs()
        self._task = None if labels is None else tasks.find(self._wanted[0], labels)
        if self._task is not None and len(self._task.labels) != len(inputs[0]):
            raise RewriterError(
                f"Data and labels differ in number. Received: {len(inputs[0])} samples and "
                f"{len(self._task.labels)} labels."
            )
        self.task_name = None if self._task is None else self._task.name
        self.baseline = self._score(self._wanted)

    def __call__(self) -> Measured:
        found = self._outputs()
        ratios = []
        for outputs in zip(self._wanted, found, strict=True):
            # A softmax that is sure of its class hides noise, until it hides it no more.
            softmax = tasks.is_softmax(outputs[0])
            wanted, own = (_logits(each) if softmax else np.float64(each) for each in outputs)
            signal, noise = np.sum(np.square(wanted)), np.sum(np.square(wanted - own))
            ratios.append(noise / max(signal, 1e-30))
        noise = float(np.mean(ratios))
        snr_db = -10 * float(np.log10(max(noise, 1e-20)))
        return Measured(snr_db, self._score(found), self._score_error(found))

    def _score(self, outputs: list[np.ndarray]) -> float | None:
        return None if self._task is None else self._task.score(outputs[0], self._task.labels)

    def _score_error(self, outputs: list[np.ndarray]) -> float | None:
        """The score's standard error: the delete-a-group jackknife (Shao and Tu 1995, 2.3)."""
        if self._task is None:
            return None
        found, labels = outputs[0], self._task.labels
        count = min(_GROUPS, len(labels))
        # At random: of samples sorted by class every group would be like the whole.
        group = np.random.default_rng(0).permutation(len(labels)) % count
        without = [self._task.score(found[group != g], labels[group != g]) for g in range(count)]
        return float(np.sqrt((count - 1) * np.var(without))) if count > 1 else float("inf")

    def _outputs(self) -> list[np.ndarray]:
        parts = []
        for start in range(0, len(self._inputs[0]), self._batch_size):
            batch = [each[start : start + self._batch_size] for each in self._inputs]
            parts.append([y.numpy() for y in self._function(*batch)])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _logits(shares: np.ndarray) -> np.ndarray:
    """What a softmax was given, up to a constant for each sample: the mean is 0."""
    logs = np.log(np.maximum(shares.astype(np.float64), 1e-30))
    centred: np.ndarray = logs - logs.mean(axis=-1, keepdims=True)
    return centred
