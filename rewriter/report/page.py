"""The page: a template filled with a report. What comes from a model is escaped by Jinja2."""

from __future__ import annotations

import math

import jinja2
from markupsafe import Markup

from rewriter.report import charts, drawing, graph
from rewriter.report.report import Report

SHOWN = 30  # rows of a long table; the others are folded up
_CLASSES = 30  # up to so many, the confusion matrix is drawn
_LEGEND = (
    *((f"below {bound:g} dB", own, text) for bound, own, text in graph.COLOURS[:-1]),
    (f"{graph.COLOURS[-2][0]:g} dB and more", *graph.COLOURS[-1][1:]),
    ("equal", *graph.EQUAL),
    ("not compared", *graph.UNKNOWN),
)


def html(report: Report) -> str:
    """The whole page as text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rewriter.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, decibels=_decibels, number=_number, bytes=_bytes, short=_short
    )
    drawn = {"summary": charts.summary(report), "snr": charts.snr(report)}
    if report.epochs:
        drawn["epochs"] = charts.epochs(report)
    if report.kernels_of_layers:
        drawn["scales"] = charts.scales(report)
    if report.operators.rows:
        drawn["operators"] = charts.operators(report)
    return environment.get_template("report.html").render(
        report=report,
        # Of matplotlib, which escapes; they hold no text of a model's.
        charts={name: Markup(svg) for name, svg in drawn.items()},
        network=None if "graph" in report.absent else drawing.network(report.nodes),
        bars={
            row.name: drawing.bars(row.values, row.low, row.high)
            for row in report.tensors
            if row.values is not None
        },
        legend=_LEGEND,
        shown=SHOWN,
        matrix=report.confusion is not None and len(report.confusion.counts) <= _CLASSES,
        bar_width=drawing.BAR * drawing.BINS,
        bar_height=drawing.HEIGHT,
    )


def _percent(share: float | None, digits: int = 2) -> str:
    if share is None:
        return ""
    return f"{100 * share:.{digits}f} %"


def _decibels(value: float | None) -> str:
    if value is None:
        return "not compared"
    return "equal" if math.isinf(value) else f"{value:.1f} dB"


def _number(value: float | None) -> str:
    return "" if value is None else charts.number(value)


def _bytes(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _short(text: str, most: int) -> str:
    """At most so many characters; the middle of a longer text is left out."""
    if len(text) <= most:
        return text
    left = (most - 1) // 2
    return f"{text[:left]}…{text[len(text) - (most - 1 - left) :]}"
