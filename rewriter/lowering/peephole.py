"""Cheaper steps with the same integers.

- A reduction and a RESHAPE that only puts its axes back (squeeze-and-excitation) are one
  reduction with ``keepdims``.
- A MUL by one number gives a tensor another scale but, as a rule, the same integers (Rescaling at
  the input). Operators with a kernel can read its input instead: their kernel scales take the
  ratio, ``(r * s_x) * s_w = s_x * (r * s_w)``.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rewriter.litert.integer_elementwise import constant
from rewriter.program import Operator, Quantization, Step, Tensor

_REDUCTIONS = ("MEAN", "REDUCE_MAX")
_MOVES = ("PAD", "PADV2", "RESHAPE", "TRANSPOSE", "STRIDED_SLICE", "MAX_POOL_2D")


def simplify(
    steps: Sequence[Step], tensors: Mapping[str, Tensor], outputs: Sequence[str]
) -> tuple[list[Step], dict[str, Tensor]]:
    """The same program with fewer steps.

    Args:
      steps: in topological order.
      tensors: every tensor by name.
      outputs: the program's output tensors, which stay.
    """
    found = _Peephole(steps, tensors, outputs)
    for step in reversed(steps):  # of two MUL in a row, the second goes first
        if step.operator.kind in _REDUCTIONS:
            found.keep_dimensions(step.name)
        elif step.operator.kind == "MUL":
            found.absorb(step.name)
    return list(found.steps.values()), found.tensors


class _Peephole:
    """Steps and tensors by name; for every tensor the names of the steps that read it."""

    def __init__(
        self, steps: Sequence[Step], tensors: Mapping[str, Tensor], outputs: Sequence[str]
    ):
        self.steps = {step.name: step for step in steps}
        self.tensors, self._outputs = dict(tensors), set(outputs)
        self._readers: dict[str, list[str]] = collections.defaultdict(list)
        for step in steps:
            for name in dict.fromkeys(step.inputs):
                self._readers[name].append(step.name)

    def keep_dimensions(self, name: str) -> None:
        """A reduction and the RESHAPE after it as one step, if that is what they are."""
        step = self.steps[name]
        readers = self._readers[step.output]
        if step.output in self._outputs or len(readers) != 1:
            return
        reshape = self.steps[readers[0]]
        shape, axes = self.tensors[step.inputs[0]].shape, step.operator.attributes["axes"]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        if reshape.operator.kind != "RESHAPE" or self.tensors[reshape.output].shape != kept:
            return
        attributes = {**step.operator.attributes, "keepdims": True}
        operator = dataclasses.replace(step.operator, attributes=attributes)
        self.steps[name] = dataclasses.replace(step, operator=operator, output=reshape.output)
        del self.steps[reshape.name], self.tensors[step.output]

    def absorb(self, name: str) -> None:
        """Take out a MUL that keeps every integer, if all that reads it can do without."""
        step = self.steps[name]
        source = step.operator.inputs[0]
        if source is None or not _keeps_integers(step.operator):
            return
        reached = [self.steps[reader] for reader in self._reached(step.output)]
        moved = {r.output for r in reached if r.operator.kind in _MOVES}
        able = all(r.output in moved or r.operator.kernel is not None for r in reached)
        if not able or self._outputs & {step.output, *moved}:
            return
        for reader in reached:
            names = tuple(step.inputs[0] if i == step.output else i for i in reader.inputs)
            operator = _reading(reader.operator, source)
            self.steps[reader.name] = dataclasses.replace(reader, operator=operator, inputs=names)
        for output in moved:
            self.tensors[output] = dataclasses.replace(self.tensors[output], quantization=source)
        self._readers[step.inputs[0]].remove(name)
        self._readers[step.inputs[0]] += self._readers[step.output]
        del self.steps[name], self.tensors[step.output]

    def _reached(self, tensor: str) -> Iterator[str]:
        """The steps that read a tensor, directly or moved about."""
        for reader in self._readers[tensor]:
            yield reader
            if self.steps[reader].operator.kind in _MOVES:
                yield from self._reached(self.steps[reader].output)


def _keeps_integers(operator: Operator) -> bool:
    """Whether a MUL by a constant maps every integer to itself."""
    source, output = operator.inputs[0], operator.output
    if "constant" not in operator.attributes or operator.activation != "none":
        return False
    if source is None or output is None or source.zero_point != output.zero_point:
        return False
    integers, grid = constant(operator)
    if integers.size != 1 or source.bits != output.bits:
        return False
    factor = (float(np.ravel(integers)[0]) - grid.zero_point) * grid.scale
    # The map is linear, so its ends move most; the rest up to 1/2 is for float32 arithmetic.
    ends = np.array([source.qmin, source.qmax]) - source.zero_point
    return bool((np.abs(ends * (factor * source.scale / output.scale - 1)) < 0.25).all())


def _reading(operator: Operator, source: Quantization) -> Operator:
    """The operator on the same integers with the scale of ``source``."""
    before = operator.inputs[0]
    if operator.kernel_scale is None or before is None:
        return dataclasses.replace(operator, inputs=(source,), output=source)
    scale = operator.kernel_scale.astype(np.float64) * (before.scale / source.scale)
    return dataclasses.replace(operator, inputs=(source,), kernel_scale=scale.astype(np.float32))
