"""Where the nodes of a graph stand: in layers, from the top down.

The method of Sugiyama, Tagawa and Toda (1981): each node stands in the layer after the last of
those it reads; edges over several layers get a point in each of them; the order within a layer is
that of the means of the neighbours' places, a few times down and up.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence

_SWEEPS = 8  # down and up


@dataclasses.dataclass(frozen=True)
class Layout:
    """Places in units of a cell.

    Attributes:
      nodes: column and layer of each node; columns are real numbers.
      edges: the points of each edge, from its start to its end.
      columns, layers: how many cells there are in width and height.
    """

    nodes: dict[str, tuple[float, int]]
    edges: dict[tuple[str, str], tuple[tuple[float, int], ...]]
    columns: float
    layers: int


def layered(reads: Mapping[str, Sequence[str]]) -> Layout:
    """The layout of a graph without circles.

    Args:
      reads: for each node, in an order in which each follows those it reads, what it reads.
    """
    layer: dict[str, int] = {}
    for name, sources in reads.items():
        layer[name] = 1 + max((layer[source] for source in sources), default=-1)
    edges: dict[tuple[str, str], list[object]] = {}
    above: dict[object, list[object]] = collections.defaultdict(list)
    below: dict[object, list[object]] = collections.defaultdict(list)
    rows: list[list[object]] = [[] for _ in range(1 + max(layer.values(), default=-1))]
    for name in reads:
        rows[layer[name]].append(name)
    for name, sources in reads.items():
        for source in dict.fromkeys(sources):
            bends = [(source, name, at) for at in range(layer[source] + 1, layer[name])]
            for bend in bends:
                rows[bend[2]].append(bend)
            chain: list[object] = [source, *bends, name]
            edges[source, name] = chain
            for upper, lower in itertools.pairwise(chain):
                above[lower].append(upper)
                below[upper].append(lower)
    place = _ordered(rows, above, below)
    left = min(place.values(), default=0.0)
    place = {node: x - left for node, x in place.items()}
    return Layout(
        {name: (place[name], layer[name]) for name in reads},
        {
            ends: tuple((place[node], _layer_of(node, layer)) for node in chain)
            for ends, chain in edges.items()
        },
        1 + max(place.values(), default=0.0),
        len(rows),
    )


def _layer_of(node: object, layer: Mapping[str, int]) -> int:
    return node[2] if isinstance(node, tuple) else layer[str(node)]


def _ordered(
    rows: list[list[object]],
    above: Mapping[object, list[object]],
    below: Mapping[object, list[object]],
) -> dict[object, float]:
    """The columns of all nodes and bends."""
    place: dict[object, float] = {n: float(i) for row in rows for i, n in enumerate(row)}
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for row in rows if down else reversed(rows):
            wanted = {n: _mean([place[o] for o in near.get(n, ())], place[n]) for n in row}
            row.sort(key=wanted.__getitem__)
            _spaced(row, wanted, place)
    return place


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _spaced(row: list[object], wanted: Mapping[object, float], place: dict[object, float]) -> None:
    """Put a row's nodes where they are wanted, at least one column apart, the row's mean kept."""
    last = None
    for node in row:
        width = 1.0 if isinstance(node, str) else 0.35
        x = wanted[node] if last is None else max(wanted[node], last[0] + (last[1] + width) / 2)
        place[node] = x
        last = (x, width)
    shift = _mean([place[n] - wanted[n] for n in row], 0.0)
    for node in row:
        place[node] -= shift
