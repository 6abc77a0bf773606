"""Scores and sizes of the trained model, the quantization-aware one, the twin and the file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.checking.fold import fold
from rewriter.checking.verify import Evidence
from rewriter.program import Program
from rewriter.report import tensors
from rewriter.workflow import tasks
from rewriter.workflow.quantize import Quantized

FLOAT, QAT, TWIN, FILE = "float model", "quantized model", "twin", "file"
_ELEMENTS = 200_000_000  # of all tensors and samples: what the twin computes in some seconds


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One of the four.

    Attributes:
      name: which.
      score: of the task, the larger the better; None where it is not known.
      shown: the score as text; why there is none where it is None.
      bytes: what its weights take, or the file; None where that is not known.
      samples: how many the score is of.
    """

    name: str
    score: float | None
    shown: str
    bytes: int | None
    samples: int | None


def of_quantized(result: Quantized, evidence: Evidence) -> tuple[SummaryRow, ...]:
    """The rows of what :func:`rewriter.quantize` has done; the twin is scored here."""
    sizes = _sizes(evidence) | {FLOAT: result.float_bytes}
    tested = result.tested
    if tested is None:
        none = "no labels were given"
        return tuple(SummaryRow(n, None, none, sizes[n], None) for n in (FLOAT, QAT, TWIN, FILE))
    scores: dict[str, tuple[float, int]] = {
        name: (score, len(tested.labels)) for name, score in result.scores.items()
    }
    few = max(1, _ELEMENTS // max(tensors.elements(evidence.lowered.program), 1))
    count = min(len(tested.labels), few)
    (verified,) = evidence.classes.values() if len(evidence.classes) == 1 else ({},)
    # Verification has run the twin on the first of the samples that the models were scored on.
    right = tested.task.classes is not None and tested.task.unit == tasks.ACCURACY
    if right and TWIN in verified and len(verified[TWIN]) >= count:
        said = verified[TWIN]
        labels = np.asarray(tested.labels).reshape(-1)[: len(said)]
        scores[TWIN] = float(np.mean(said == labels)), len(said)
    else:
        inputs = [array[:count] for array in tested.inputs]
        outputs = fold(evidence.model).predict(inputs[0] if len(inputs) == 1 else inputs, verbose=0)
        first = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        scores[TWIN] = tested.task.score(np.asarray(first), tested.labels[:count]), count
    return tuple(
        SummaryRow(name, score, tested.task.shown(score), sizes[name], samples)
        for name in (FLOAT, QAT, TWIN, FILE)
        for score, samples in [scores[name]]
    )


def of_verified(
    evidence: Evidence, accuracy: Mapping[str, float], samples: int | None
) -> tuple[SummaryRow, ...]:
    """The rows of a verification.

    Args:
      evidence: of it.
      accuracy: by ``"trained model"``, ``"twin"`` and ``"file"``; empty without labels.
      samples: how many it is of.
    """
    sizes = _sizes(evidence)
    rows = [SummaryRow(FLOAT, None, "verify does not see it; quantize does", None, None)]
    for name, whose in ((QAT, "trained model"), (TWIN, TWIN), (FILE, FILE)):
        share = accuracy.get(whose)
        shown = "no labels were given" if share is None else f"{100 * share:.2f} %"
        rows.append(SummaryRow(name, share, shown, sizes[name], samples if accuracy else None))
    return tuple(rows)


def _sizes(evidence: Evidence) -> dict[str, int]:
    model: Any = evidence.model
    return {
        QAT: sum(array.nbytes for array in model.get_weights()),
        TWIN: _constants(evidence.lowered.program),
        FILE: len(evidence.content),
    }


def _constants(program: Program) -> int:
    """What the kernels (in their stored widths), scales and biases of a program take."""
    total = 0
    for step in program.steps:
        operator = step.operator
        if operator.kernel is not None:
            total += -(-operator.kernel.size * (operator.kernel_storage_bits or 8) // 8)
        for array in (operator.kernel_scale, operator.bias):
            total += 0 if array is None else np.asarray(array).nbytes
    return total
