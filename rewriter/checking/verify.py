"""Verification: the trained model, the twin and the file, tensor by tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.checking.compare import compare_program
from rewriter.checking.comparison import Comparison, table
from rewriter.checking.emulation import compare_training
from rewriter.checking.training_agreement import TrainingAgreement, TrainingComparison
from rewriter.errors import CalibrationError, VerificationError
from rewriter.files import boundaries
from rewriter.lowering.lower import Lowered, lower_with_sources
from rewriter.rewriting import sizes
from rewriter.training.batches import batches_of


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What a verification was made from, for a report that shows more of it.

    Attributes:
      model: the quantization-aware model.
      lowered: its program, and where the model has its tensors.
      inputs: one array per model input, samples first.
      content: the file.
      classes: for each output of shape (N, C), by its name in the program: the index of the
        largest element, int (N,), by ``"trained model"``, ``"twin"`` and ``"file"``.
    """

    model: Any
    lowered: Lowered
    inputs: tuple[np.ndarray, ...]
    content: bytes
    classes: Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Verification:
    """How well a file agrees with the model it came from.

    Attributes:
      path: the file.
      comparison: file and twin: every quantized tensor, operator by operator and end to end.
      training: trained model and twin: every tensor that both have, likewise.
      evidence: what was compared; :func:`rewriter.write_report` reads it.
    """

    path: str
    comparison: Comparison
    training: TrainingComparison
    evidence: Evidence | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def snr(self) -> float | None:
        """The trained model's outputs to what the twin differs from them, in dB; the smallest.

        Infinite where all are equal, ``None`` if no output could be compared. An output behind
        a softmax is judged by what the softmax is given, if that has more.
        """
        return self.training.snr

    @property
    def parts_at(self) -> TrainingAgreement | None:
        """The first tensor that the file computes by another rule than it was trained by."""
        return self.training.parts_at

    @property
    def top1(self) -> float | None:
        """Share of samples with the same best class, over all outputs; None without classes."""
        shares = list(self.comparison.top1.values())
        return min(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "path": self.path,
            "top1": self.top1,
            **self.comparison.to_dict(),
            "training": self.training.to_dict(),
        }

    def __str__(self) -> str:
        return f"{self.path}\n{table(self.comparison, self.training)}"


def verify(
    model: Any,
    path: str | Path,
    data: Any,
    *,
    kernels: str = "xnnpack",
    samples: int | None = None,
    progress: bool = True,
) -> Verification:
    """Compare three on the same samples: the trained model, its twin, and the file.

    The *trained model* is the quantization-aware one in phase ``quantize``, in inference; it is
    left as it is, in whatever phase. The *twin* is its integer program (:func:`rewriter.fold`).
    The *file* is run by LiteRT, in a child process: a crash of LiteRT is an error here.

    Trained model and twin differ by roundings, which add up: ``snr`` is how far the outputs are
    apart. Where the twin, given the model's own tensors, differs by more than a rounding, the file
    computes something else than was trained: ``parts_at`` is the first such tensor. Twin and file
    are the same to the bit with LiteRT's default kernels, but for ties.

    Args:
      model: the quantization-aware model that the file was exported from.
      path: the ``.tflite`` file.
      data: inputs, as for :func:`rewriter.calibrate`.
      kernels: ``"xnnpack"`` (LiteRT's default) or ``"reference"``.
      samples: use only the first so many.
      progress: show a progress bar.

    Raises:
      VerificationError: if the file cannot be run, is not one of this model's, or the data does
        not fit; if LiteRT crashes, with the operator.
      ExportError: as :func:`rewriter.export_tflite` does.
    """
    try:
        content = boundaries.litert_bytes(path)
    except OSError as error:
        raise VerificationError(f"The file {str(path)!r} cannot be read: {error}.") from error
    inputs = _arrays(model, data, samples)
    # The sizes that the model leaves open are those of the data, and so of the file.
    lowered = lower_with_sources(sizes.settled(model, [array.shape[1:] for array in inputs]))
    _refuse_beyond(lowered, inputs)
    count = len(inputs[0])
    classes = _Classes()
    with tqdm(total=2 * count, desc="verifying", disable=not progress) as bar:
        with boundaries.litert(f"The file {str(path)!r}"):
            comparison = compare_program(
                lowered.program,
                content,
                None,
                inputs,
                kernels=kernels,
                progress=lambda done, total: bar.update(done - bar.n),
                seen=classes.add,
            )
        training = compare_training(
            lowered,
            inputs,
            progress=lambda done: bar.update(count + done - bar.n),
            seen=lambda name, values: classes.add("trained model", name, values),
        )
    evidence = Evidence(model, lowered, tuple(inputs), content, classes.found())
    return Verification(str(path), comparison, training, evidence)


def _refuse_beyond(lowered: Lowered, inputs: list[np.ndarray]) -> None:
    """Raise VerificationError for numbers that a table has no row of, which LiteRT refuses."""
    program = lowered.program
    given = dict(zip(program.inputs, inputs, strict=True))
    for step in program.steps:
        if step.operator.kind != "GATHER" or step.inputs[0] not in given:
            continue
        numbers, rows = given[step.inputs[0]], len(step.operator.attributes["table"])
        wrong = numbers[(numbers < 0) | (numbers >= rows)]
        if wrong.size:
            raise VerificationError(
                f"Layer '{step.layer}' looks up rows of a table by the input {step.inputs[0]!r}. "
                f"Received: {wrong[0]}, where rows are from 0 to {rows - 1}. LiteRT does not run "
                "with such a number; give others, or make them valid before the model."
            )


class _Classes:
    """The index of the largest element of each output (N, C), over chunks of samples."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, list[np.ndarray]]] = {}

    def add(self, whose: str, name: str, values: np.ndarray) -> None:
        if values.ndim == 2 and values.shape[1] > 1:
            self._parts.setdefault(name, {}).setdefault(whose, []).append(values.argmax(-1))

    def found(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: {whose: np.concatenate(parts) for whose, parts in by.items()}
            for name, by in self._parts.items()
        }


def _arrays(model: Any, data: Any, samples: int | None) -> list[np.ndarray]:
    """The model's flattened inputs, samples first."""
    parts: list[list[np.ndarray]] = []
    count = 0
    try:
        batches, _ = batches_of(model, data, 64, samples=samples)
        for batch in batches:
            parts.append([np.asarray(t) for t in tf.nest.flatten(batch)])
            count += len(parts[-1][0])
            if samples is not None and count >= samples:
                break
    except CalibrationError as error:
        raise VerificationError(str(error)) from error
    if not parts:
        raise VerificationError("There is nothing to compare. Received: no samples.")
    return [np.concatenate(arrays)[:samples] for arrays in zip(*parts, strict=True)]
