"""Rows of dilated convolutions as TensorFlow 1 wrote them: through the batch.

The places that a dilated kernel sees are sorted into samples of their own (``SpaceToBatchND``), a
plain convolution runs on those, and ``BatchToSpaceND`` puts its results back.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rewriter.lifting.builder import Builder
from rewriter.lifting.graph import Node, Out
from rewriter.lifting.values import Symbol, Value, listed

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")


def apart(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``SpaceToBatchND``: where a convolution and the way back follow, a padding is left."""
    found = _around(b, number, node)
    value = b.value(node.inputs[0])
    if found is None or not isinstance(value, Symbol) or value.rows:
        return None
    convolution, back, block, pads = found
    extent = b.evaluator.known(b.graph.nodes[convolution].inputs[1]).array.shape[:2]
    whole = [(size - 1) * rate for size, rate in zip(extent, block, strict=True)]
    same = [[total // 2, total - total // 2] for total in whole]
    b.dilated[convolution] = (block, "same" if pads == same else "valid")
    b.back.add(back)
    x: Any = value.tensor
    if pads != same and np.any(pads):
        x = b.apply(node, b.layers.ZeroPadding2D, x, padding=tuple(map(tuple, pads)))
    return [Symbol(x)]


def together(b: Builder, number: int, node: Node) -> list[Value] | None:
    """``BatchToSpaceND``, which the convolution before it has no need of."""
    return [b.value(node.inputs[0])] if number in b.back else None


def _around(
    b: Builder, number: int, node: Node
) -> tuple[int, int, tuple[int, int], list[list[int]]] | None:
    """The convolution, the way back, the dilation, and the padding that both leave."""
    reader = b.only_reader(Out(number))
    if reader is None or reader[1].op not in _CONVOLUTIONS or reader[1].inputs[0] != Out(number):
        return None
    plain = [1] * 4
    conv = reader[1]
    if conv.attribute("padding") != "VALID" or conv.attribute("strides") != plain:
        return None
    if conv.attribute("dilations", plain) != plain or b.known(conv.inputs[1]) is None:
        return None
    after = b.only_reader(Out(reader[0]))
    if after is not None and after[1].op in ("BiasAdd", "AddV2", "Add"):
        others = [out for out in after[1].inputs if out != Out(reader[0])]
        if len(others) != 1 or b.known(others[0]) is None:
            return None
        after = b.only_reader(Out(after[0]))
    if after is None or after[1].op != "BatchToSpaceND":
        return None
    blocks = [listed(b.value(n.inputs[1])) for n in (node, after[1])]
    pads, crops = b.known(node.inputs[2]), b.known(after[1].inputs[2])
    if blocks[0] is None or len(blocks[0]) != 2 or blocks[0] != blocks[1] or None in blocks[0]:
        return None
    if pads is None or crops is None or crops.array[:, 0].any():
        return None
    left = (pads.array - crops.array).tolist()
    if np.min(left) < 0:
        return None
    height, width = (int(size or 1) for size in blocks[0])
    return reader[0], after[0], (height, width), left
