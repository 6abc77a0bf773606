"""How well a program and its file agree: the figures, and the table of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rewriter.checking.training_agreement import TrainingAgreement, TrainingComparison


@dataclasses.dataclass(frozen=True)
class TensorAgreement:
    """How well one tensor agrees.

    Attributes:
      name: the program's tensor.
      layer: the Keras layer that it comes from.
      elements: how many were compared, over all samples.
      identical, within_one: shares of them, 0 to 1, that are equal or at most one step apart.
      maximum: the largest difference.
      unit: ``"step"``: of the tensor's scale. ``"relative"``: of the largest magnitude, for
        float tensors; there 1e-6 counts as identical and 1e-3 as one step.
    """

    name: str
    layer: str
    elements: int
    identical: float
    within_one: float
    maximum: float
    unit: str = "step"


# Sums of float32 in another order are so far apart, in shares of the largest: some 80 roundings,
# where one of n terms has about the root of n. More is another computation.
_ORDER = 1e-5


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What :func:`rewriter.checking.compare.compare_program` found.

    Attributes:
      samples: how many were run.
      kernels: which kernels of LiteRT ran the file.
      end_to_end, operator_by_operator: per tensor, in the order of execution.
      top1: share of positions where the largest element of an output is at the same index, end
        to end, by output name; only outputs whose last axis is longer than 1.
      differences: constants, scales and zero points that are not the program's.
      skipped: tensors that could not be computed, with the reason; the file's own values took
        their place further on.
      missing: program tensors that the file does not hold.
    """

    samples: int
    kernels: str
    end_to_end: tuple[TensorAgreement, ...]
    operator_by_operator: tuple[TensorAgreement, ...]
    top1: dict[str, float]
    differences: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]

    @property
    def worst(self) -> TensorAgreement | None:
        """The tensor with the smallest identical share, operator by operator."""
        return min(self.operator_by_operator, key=lambda a: a.identical, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return table(self)


def table(comparison: Comparison, training: TrainingComparison | None = None) -> str:
    """All figures, a line for each tensor, and what there is to say beside them."""
    trained = {tensor.name: tensor for tensor in training.tensors} if training else {}
    by_operator = {a.name: a for a in comparison.operator_by_operator}
    end_to_end = {a.name: a for a in comparison.end_to_end}
    # The model's inputs come first; the file's are not computed.
    names = list(dict.fromkeys([*(n for n in trained if n not in by_operator), *by_operator]))
    width = max([6, *(len(name) for name in names)])
    heads = [f"{'file, operator by operator':>25}", f"{'file, end to end':>25}"]
    columns = [f"{'identical':>9} {'+-1':>7} {'max':>7}"] * 2
    if trained:
        heads.append(f"{'trained model':>17}")
        columns.append(f"{'SNR':>9} {'max':>7}")
    lines = [
        f"{comparison.samples} samples, {comparison.kernels} kernels; shares in %, "
        "differences in steps of the tensor's scale" + (", SNR in dB" if trained else ""),
        f"{'':{width}}  " + "  ".join(heads),
        f"{'tensor':{width}}  " + "  ".join(columns),
    ]
    for name in names:
        cells = [_shares(by_operator.get(name)), _shares(end_to_end.get(name))]
        notes = []
        if trained:
            cells.append(_decibels(trained.get(name)))
            notes += ["parts from the trained model"] * (name in trained and trained[name].parts)
        one = by_operator.get(name)
        notes += ["float: relative"] * (one is not None and one.unit == "relative")
        notes += ["not computed"] * (name in comparison.skipped)
        note = f" ({'; '.join(notes)})" if notes else ""
        lines.append(f"{name:{width}}  {'  '.join(cells)}{note}".rstrip())
    lines += [f"top-1 agreement of {n}: {100 * s:.2f} %" for n, s in comparison.top1.items()]
    lines += [f"different in the file: {text}" for text in comparison.differences]
    lines += [f"not computed: {n}: {reason}" for n, reason in comparison.skipped.items()]
    lines += _floats(comparison)
    if comparison.missing:
        lines.append(f"not in the file: {', '.join(comparison.missing)}")
    return "\n".join(lines + (_in_words(training) if training else []))


def _floats(comparison: Comparison) -> list[str]:
    """What to say of float tensors that are not equal, operator by operator."""
    found = [a for a in comparison.operator_by_operator if a.unit == "relative" and a.identical < 1]
    if not found:
        return []
    worst = max(found, key=lambda a: a.maximum)
    start = f"in float: {worst.name} is {worst.maximum:.1e} of its largest value apart"
    if worst.maximum <= _ORDER:
        return [f"{start}, as sums of float32 in another order are"]
    return [
        f"WARNING: {start}, more than the {_ORDER:.0e} of sums of float32 in another order: the "
        f"file computes the layer {worst.layer!r} in another way"
    ]


def _shares(agreement: TensorAgreement | None) -> str:
    if agreement is None:
        return " " * 25
    a = agreement
    return f"{100 * a.identical:9.3f} {100 * a.within_one:7.2f} {a.maximum:7.3g}"


def _decibels(agreement: TrainingAgreement | None) -> str:
    if agreement is None:
        return " " * 17
    return f"{_ratio(agreement.snr_db):>9} {agreement.max_steps:7.3g}"


def _ratio(decibels: float) -> str:
    return f"{decibels:.1f}" if math.isfinite(decibels) else "equal"


def _in_words(training: TrainingComparison) -> list[str]:
    weakest = training.weakest
    found = [] if weakest is None else [
        f"trained model against the twin: {_ratio(weakest.snr_db)}"
        f"{' dB' if math.isfinite(weakest.snr_db) else ''} at {weakest.name}"
    ]  # fmt: skip
    found += [f"WARNING: {text}" for text in (training.fault, training.weakness) if text]
    skipped = training.skipped.items()
    return found + [f"not compared with the trained model: {n}: {why}" for n, why in skipped]
