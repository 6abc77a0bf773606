"""The trained quantization-aware model against the twin of its file, tensor by tensor.

The model emulates the device's grids in float arithmetic; the program computes on integers. Where
both are right they differ by roundings: at every tensor now and then by one step, and by what
comes of that further on. Two comparisons, as for the file: *step by step* gives the program the
model's own tensors, so that what differs by more than a rounding is computed by another rule than
it was trained by; *end to end* runs the program from the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.checking.evaluation import at_once, for_all, last_reads, same_order, twofold
from rewriter.checking.training_agreement import Counter, TrainingAgreement, TrainingComparison
from rewriter.errors import RewriterError, VerificationError
from rewriter.grid import BITS
from rewriter.keras_compat.variables import read as read_variable
from rewriter.layers.layer_norm import QuantizedLayerNormalizationMixin
from rewriter.layers.observing import observed
from rewriter.litert import affine, integer_wide_limits
from rewriter.lowering.lower import Lowered
from rewriter.program import Program, Step, Tensor
from rewriter.quantization import phases
from rewriter.reading.graph import Graph, Ref, map_refs
from rewriter.reading.inside import in_inference

_MAGNIFIES = ("SOFTMAX", "ARG_MAX", "ARG_MIN")


def compare_training(
    lowered: Lowered,
    inputs: Sequence[np.ndarray],
    *,
    batch: int = 16,
    progress: Callable[[int], None] | None = None,
    seen: Callable[[str, np.ndarray], None] | None = None,
) -> TrainingComparison:
    """Run a quantization-aware model and its program on the same samples.

    The model is in phase ``quantize``, in inference mode; its own phase and its ranges stay.

    Args:
      lowered: the model's program, and where the model has its tensors.
      inputs: one array of real values per model input, samples first.
      batch: samples whose tensors are held in memory at a time, at most.
      progress: called with the number of samples done.
      seen: called for each output of each chunk of samples with its name and the model's values.

    Raises:
      VerificationError: the model computes what is not a number.
    """
    program, twin = lowered.program, _Twin(lowered)
    batch = at_once(program, batch)
    for start in range(0, len(inputs[0]), batch):
        chunk = [array[start : start + batch] for array in inputs]
        values = emulated(lowered, chunk)
        twin.compare(values, chunk)
        for name in program.outputs:
            if seen is not None and name in values and _unit(program.tensors[name]) != "number":
                seen(name, np.asarray(values[name]))
        if progress is not None:
            progress(start + len(chunk[0]))
    makers = {step.output: step for step in program.steps}
    agreements = []
    for name, (end, one) in twin.counters.items():
        grid = program.tensors[name].quantization
        agreements.append(
            TrainingAgreement(
                name,
                makers[name].layer if name in makers else name,
                end.elements,
                end.snr_db,
                end.largest,
                one.snr_db,
                one.largest,
                one.other / max(one.elements, 1),
                1 + _inner_roundings(name, program, makers, twin.counters),
                _unit(program.tensors[name]),
                BITS if grid is None else grid.bits,
            )
        )
    return TrainingComparison(
        len(inputs[0]), tuple(agreements), _judged(program, makers), twin.skipped
    )


def _inner_roundings(
    name: str, program: Program, makers: Mapping[str, Step], compared: Collection[str]
) -> int:
    """How many tensors on other grids there are between a tensor and those that the model has.

    The product of three, on the device, is the product of two, rounded, times the third. What
    LiteRT reads from a table of 16 bits may be several steps off.
    """
    grid, found = program.tensors[name].quantization, set()
    todo = list(makers[name].inputs) if name in makers else []
    while todo:
        before = todo.pop()
        if before in compared or before in found or before not in makers:
            continue
        found.add(before)
        todo += makers[before].inputs
    made = [makers[n] for n in (name, *found) if n in makers]
    tables = sum(
        integer_wide_limits.table_steps(step.operator, program.tensors[step.output].shape)
        for step in made
    )
    return tables + sum(program.tensors[before].quantization != grid for before in found)


def _unit(tensor: Tensor) -> str:
    """What its differences are counted in, see :class:`TrainingAgreement`."""
    if tensor.quantization is None:
        return "relative"
    return "number" if tensor.quantization.whole else "step"


def _judged(program: Program, makers: Mapping[str, Step]) -> tuple[tuple[str, ...], ...]:
    """For each output: itself, and what it is the softmax of, or the place of a value in."""
    return tuple(
        (name, *makers[name].inputs)
        if name in makers and makers[name].operator.kind in _MAGNIFIES
        else (name,)
        for name in program.outputs
    )


def emulated(
    lowered: Lowered, inputs: Sequence[np.ndarray], phase: int = phases.QUANTIZE_FROZEN
) -> dict[str, tf.Tensor]:
    """The real values that the quantization-aware model has for the program's tensors.

    Args:
      lowered: the model's program, and where the model has its tensors.
      inputs: one array of real values per model input, samples first.
      phase: of the model meanwhile; its own stays. In ``phases.FLOAT`` nothing is quantized.
    """
    read = lowered.graph
    given = dict(zip(read.input_refs(), inputs, strict=True))
    last = {ref: index for index, call in enumerate(read.calls) for ref in call.refs}
    wanted = {Ref(s.call, s.index) for s in lowered.sources.values() if s.layer is None}
    env: dict[Ref, Any] = {}
    inside: dict[tuple[int, int], Any] = {}
    ranges = _ranges(read)
    try:
        with phases.only(phase):
            for index, call in enumerate(read.calls):
                if Ref(index) in given:
                    env[Ref(index)] = tf.convert_to_tensor(given[Ref(index)])
                    continue

                def note(layer: Any, outputs: Any, index: int = index) -> None:
                    inside[index, id(layer)] = outputs

                args, kwargs = map_refs((call.args, call.kwargs), env.__getitem__)
                kwargs = in_inference(read.flavour, call, kwargs)
                with observed(note):
                    outputs = tf.nest.flatten(call.layer(*args, **kwargs))
                env.update((Ref(index, i), value) for i, value in enumerate(outputs))
                for ref in call.refs:
                    if last[ref] == index and ref not in wanted:
                        env.pop(ref, None)
    finally:
        for variable, value in ranges:
            variable.assign(value)
    found = {}
    for name, source in lowered.sources.items():
        values = (
            env.get(Ref(source.call, source.index))
            if source.layer is None
            else inside.get((source.call, id(source.layer)))
        )
        if values is not None:
            found[name] = for_all(values, len(inputs[0]))
    return found


def _ranges(read: Graph) -> list[tuple[Any, Any]]:
    """The variables of ranges that a call widens even in inference, with their values."""
    layers = [c.layer for c in read.calls if isinstance(c.layer, QuantizedLayerNormalizationMixin)]
    variables = [v for layer in layers for v in layer.centred.range_variables.values()]
    return [(v, read_variable(v)) for v in variables if hasattr(v, "assign")]


class _Twin:
    """The program, evaluated beside the model.

    Attributes:
      counters: end to end and step by step, of each tensor that the model has too.
      skipped: as in :class:`TrainingComparison`.
    """

    def __init__(self, lowered: Lowered):
        self._program = lowered.program
        self._last = last_reads(lowered.program)
        self.counters: dict[str, tuple[Counter, Counter]] = {}
        self.skipped: dict[str, str] = {}
        self._model: Mapping[str, tf.Tensor] = {}
        self._whole: dict[str, tf.Tensor] = {}  # end to end
        self._single: dict[str, tf.Tensor] = {}  # the model's; computed where it has none

    def compare(self, model: Mapping[str, tf.Tensor], inputs: Sequence[np.ndarray]) -> None:
        """Evaluate the program on a chunk of samples and count what differs.

        Args:
          model: the real values of the model's tensors, by the program's names.
          inputs: real values.
        """
        program, samples = self._program, len(inputs[0])
        self._model, self._whole, self._single = model, {}, {}
        for name, array in zip(program.inputs, inputs, strict=True):
            stored = _stored(array, program.tensors[name])
            self._keep(name, stored, stored)
        for place, step in enumerate(program.steps):
            self._compute(step, samples)
            for name in self._last[place]:
                self._whole.pop(name, None)
                self._single.pop(name, None)

    def _compute(self, step: Step, samples: int) -> None:
        """Evaluate one step, and compare its result."""
        if not all(name in self._whole for name in step.inputs):
            self._go_on_from(step.output)
            return
        a, b = ([values[i] for i in step.inputs] for values in (self._whole, self._single))
        try:
            # The model computes all samples at a time.
            both = twofold(step, a, b, samples, samples)
        except (RewriterError, NotImplementedError) as error:
            self.skipped[step.output] = f"layer '{step.layer}': {error}"
            self._go_on_from(step.output)
            return
        self._keep(step.output, *both)

    def _keep(self, name: str, whole: tf.Tensor, single: tf.Tensor) -> None:
        """Compare one tensor, and keep it for the steps that read it."""
        self._whole[name], self._single[name] = whole, single
        model = self._model.get(name)
        if model is None:
            return
        tensor = self._program.tensors[name]
        if not same_order(model.shape, whole.shape):
            self.skipped[name] = f"shape {model.shape} in the model, {whole.shape} in the twin"
            return
        model = tf.reshape(model, whole.shape)
        self._refuse_no_number(name, model)
        if name not in self.counters:
            self.counters[name] = Counter(tensor), Counter(tensor)
        end, one = self.counters[name]
        steps = end.steps(np.asarray(model))
        end.add(steps, np.asarray(whole))
        one.add(steps, np.asarray(single))
        self._single[name] = _stored(model, tensor)

    def _refuse_no_number(self, name: str, model: tf.Tensor) -> None:
        """A difference from what is not a number is none either, and every limit would hold."""
        if self._program.tensors[name].quantization is None and name not in self._program.outputs:
            return  # inside a function in float, which may choose among its values
        if np.isnan(model).any():
            makers = {step.output: step for step in self._program.steps}
            step = makers.get(name)
            if step is not None and step.operator.kind == "QUANTIZE":
                step = makers.get(step.inputs[0], step)  # not the layer that only puts it on a grid
            layer = name if step is None else step.layer
            raise VerificationError(
                f"Layer '{layer}': the trained model computes what is not a number (NaN) there, in "
                "phase 'quantize' and from this data. Something is divided by a number that its "
                "grid rounds to 0, as a sum of a few small values is: add a larger constant to it, "
                "or give that tensor more bits in the recipe."
            )

    def _go_on_from(self, name: str) -> None:
        """Take the model's values of a tensor that cannot be computed, if it has them."""
        if name in self._model:
            stored = _stored(self._model[name], self._program.tensors[name])
            self._whole[name] = self._single[name] = stored


def _stored(value: Any, tensor: Tensor) -> tf.Tensor:
    if tensor.quantization is None:
        return tf.cast(value, tf.float32)
    whole = tensor.quantization.whole
    return affine.quantize(value if whole else tf.cast(value, tf.float32), tensor.quantization)
