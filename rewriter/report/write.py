"""Writing a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rewriter.checking.verify import Verification
from rewriter.errors import RewriterError
from rewriter.files import outputs
from rewriter.files.replacing import write_bytes
from rewriter.report import extras
from rewriter.report.report import Report, make
from rewriter.workflow.quantize import Quantized


def write_report(
    result: Quantized | Verification,
    path: str | Path,
    *,
    labels: Any = None,
    measure_times: bool = True,
) -> Report:
    """Write one HTML file that shows what quantizing has done; it loads nothing from elsewhere.

    The model is run once more, without quantization, on some of the samples of the verification,
    for the histograms; each operator of the file is timed. So write the report before the model is
    trained any further. Needs the extra: ``pip install 'rewriter[report]'``.

    Args:
      result: what :func:`rewriter.quantize` or :func:`rewriter.verify` returned.
      path: where to write, with the suffix ``.html``; an older report there is replaced.
      labels: for a verification: the classes of its samples, int (N,).
      measure_times: time the operators, on this computer.

    Returns:
      The numbers that the file shows.

    Raises:
      RewriterError: the extra is not installed, ``path`` holds something else, or ``labels`` do
        not fit.
      OSError: the file cannot be written.
    """
    check(path)
    report = make(result, labels, measure_times)
    from rewriter.report import page  # it imports what the extra installs

    write_bytes(path, page.html(report).encode())
    return report


def check(path: str | Path) -> None:
    """Check, before the work, that a report can be written.

    Raises:
      RewriterError: the extra is not installed, or ``path`` holds something else.
    """
    extras.require()
    refusal = outputs.refusal(path, (".html",), "A report")
    if refusal is not None:
        raise RewriterError(refusal)
