"""What the page draws itself: the graph and the small histograms, as numbers for SVG."""

from __future__ import annotations

import dataclasses
import itertools
import math

from rewriter.report import graph
from rewriter.report.tensors import BINS, Values

_CELL, _ROW, _GUTTER = 176, 48, 34  # pixels: width and height of a cell, between two bands
_BOX = (164, 34)
_BAND = 24  # layers that stand one below the other
BAR, HEIGHT = 4, 34  # of a small histogram: the width of a bin, the height of the largest


@dataclasses.dataclass(frozen=True)
class Box:
    """A node in its place: its upper left corner, its colours, and what it is."""

    x: float
    y: float
    fill: str
    text: str
    node: graph.Node


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A graph in pixels: its size, the nodes, and the paths of the edges."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    paths: tuple[str, ...]
    box: tuple[int, int] = _BOX


def network(nodes: tuple[graph.Node, ...]) -> Drawing:
    """The graph from the top down, in several bands from left to right if it is long."""
    layout = graph.laid_out(nodes)
    bands = max(1, math.ceil(layout.layers / _BAND))
    rows = math.ceil(layout.layers / bands)
    band_width = layout.columns * _CELL + _GUTTER

    def corner(column: float, layer: int) -> tuple[float, float]:
        band, row = divmod(layer, rows)
        return band * band_width + column * _CELL + 6, row * _ROW + 16

    boxes = []
    for node in nodes:
        x, y = corner(*layout.nodes[node.name])
        fill, text = graph.colour(node.snr_db)
        boxes.append(Box(round(x, 1), y, fill, text, node))
    paths, crossing = [], 0
    for points in layout.edges.values():
        parts: list[str] = []
        for upper, lower in itertools.pairwise(points):
            x, y = corner(*upper)
            to_x, to_y = corner(*lower)
            x, to_x = x + _BOX[0] / 2, to_x + _BOX[0] / 2
            y += _BOX[1]
            if not parts:
                parts.append(f"M{x:.1f} {y:.1f}")
            if lower[1] // rows == upper[1] // rows:
                half = (y + to_y) / 2
                parts.append(f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}")
            else:  # around, through the gutter between the bands
                band = lower[1] // rows
                side = band * band_width - _GUTTER + 12 + 4 * (crossing % 5)
                low, high = rows * _ROW + 6 + 2 * (crossing % 4), 2 + 2 * (crossing % 5)
                crossing += 1
                parts.append(f"V{low} H{side:.1f} V{high} H{to_x:.1f} V{to_y:.1f}")
            if lower != points[-1]:  # a bend: straight through the height of its layer
                parts.append(f"V{to_y + _BOX[1]:.1f}")
        paths.append("".join(parts))
    width = round(bands * band_width - _GUTTER + 12)
    return Drawing(width, rows * _ROW + 20, tuple(boxes), tuple(paths))


@dataclasses.dataclass(frozen=True)
class Bars:
    """A small histogram in pixels.

    Attributes:
      inside, outside: the bars within the range and those that are clipped, as paths.
      left, right: where the range of the integers begins and ends; None in float.
    """

    inside: str
    outside: str
    left: float | None
    right: float | None


def bars(values: Values, low: float | None, high: float | None) -> Bars:
    """A histogram with heights by the logarithm, and the range of the integers in it."""
    top = math.log1p(max(values.counts))
    width = (values.last - values.first) / BINS
    paths: dict[bool, list[str]] = {True: [], False: []}
    for i, count in enumerate(values.counts):
        if not count:
            continue
        height = max(1.0, HEIGHT * math.log1p(count) / top)
        begin, end = values.first + i * width, values.first + (i + 1) * width
        within = low is None or high is None or (end > low and begin < high)
        paths[within].append(f"M{BAR * i} {HEIGHT}v-{height:.1f}h{BAR}v{height:.1f}z")
    scale = BAR * BINS / (values.last - values.first)
    left, right = (
        None if end is None else round(scale * (end - values.first), 1) for end in (low, high)
    )
    return Bars("".join(paths[True]), "".join(paths[False]), left, right)
