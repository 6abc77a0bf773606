"""A program against its file, tensor by tensor.

Two comparisons, because they answer different questions. *Operator by operator* gives each step
the file's own input tensors: it tells whether the program describes what the device computes, and
where it does not. *End to end* runs the whole program from the inputs: it tells what that means
for the result. (In a network with random weights a single flipped element grows into chaos, so
only the first of the two is a test of correctness there.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.checking import crash, interpreter
from rewriter.checking.comparison import Comparison, TensorAgreement
from rewriter.checking.differences import differences
from rewriter.checking.evaluation import at_once, last_reads, same_order, twofold
from rewriter.checking.mapping import FileMapping, mapping_from_names
from rewriter.errors import RewriterError, VerificationError
from rewriter.lowering.values import Shape
from rewriter.program import Program

# Shares of the largest magnitude that stand for "identical" and "one step" of a float tensor.
_FLOAT_IDENTICAL, _FLOAT_STEP = 1e-6, 1e-3


def compare_program(
    program: Program,
    content: bytes,
    mapping: FileMapping | None,
    inputs: Sequence[np.ndarray],
    *,
    kernels: str = "xnnpack",
    batch: int = 16,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    seen: Callable[[str, str, np.ndarray], None] | None = None,
) -> Comparison:
    """Run a file and its program on the same samples.

    Args:
      program: what the file should compute.
      content: the file.
      mapping: from the conversion; ``None``: by the names in the file.
      inputs: one array per model input, samples first: real values (quantized as LiteRT does),
        or already integers.
      kernels: see :class:`rewriter.checking.interpreter.Runner`.
      batch: samples whose tensors are held in memory at a time, at most.
      num_threads: threads for the interpreter.
      progress: called with (samples done, samples in all).
      seen: called for each output of each chunk of samples with (``"file"``, its name, its raw
        values, samples first), and likewise for the ``"twin"`` end to end.

    Raises:
      VerificationError: the inputs do not fit the file, there are none, the file is not one of
        this program, or LiteRT crashes on it.
    """
    total = len(inputs[0]) if inputs else 0
    if total == 0:
        raise VerificationError("There is nothing to compare. Received: no samples.")
    layers = {step.output: step.layer for step in program.steps}
    runner: interpreter.Runner | None = None
    try:
        runner = interpreter.Runner(
            content, kernels=kernels, all_tensors=True, num_threads=num_threads, isolated=True
        )
        mapping = mapping or mapping_from_names(program, runner.file)
        shapes = _other_shapes(program, mapping)
        if wrong := [shapes[name] for name in program.inputs if name in shapes]:
            raise VerificationError(f"The file is not of this model: {wrong[0]}.")
        _refuse_foreign(program, mapping)
        indexes = {name: i for name, i in mapping.indexes.items() if name not in shapes}
        twin = _Twin(program, indexes, runner.batch, seen)
        by_operator, end_to_end = _Counter(), _Counter()
        top1 = np.zeros((len(twin.classified), 2))
        batch = at_once(program, batch)
        for start in range(0, total, batch):
            chunk = [array[start : start + batch] for array in inputs]
            found = runner.run(
                chunk,
                tensors=list(indexes.values()),
                progress=progress and _shifted(progress, start, total),
            ).tensors
            step_counts, whole_counts, votes = twin(
                {n: found[i] for n, i in indexes.items()}, len(chunk[0])
            )
            by_operator.add(step_counts)
            end_to_end.add(whole_counts)
            top1 += votes
    except crash.InterpreterCrash as error:
        raise _naming_layer(error, program, mapping) from error
    finally:
        if runner is not None:
            runner.close()
    return Comparison(
        samples=total,
        kernels=kernels,
        end_to_end=end_to_end.agreements(program, twin.compared, layers),
        operator_by_operator=by_operator.agreements(program, twin.compared, layers),
        top1={
            program.output_names[i]: float(hits / count)
            for i, (hits, count) in zip(twin.classified, top1, strict=True)
        },
        differences=(*shapes.values(), *differences(program, content, mapping)),
        skipped=twin.skipped,
        missing=mapping.missing,
    )


def _refuse_foreign(program: Program, mapping: FileMapping) -> None:
    """A file with the same inputs and outputs, and nothing of the program between them."""
    borders = {*program.inputs, *program.outputs}
    between = [name for name in mapping.missing if name not in borders]
    if between and not any(name not in borders for name in mapping.indexes):
        raise VerificationError(
            f"The file is not of this model: it has none of its tensors inside, such as "
            f"{between[0]!r}. Verify it with the model that it was exported from."
        )


def _naming_layer(
    error: crash.InterpreterCrash, program: Program, mapping: FileMapping | None
) -> crash.InterpreterCrash:
    """The error with the Keras layer that the operator comes from, if it is known."""
    names = {} if mapping is None else {file: ours for ours, file in mapping.names.items()}
    ours = names.get(error.tensor or "", error.tensor)
    layer = next((step.layer for step in program.steps if step.output == ours), None)
    if layer is None:
        return error
    return crash.InterpreterCrash(f"{error} It is of layer '{layer}'.", error.kind, error.tensor)


def _other_shapes(program: Program, mapping: FileMapping) -> dict[str, str]:
    """The program's tensors that have another shape in the file, each with what to say of it."""
    shapes = {
        name: (program.tensors[name].shape, mapping.file.tensors[index].shape)
        for name, index in mapping.indexes.items()
    }
    return {
        name: f"tensor '{name}': shape {there} in the file, {ours} expected"
        for name, (ours, there) in shapes.items()
        if not _same_elements(ours, there)
    }


