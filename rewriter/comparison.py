"""How well a program and its file agree: the figures, and the table of them."""

from __future__ import annotations

import dataclasses
from typing import Any


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


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What :func:`rewriter.compare.compare_program` found.

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
        return _table(self)


def _table(comparison: Comparison) -> str:
    width = max([6, *(len(a.name) for a in comparison.operator_by_operator)])
    lines = [
        f"{comparison.samples} samples, {comparison.kernels} kernels; shares in %, "
        "differences in steps of the tensor's scale",
        f"{'':{width}}  {'operator by operator':>25}  {'end to end':>25}",
        f"{'tensor':{width}}  {'identical':>9} {'+-1':>7} {'max':>7}"
        f"  {'identical':>9} {'+-1':>7} {'max':>7}",
    ]
    pairs = zip(comparison.operator_by_operator, comparison.end_to_end, strict=True)
    for one, whole in pairs:
        cells = [
            f"{100 * a.identical:9.3f} {100 * a.within_one:7.2f} {a.maximum:7.3g}"
            for a in (one, whole)
        ]
        note = " (float: relative)" if one.unit == "relative" else ""
        note += " (not computed)" if one.name in comparison.skipped else ""
        lines.append(f"{one.name:{width}}  {cells[0]}  {cells[1]}{note}")
    lines += [f"top-1 agreement of {n}: {100 * s:.2f} %" for n, s in comparison.top1.items()]
    lines += [f"different in the file: {text}" for text in comparison.differences]
    lines += [f"not computed: {n}: {reason}" for n, reason in comparison.skipped.items()]
    if comparison.missing:
        lines.append(f"not in the file: {', '.join(comparison.missing)}")
    return "\n".join(lines)
