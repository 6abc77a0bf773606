"""The layout of graphs: what a reader would call wrong is not there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rewriter.report.layout import layered


def random_graph(seed: int, count: int) -> dict[str, list[str]]:
    """Each node reads one to three of those before it, mostly the last ones."""
    random = np.random.default_rng(seed)
    reads: dict[str, list[str]] = {"0": []}
    for i in range(1, count):
        near = i - 1 - random.geometric(0.4, random.integers(1, 4)) + 1
        reads[str(i)] = [str(max(0, each)) for each in near]
    return reads


@pytest.mark.parametrize("seed", range(8))
def test_nodes_are_apart_and_edges_go_down(seed):
    reads = random_graph(seed, 60)
    found = layered(reads)
    for name, sources in reads.items():
        for source in sources:
            points = found.edges[source, name]
            assert points[0] == found.nodes[source] and points[-1] == found.nodes[name]
            layers = [layer for _, layer in points]
            assert layers == list(range(layers[0], layers[0] + len(layers))) and len(layers) > 1
    for row in range(found.layers):
        columns = sorted(x for x, layer in found.nodes.values() if layer == row)
        assert columns, "an empty layer"
        assert all(b - a >= 0.999 for a, b in itertools.pairwise(columns))
    columns = [x for x, _ in found.nodes.values()]
    assert min(columns) >= 0 and max(columns) <= found.columns - 1


def test_a_chain_is_straight_and_a_branch_is_drawn_beside_it():
    chain = layered({"a": [], "b": ["a"], "c": ["b"]})
    assert chain.nodes == {"a": (0, 0), "b": (0, 1), "c": (0, 2)} and chain.columns == 1
    fork = layered({"a": [], "l": ["a"], "r": ["a"], "end": ["l", "r"]})
    assert abs(fork.nodes["l"][0] - fork.nodes["r"][0]) == 1
    assert fork.nodes["a"][0] == fork.nodes["end"][0] == 0.5


def test_crossings_are_taken_out():
    """Two chains side by side, given crosswise."""
    found = layered({"a": [], "b": [], "d": ["b"], "c": ["a"], "e": ["d"], "f": ["c"]})
    columns = {name: x for name, (x, _) in found.nodes.items()}
    left = columns["a"] < columns["b"]
    assert (columns["c"] < columns["d"]) == (columns["f"] < columns["e"]) == left