def _same_elements(ours: Shape, there: Sequence[int]) -> bool:
    """Whether a tensor of the file holds the elements of the program's in the same order.

    The first axis of both is the samples', and may hold several rows of each.
    """
    return list(ours[1:]) == list(there[1:]) or same_order(ours[1:], there)


def _shifted(
    progress: Callable[[int, int], None], start: int, total: int
) -> Callable[[int, int], None]:
    """``progress`` for a chunk that begins at sample ``start``."""
    return lambda done, _: progress(start + done, total)


class _Twin:
    """Evaluates the program on the file's tensors and counts agreement.

    Eagerly: tracing a hundred steps costs more than running them on hundreds of samples.
    """

    def __init__(
        self,
        program: Program,
        held: Collection[str],
        batch: int,
        seen: Callable[[str, str, np.ndarray], None] | None = None,
    ):
        self._program, self._batch, self._seen = program, batch, seen
        self._last = last_reads(program)
        self.skipped: dict[str, str] = {}
        self.compared = [s.output for s in program.steps if s.output in held]
        self.classified = [
            i
            for i, name in enumerate(program.outputs)
            if name in held
            and len(program.tensors[name].shape) > 1
            and (program.tensors[name].shape[-1] or 1) > 1
            and not getattr(program.tensors[name].quantization, "whole", False)
        ]

    def __call__(
        self, tensors: Mapping[str, np.ndarray], samples: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts operator by operator and end to end ``[compared, 4]``, and top-1 votes.

        Args:
          tensors: the file's tensors, samples first, by the program's names.
          samples: how many.
        """
        program = self._program
        whole = {n: self._raw(n, tensors[n]) for n in program.inputs if n in tensors}
        single = dict(whole)  # the file's; computed values where it holds none
        steps, ends = [], []
        for place, step in enumerate(program.steps):
            name = step.output
            real = self._raw(name, tensors[name]) if name in tensors else None
            try:
                a, b = ([values[i] for i in step.inputs] for values in (single, whole))
                one, whole[name] = twofold(step, a, b, samples, self._batch)
            except (RewriterError, NotImplementedError) as error:
                if real is None:
                    raise
                self.skipped[name] = f"layer '{step.layer}': {error}"
                one = whole[name] = real
            single[name] = one if real is None else real
            if real is not None:
                steps.append(_compare(one.numpy(), real.numpy()))
                ends.append(_compare(whole[name].numpy(), real.numpy()))
            for read in self._last[place]:
                del single[read], whole[read]
        for name in program.outputs:
            numbers = program.tensors[name].quantization
            named = numbers is not None and numbers.whole
            if self._seen is not None and name in tensors and name in whole and not named:
                self._seen("file", name, single[name].numpy())
                self._seen("twin", name, whole[name].numpy())
        votes = [
            _same_top(whole[program.outputs[i]].numpy(), single[program.outputs[i]].numpy())
            for i in self.classified
        ]
        return (
            np.reshape(steps, (-1, 4)),
            np.reshape(ends, (-1, 4)),
            np.reshape(votes, (-1, 2)),
        )

    def _raw(self, name: str, value: np.ndarray) -> tf.Tensor:
        tensor = self._program.tensors[name]
        dtype = tf.float32 if tensor.quantization is None else tf.int32
        return tf.cast(value.reshape((-1, *tensor.shape[1:])), dtype)


def _compare(value: np.ndarray, expected: np.ndarray) -> list[float]:
    """Counts: elements, identical, within one; and the maximum."""
    value = value.reshape(expected.shape)
    if expected.dtype.kind == "f":
        # TensorFlow writes -inf as the lowest number.
        value, expected = (np.nan_to_num(x, nan=np.nan) for x in (value, expected))
        off = np.abs(value - expected)
        ordinary = np.abs(expected) < np.finfo(np.float32).max
        largest = np.abs(expected).max(initial=0, where=ordinary)
        off = off / max(largest, np.finfo(np.float32).tiny)
        equal, near = off <= _FLOAT_IDENTICAL, off <= _FLOAT_STEP
    else:
        off = np.abs(value - expected)
        equal, near = off == 0, off <= 1
    return [
        expected.size,
        float(np.count_nonzero(equal)),
        float(np.count_nonzero(near)),
        float(off.max(initial=0)),
    ]


def _same_top(value: np.ndarray, expected: np.ndarray) -> list[int]:
    """How many positions agree on the index of the largest element, and how many there are."""
    same = value.reshape(expected.shape).argmax(axis=-1) == expected.argmax(axis=-1)
    return [np.count_nonzero(same), same.size]


class _Counter:
    """Sums of the counts of :func:`_compare` over chunks of samples."""

    def __init__(self) -> None:
        self._counts: np.ndarray | None = None

    def add(self, counts: np.ndarray) -> None:
        if self._counts is None:
            self._counts = counts.copy()
            return
        self._counts[:, :3] += counts[:, :3]
        self._counts[:, 3] = np.maximum(self._counts[:, 3], counts[:, 3])

    def agreements(
        self, program: Program, names: list[str], layers: Mapping[str, str]
    ) -> tuple[TensorAgreement, ...]:
        rows: Any = () if self._counts is None else self._counts
        return tuple(
            TensorAgreement(
                name,
                layers[name],
                int(elements),
                float(identical / elements),
                float(near / elements),
                float(top),
                "relative" if program.tensors[name].quantization is None else "step",
            )
            for name, (elements, identical, near, top) in zip(names, rows, strict=True)
        )
