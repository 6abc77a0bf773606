"""All that a report holds, as numbers; and how it is made of the result of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rewriter import export
from rewriter.checking.comparison import TensorAgreement
from rewriter.checking.verify import Evidence, Verification
from rewriter.errors import RewriterError, VerificationError
from rewriter.report import confusion, contract, graph, kernels, operators, summary, tensors
from rewriter.report.confusion import Confusion
from rewriter.report.contract import Contract
from rewriter.report.kernels import KernelRow
from rewriter.report.operators import Operators
from rewriter.report.summary import SummaryRow
from rewriter.report.tensors import TensorRow
from rewriter.rewriting.plan import Plan
from rewriter.workflow import tasks
from rewriter.workflow.quantize import Quantized


@dataclasses.dataclass(frozen=True)
class EpochRow:
    """One epoch of fine-tuning; 0 is the calibrated model, before it.

    Attributes:
      number: of the epoch.
      score: of the exported file after it.
      shown: the score as text.
      loss: of the training in it; None for epoch 0.
    """

    number: int
    score: float
    shown: str
    loss: float | None


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report holds. Sections that there is nothing for are empty, and named in ``absent``.

    Attributes:
      model: the name of the quantization-aware model.
      file: the LiteRT file.
      samples, kernels: of the verification.
      snr_db: of the outputs, see :attr:`rewriter.Verification.snr`.
      task: what the labels are for; None without labels.
      summary: scores and sizes.
      epochs: of fine-tuning.
      tuned_for: the name of what it trained for; None without fine-tuning.
      unit, tuned_unit: how their scores are drawn: a factor, and what an axis says.
      plan: what became of every batch normalization.
      tensors: worst first.
      kernels_of_layers: in the order of execution.
      nodes: of the graph.
      operators: of the file.
      confusion: of the file's classes.
      parting: the tensors of which the file has other elements than the twin, given the same
        inputs; the smallest identical share first.
      findings: sentences about where file, twin and trained model part.
      contract: inputs and outputs.
      absent: for each section that is empty, by its name, why.
    """

    model: str
    file: str
    samples: int
    kernels: str
    snr_db: float | None
    task: str | None
    summary: tuple[SummaryRow, ...]
    epochs: tuple[EpochRow, ...]
    tuned_for: str | None
    plan: Plan | None
    tensors: tuple[TensorRow, ...]
    kernels_of_layers: tuple[KernelRow, ...]
    nodes: tuple[graph.Node, ...]
    operators: Operators
    confusion: Confusion | None
    parting: tuple[TensorAgreement, ...]
    findings: tuple[str, ...]
    contract: Contract
    absent: dict[str, str]
    unit: tuple[float, str] = tasks.ACCURACY
    tuned_unit: tuple[float, str] = tasks.ACCURACY

    @property
    def best_epoch(self) -> EpochRow | None:
        """The epoch that was taken, of those that this run has seen."""
        return max(self.epochs, key=lambda row: row.score, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: infinite ratios are None, and then ``equal`` is true."""
        values: dict[str, Any] = _json(dataclasses.asdict(self))
        for made, node in zip(values["nodes"], self.nodes, strict=True):
            made["equal"] = node.snr_db == math.inf
        for made, tensor in zip(values["tensors"], self.tensors, strict=True):
            made["equal"] = tensor.snr_db == math.inf
            if tensor.values is not None:
                made["values"]["clipped"] = tensor.values.clipped
        for made, kernel in zip(values["kernels_of_layers"], self.kernels_of_layers, strict=True):
            made["spread"] = _json(kernel.spread)
        values["operators"]["kinds"] = [dataclasses.asdict(k) for k in self.operators.kinds]
        if self.confusion is not None:
            values["confusion"]["accuracy"] = self.confusion.accuracy
        return values


def make(result: Quantized | Verification, labels: Any, measure_times: bool) -> Report:
    """The numbers of a report; see :func:`rewriter.write_report`.

    Raises:
      RewriterError: ``labels`` do not fit, or the verification does not say what it compared.
    """
    quantized = result if isinstance(result, Quantized) else None
    verification = result.verification if isinstance(result, Quantized) else result
    evidence = verification.evidence
    if evidence is None:
        raise VerificationError(
            "This Verification does not hold what was compared. Take one that verify returned."
        )
    if quantized is not None and labels is not None:
        raise RewriterError("What quantize returned has its labels. Leave labels out.")
    program = evidence.lowered.program
    training, comparison = verification.training, verification.comparison
    snr = {tensor.name: tensor.snr_db for tensor in training.tensors}
    scored = _scored(quantized, evidence, labels)
    made = Report(
        model=evidence.model.name,
        file=verification.path,
        samples=comparison.samples,
        kernels=comparison.kernels,
        snr_db=verification.snr,
        task=quantized.task if quantized else (None if labels is None else tasks.CLASSES),
        summary=scored[0],
        epochs=() if quantized is None else _epochs(quantized),
        tuned_for=quantized.tuning.task if quantized and quantized.tuning else None,
        plan=None if quantized is None else quantized.plan,
        tensors=tensors.rows(evidence, snr),
        kernels_of_layers=kernels.rows(program),
        nodes=graph.nodes(program, snr),
        operators=operators.of_file(evidence.content, comparison.kernels, measure_times),
        confusion=scored[1],
        parting=tuple(
            sorted(
                (a for a in comparison.operator_by_operator if a.identical < 1),
                key=lambda a: a.identical,
            )
        ),
        findings=_findings(verification),
        contract=contract.of_file(
            evidence.content, export.input_lines(evidence.lowered), verification.path
        ),
        absent={},
        **_units(quantized),
    )
    return dataclasses.replace(made, absent=_absent(made, quantized is not None))


def _units(quantized: Quantized | None) -> dict[str, tuple[float, str]]:
    """How scores are drawn, of the samples tested and of the epochs."""
    found = {}
    if quantized is not None and quantized.tested is not None:
        found["unit"] = quantized.tested.task.unit
    if quantized is not None and quantized.tuning is not None:
        found["tuned_unit"] = quantized.tuning.unit
    return found


def _scored(
    quantized: Quantized | None, evidence: Evidence, labels: Any
) -> tuple[tuple[SummaryRow, ...], Confusion | None]:
    """The summary, and what was mistaken for what."""
    if quantized is not None:
        rows = summary.of_quantized(quantized, evidence)
        tested = quantized.tested
        if tested is None or not tested.classes:
            return rows, None
        said = dict(tested.classes)
        found = _confusion(tested.labels, said.pop("file"), tested.task.count, said)
        return rows, found
    if labels is None:
        return summary.of_verified(evidence, {}, None), None
    labels = np.asarray(labels)
    name = next(iter(evidence.classes), None)
    if name is None or len(evidence.classes) > 1:
        raise RewriterError(
            "labels need a model with one output of shape (N, C). Received: "
            f"{len(evidence.classes)} such outputs. Leave labels out."
        )
    said = dict(evidence.classes[name])
    count = evidence.lowered.program.tensors[name].shape[-1] or 1
    shape = (len(evidence.inputs[0]),)
    fits = labels.shape == shape and labels.dtype.kind in "iu"
    if not fits or labels.min() < 0 or labels.max() >= count:
        raise RewriterError(
            f"labels must be classes from 0 to {count - 1}, integers of shape {shape}. Received: "
            f"shape {labels.shape}, type {labels.dtype}."
        )
    shares = {whose: float(np.mean(values == labels)) for whose, values in said.items()}
    rows = summary.of_verified(evidence, shares, len(labels))
    return rows, _confusion(labels, said.pop("file"), count, said)


def _confusion(
    labels: np.ndarray, said: np.ndarray, count: int, others: dict[str, np.ndarray]
) -> Confusion:
    flat = np.asarray(labels).reshape(-1)
    shares = {name: float(np.mean(values == flat)) for name, values in others.items()}
    return confusion.of(flat, said, count, shares)


def _epochs(quantized: Quantized) -> tuple[EpochRow, ...]:
    tuning = quantized.tuning
    if tuning is None:
        return ()
    pairs = zip(tuning.scores, tuning.losses, strict=True)
    return tuple(
        EpochRow(tuning.first + i, score, tuning.shown(score), loss)
        for i, (score, loss) in enumerate(pairs)
    )


def _findings(verification: Verification) -> tuple[str, ...]:
    comparison, training = verification.comparison, verification.training
    found = [
        f"{text[0].upper()}{text[1:]}." for text in (training.fault, training.weakness) if text
    ]
    found += [f"Different in the file: {text}." for text in comparison.differences]
    found += [f"Not computed by the twin: {n}: {why}." for n, why in comparison.skipped.items()]
    found += [
        f"Not compared with the trained model: {n}: {why}." for n, why in training.skipped.items()
    ]
    if comparison.missing:
        found.append(f"Not in the file: {', '.join(comparison.missing)}.")
    return tuple(found)


_WITHOUT_LABELS = "No labels were given: with labels, {} would stand here."
# For each section that may be empty: whether it is, and why, for quantize and for verify.
_SECTIONS: dict[str, tuple[Callable[[Report], bool], str, str]] = {
    "tuning": (
        lambda r: not r.epochs,
        "The model was calibrated and not fine-tuned (epochs=0).",
        "The model was fine-tuned, if it was, before verify saw it; quantize reports its epochs.",
    ),
    "plan": (
        lambda r: r.plan is None or not r.plan.entries,
        "The model has no BatchNormalization.",
        "The plan is made of the model before it is rewritten, which verify does not see. "
        "rewriter inspect shows it.",
    ),
    "kernels": (lambda r: not r.kernels_of_layers, *2 * ("No operator has a quantized kernel.",)),
    "graph": (
        lambda r: len(r.nodes) > graph.MOST,
        *2 * (f"The network has more than {graph.MOST} operators, which is too many to draw.",),
    ),
    "confusion": (
        lambda r: r.confusion is None,
        "There are no classes: no labels were given, or the task is another one.",
        _WITHOUT_LABELS.format("what the file mistakes for what"),
    ),
    "parting": (
        lambda r: not r.parting and not r.findings,
        *2 * ("Nowhere: every element of every tensor is the same in the file and in its twin.",),
    ),
}


def _absent(report: Report, quantized: bool) -> dict[str, str]:
    return {
        name: of_quantize if quantized else of_verify
        for name, (empty, of_quantize, of_verify) in _SECTIONS.items()
        if empty(report)
    }


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
