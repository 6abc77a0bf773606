"""The row of ``einsum`` with a kernel of weights: a Dense or EinsumDense layer, or a convolution.

The layers that a normalization folds into sum over the last axes of their input, and have their
channels last. An equation may say any other order: its tensor is transposed before and after, and
the kernel has the order of the layer. What the kernel has for each place of an axis of the tensor,
as a matrix for every head, is a convolution of one pixel in as many groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.lifting.builder import Builder
from rewriter.lifting.graph import Node, Out
from rewriter.lifting.linear import dense
from rewriter.lifting.values import Known, Symbol, Value

_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class _Axes:
    """The letters of an equation, by what becomes of them.

    Attributes:
      tensor, kernel, output: as they stand there.
      kept: of the tensor only, the batch first; as the output has them.
      groups: of tensor, kernel and output.
      summed: of tensor and kernel.
      added: of kernel and output.
    """

    tensor: str
    kernel: str
    output: str
    kept: str
    groups: str
    summed: str
    added: str


def einsum(b: Builder, number: int, node: Node) -> list[Value] | None:
    """A tensor and a kernel of weights, in any order."""
    symbolic = [place for place, out in enumerate(node.inputs) if b.domains.symbolic(out)]
    if len(node.inputs) != 2 or len(symbolic) != 1:
        return None
    (place,) = symbolic
    value, kernel = b.value(node.inputs[place]), b.known(node.inputs[1 - place])
    if not isinstance(value, Symbol) or value.rows or kernel is None:
        return None
    x = value.tensor
    axes = _axes(node.attribute("equation"), place, len(x.shape), kernel.array.ndim)
    if axes is None:
        return None
    sizes = {**dict(zip(axes.kernel, kernel.array.shape, strict=True))}
    sizes |= dict(zip(axes.tensor, x.shape, strict=True))
    order = axes.summed + axes.groups + axes.added
    perm = [axes.kernel.index(letter) for letter in order]
    turned = kernel.turned(perm)
    inner = axes.kept + axes.groups + axes.summed
    x = _moved(b, x, axes.tensor, inner)
    if axes.groups:
        made = _grouped(b, node, x, turned, axes, sizes)
        return None if made is None else [Symbol(made)]
    plain = axes.kept + axes.added == axes.output
    if len(axes.summed) == len(axes.added) == 1 and plain:
        if turned.view:
            turned = _computed(b, node.inputs[1 - place], kernel).turned(perm)
        return dense(b, number, node, x, turned)
    options: dict[str, Any] = {
        "equation": f"{inner},{order}->{axes.kept}{axes.added}",
        "output_shape": tuple(sizes[letter] for letter in axes.kept[1:] + axes.added),
    }
    y = b.apply(node, b.layers.EinsumDense, x, {"kernel": turned}, **options)
    return [Symbol(_moved(b, y, axes.kept + axes.added, axes.output))]


def _axes(equation: str, place: int, rank: int, kernel_rank: int) -> _Axes | None:
    """The axes of an equation; None if it is no product with a kernel, of each sample by itself."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    parts = left.split(",")
    if not arrow or len(parts) != 2:
        return None
    if "..." in equation:
        free = [letter for letter in _SPARE if letter not in equation]
        missing = rank - len(parts[place].replace("...", ""))
        if "..." in parts[1 - place] or not 0 <= missing <= len(free):
            return None
        dots = "".join(free[:missing])
        parts[place], output = (part.replace("...", dots) for part in (parts[place], output))
    tensor, kernel = parts[place], parts[1 - place]
    if any(len(set(part)) < len(part) for part in (tensor, kernel, output)):
        return None
    if len(tensor) != rank or len(kernel) != kernel_rank:
        return None
    kept = "".join(letter for letter in output if letter not in kernel)
    groups = "".join(letter for letter in output if letter in kernel and letter in tensor)
    added = "".join(letter for letter in output if letter not in tensor)
    summed = "".join(letter for letter in tensor if letter in kernel and letter not in output)
    batch = tensor[:1] == output[:1] and tensor[:1] not in kernel
    whole = {*tensor} == {*kept, *groups, *summed} and {*kernel} == {*groups, *summed, *added}
    if not (batch and whole and summed and (added or groups)):
        return None
    return _Axes(tensor, kernel, output, kept, groups, summed, added)


def _computed(b: Builder, out: Out, kernel: Known) -> Known:
    """A variable whose axes lie otherwise, as what is computed of it: other layers may hold it."""
    shown = kernel.variable
    floats = shown is not None and shown.dtype == tf.float32 and kernel.array.dtype == np.float32
    held = b.trains and floats and out.node in b.dependence.own
    return Known(kernel.array, computed=out) if held else kernel


def _moved(b: Builder, x: Any, before: str, after: str) -> Any:
    if before == after:
        return x
    return b.flavour.function("transpose")(x, [before.index(letter) for letter in after])


def _grouped(
    b: Builder,
    node: Node,
    x: Any,
    kernel: Known,
    axes: _Axes,
    sizes: Mapping[str, int | None],
) -> Any:
    """By a convolution of one pixel; None where a size is not known."""
    own = [sizes[letter] for letter in axes.kept[1:] + axes.groups + axes.summed + axes.added]
    if None in own:
        return None
    kept, groups, summed, added = (
        [int(sizes[letter] or 0) for letter in part]
        for part in (axes.kept[1:], axes.groups, axes.summed, axes.added)
    )
    reshape = b.flavour.function("reshape")
    count = math.prod(groups)
    x = reshape(x, (-1, math.prod(kept), 1, count * math.prod(summed)))
    shape = (1, 1, math.prod(summed), count * math.prod(added))
    flat = Known(kernel.array.reshape(shape), kernel.variable, kernel.view)
    options: dict[str, Any] = {"filters": shape[-1], "kernel_size": 1, "groups": count}
    y = b.apply(node, b.layers.Conv2D, x, {"kernel": flat}, use_bias=False, **options)
    y = reshape(y, (-1, *_shape(kept, groups, added)))
    return _moved(b, y, axes.kept + axes.groups + axes.added, axes.output)


def _shape(*parts: Sequence[int]) -> list[int]:
    return [size for part in parts for size in part]
