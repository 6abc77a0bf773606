"""The reports that a command writes beside what it shows."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from rewriter.checking.verify import Verification
from rewriter.report import model_explorer, tensorboard
from rewriter.report import write as writing
from rewriter.workflow.quantize import Quantized


def check(args: Namespace) -> None:
    """Before the work: what would keep a report that was asked for from being written.

    Raises:
      RewriterError: there is such a thing.
    """
    if args.report is not None:
        writing.check(args.report)
    if args.model_explorer is not None:
        model_explorer.check(args.model_explorer)
    if args.tensorboard is not None:
        tensorboard.check(args.tensorboard)


def write(args: Namespace, result: Quantized | Verification, labels: Any = None) -> dict[str, Any]:
    """Write the reports that were asked for.

    Args:
      args: of the command.
      result: what to report on.
      labels: the classes of a verification's samples, if there are any.

    Returns:
      The report's numbers as ``{"report": ...}``; empty without a report.

    Raises:
      RewriterError, OSError: as the reports do.
    """
    values: dict[str, Any] = {}
    if args.report is not None:
        values["report"] = writing.write_report(result, args.report, labels=labels).to_dict()
    if args.model_explorer is not None:
        verification = result.verification if isinstance(result, Quantized) else result
        model_explorer.write_model_explorer(verification, args.model_explorer)
    if args.tensorboard is not None:
        tensorboard.write_tensorboard(result, args.tensorboard)
    return values


def shown(args: Namespace) -> str:
    """Lines that say what was written."""
    written = [
        ("report", args.report),
        ("overlay for Model Explorer", args.model_explorer),
        ("summaries for TensorBoard", args.tensorboard),
    ]
    return "".join(f"\n{what}: {path}" for what, path in written if path is not None)
