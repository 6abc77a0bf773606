"""What a user may require of a verification on the command line."""

from __future__ import annotations

from rewriter.checking.comparison import Comparison
from rewriter.checking.training_agreement import TrainingComparison
from rewriter.errors import VerificationError


def snr(training: TrainingComparison, bound: float) -> None:
    """Raise VerificationError unless outputs are that many dB apart, and nothing is left out."""
    fault, weakest = training.fault, training.weakest
    if fault is None and training.skipped:
        name, reason = next(iter(training.skipped.items()))
        fault = f"not computed: {name}: {reason}"
    if fault is None and weakest is None:
        fault = "no output of the trained model could be compared"
    if fault is None and weakest is not None and weakest.snr_db < bound:
        fault = (
            f"the tensor {weakest.name!r} of layer {weakest.layer!r} is at "
            f"{weakest.snr_db:.1f} dB of the trained model's"
        )
    if fault is not None:
        raise VerificationError(f"--min-snr {bound:g} is not met: {fault}.")


def identical(comparison: Comparison, share: float) -> None:
    """Raise VerificationError unless that share of every tensor is the same."""
    # Where a tensor could not be computed, the file's own values stand in: identical to themselves.
    faults = [f"not computed: {n}: {reason}" for n, reason in comparison.skipped.items()]
    faults += comparison.differences
    worst = comparison.worst
    if worst is not None and worst.identical < share:
        faults.append(
            f"only {worst.identical:.6f} of the elements of the tensor {worst.name!r} are identical"
        )
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise VerificationError(f"--min-identical {share} is not met: {faults[0]}{more}.")
