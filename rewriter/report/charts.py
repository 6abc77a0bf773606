"""The charts, as SVG with text as text. No name of a model's is in them: those are in the page."""

from __future__ import annotations

import io
import math
import re
import statistics
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from rewriter.checking.training_agreement import LOW_SNR_DB
from rewriter.report.report import Report

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_WIDTH = 4.6  # inches: what a telephone shows without making it much smaller
_BLUE, _ORANGE, _GREY = "#2c5f8a", "#c8552b", "#777777"
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}


def summary(report: Report) -> str:
    """Scores and sizes of the four, side by side."""
    scored = [row for row in report.summary if row.score is not None]
    sized = [row for row in report.summary if row.bytes is not None]
    figure = _figure(1.9)
    axes = _axes(figure, 1, 2 if scored else 1)
    if scored:
        axis = axes.pop(0)
        factor, unit = report.unit
        values = [factor * (row.score or 0.0) for row in scored]
        axis.set_title(unit, loc="left", fontsize=9)
        _bars(axis, [row.name for row in scored], values, [f"{v:.4g}" for v in values])
    axis = axes.pop(0)
    axis.set_title("size in KiB", loc="left", fontsize=9)
    values = [(row.bytes or 0) / 1024 for row in sized]
    _bars(axis, [row.name for row in sized], values, [number(v) for v in values])
    return _svg(figure, "summary")


def epochs(report: Report) -> str:
    """The file's score and the loss by epoch, with what was done when."""
    rows = report.epochs
    losses = [(row.number, row.loss) for row in rows if row.loss is not None]
    figure = _figure(2.8 if losses else 1.9)
    axes = _axes(figure, 2 if losses else 1, 1, sharex=True)
    scale, unit = report.tuned_unit
    axes[0].plot([r.number for r in rows], [scale * r.score for r in rows], "o-", color=_BLUE, ms=3)
    best = report.best_epoch
    if best is not None:
        axes[0].plot([best.number], [scale * best.score], "*", color=_ORANGE, ms=10)
        # Beside the star: a legend inside of the axes would have a second one.
        axes[0].annotate(
            "taken",
            (best.number, scale * best.score),
            xytext=(-7, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color=_ORANGE,
        )
    axes[0].set_ylabel(unit)
    if losses:
        axes[1].plot(*zip(*losses, strict=True), "o-", color=_GREY, ms=3)
        axes[1].set_ylabel("loss")
    for axis in axes:
        if rows[0].number == 0:
            axis.axvspan(-0.5, 0.5, color="#eeeeee", lw=0)
        axis.set_xlim(rows[0].number - 0.5, rows[-1].number + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    top = axes[0].get_xaxis_transform()
    if rows[0].number == 0:
        axes[0].text(0, 1.02, "calibrated", transform=top, ha="center", fontsize=8)
    if rows[-1].number > 0:
        middle = (max(rows[0].number, 1) + rows[-1].number) / 2
        axes[0].text(middle, 1.02, "fine-tuning", transform=top, ha="center", fontsize=8)
    axes[-1].set_xlabel("epoch")
    return _svg(figure, "epochs")


def snr(report: Report) -> str:
    """Signal to noise of all tensors in the order of execution."""
    found = [(i, n.snr_db) for i, n in enumerate(report.nodes) if n.snr_db is not None]
    figure = _figure(2.0)
    (axis,) = _axes(figure, 1, 1)
    finite = [(i, v) for i, v in found if math.isfinite(v)]
    if finite:
        axis.plot(*zip(*finite, strict=True), "o-", color=_BLUE, ms=2.5, lw=0.8)
    axis.axhline(LOW_SNR_DB, color=_ORANGE, lw=0.8, ls="--")
    axis.set_ylim(bottom=min([0.0, *(value for _, value in finite)]))
    axis.set_xlabel("operator, in the order of execution")
    axis.set_ylabel("signal to noise in dB")
    return _svg(figure, "snr")


def scales(report: Report) -> str:
    """The scales of all kernels: the smallest, the median and the largest of each."""
    rows = report.kernels_of_layers
    figure = _figure(2.0)
    (axis,) = _axes(figure, 1, 1)
    ends = [min(r.scales) for r in rows], [max(r.scales) for r in rows]
    axis.vlines(range(len(rows)), *ends, color=_BLUE, lw=2.0)
    axis.plot([statistics.median(row.scales) for row in rows], "_", color=_ORANGE, ms=6)
    axis.set_yscale("log")
    if max(ends[1]) < 100 * min(ends[0]):  # too few powers of ten to read it by
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    # Plain text: matplotlib's powers of ten are formulas, which take seconds to set.
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("kernel, in the order of execution")
    axis.set_ylabel("scale")
    return _svg(figure, "scales")


def operators(report: Report) -> str:
    """Microseconds and bytes by kind of operator."""
    kinds = report.operators.kinds
    timed = all(kind.microseconds is not None for kind in kinds)
    figure = _figure(0.8 + 0.2 * len(kinds))
    axes = _axes(figure, 1, 2 if timed else 1, sharey=True)
    names = [kind.kind for kind in kinds]
    if timed:
        axis = axes.pop(0)
        axis.set_title("microseconds", loc="left", fontsize=9)
        values = [kind.microseconds or 0.0 for kind in kinds]
        _bars(axis, names, values, [number(v, 3) for v in values])
    axis = axes.pop(0)
    axis.set_title("KiB of constants", loc="left", fontsize=9)
    values = [kind.bytes / 1024 for kind in kinds]
    _bars(axis, names, values, [number(v, 3) for v in values])
    return _svg(figure, "operators")


def number(value: float, digits: int = 4) -> str:
    """So many digits at least; a whole number of more is not written with a power of ten."""
    return f"{value:,.0f}" if 10**digits <= abs(value) < 1e12 else f"{value:,.{digits}g}"


def _figure(height: float) -> Figure:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
    return figure


def _axes(figure: Figure, rows: int, columns: int, **shared: Any) -> list[Any]:
    with matplotlib.rc_context(_STYLE):
        return list(figure.subplots(rows, columns, squeeze=False, **shared).reshape(-1))


def _bars(axis: Any, names: list[str], values: list[float], texts: list[str]) -> None:
    places = range(len(names))
    axis.barh(places, values, color=_BLUE, height=0.6)
    axis.set_yticks(places, names, fontsize=8)
    if not axis.yaxis_inverted():  # axes that share it are turned once
        axis.invert_yaxis()
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    for place, value, text in zip(places, values, texts, strict=True):
        axis.annotate(
            text, (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )
    axis.margins(x=0.35)


def _svg(figure: Figure, name: str) -> str:
    """A figure as an element for a page: ids that nothing refers to are left out."""
    stream = io.StringIO()
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=empty, transparent=True)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    text = stream.getvalue()
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    kept = {each for pair in used for each in pair if each}
    root = ElementTree.fromstring(text[text.index("<svg") :])
    for element in root.iter():
        if element.get("id") not in kept:
            element.attrib.pop("id", None)
    return ElementTree.tostring(root, encoding="unicode")
