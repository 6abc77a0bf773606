"""Steps that another step does by itself, or has done already: fewer operators, the same integers.

- PAD before a VALID convolution: SAME pads where it puts the same zeros.
- RESHAPE before FULLY_CONNECTED, which reads any shape; RESHAPE after RESHAPE; RESHAPE after
  FULLY_CONNECTED back into its input's rows.
- Steps that change nothing: a PAD by nothing, a RESHAPE or TRANSPOSE into the same order, a
  reduction of axes of size 1.
- A step that is computed twice from the same tensors, with the same constants.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.program import Operator, Step, Tensor

_PADDED = ("CONV_2D", "DEPTHWISE_CONV_2D")
_LARGE = 64  # elements
_REDUCTIONS = ("MEAN", "REDUCE_MAX")


def fuse(
    steps: Sequence[Step], tensors: Mapping[str, Tensor], outputs: Sequence[str]
) -> tuple[list[Step], dict[str, Tensor], list[str]]:
    """The same program with fewer steps.

    Args:
      steps: in topological order.
      tensors: every tensor by name.
      outputs: the program's output tensors.

    Returns:
      The steps and the tensors that are left, and the output tensors: two that are always equal
      become one.
    """
    found = _Fusion(tensors)
    for step in steps:
        found.add(step)
    return found.finish(outputs)


class _Fusion:
    """The steps so far, by the tensor that each makes."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors
        self._steps: dict[str, Step] = {}
        self._same: dict[str, str] = {}  # a tensor that is gone, and the one that is the same
        self._seen: dict[tuple[object, ...], list[Step]] = {}

    def add(self, step: Step) -> None:
        """Append a step, in as far as it is needed."""
        if any(name in self._same for name in step.inputs):
            inputs = tuple(self._same.get(name, name) for name in step.inputs)
            step = dataclasses.replace(step, inputs=inputs)
        step = self._without_reduction(step)
        step = self._without_pad(self._without_reshape(step))
        twin = step.inputs[0] if self._changes_nothing(step) else self._computed(step)
        if twin is None:
            self._steps[step.output] = step
        else:
            self._same[step.output] = twin

    def finish(self, outputs: Sequence[str]) -> tuple[list[Step], dict[str, Tensor], list[str]]:
        """All steps that are read, all tensors but those of the others, and the outputs."""
        left = [self._same.get(name, name) for name in outputs]
        self._keep_rows(left)
        live, kept = set(left), []
        gone = set(self._same)
        for step in reversed(self._steps.values()):
            if step.output in live:
                live.update(step.inputs)
                kept.append(step)
            else:
                gone.add(step.output)
        tensors = {name: t for name, t in self._tensors.items() if name not in gone}
        return kept[::-1], tensors, left

    def _keep_rows(self, outputs: Sequence[str]) -> None:
        """FULLY_CONNECTED and a RESHAPE into its input's rows, as one operator that keeps them."""
        reads = collections.Counter([n for s in self._steps.values() for n in s.inputs])
        reads.update(outputs)
        for step in list(self._steps.values()):
            dense = self._steps.get(step.inputs[0]) if step.inputs else None
            if step.operator.kind != "RESHAPE" or dense is None or reads[dense.output] > 1:
                continue
            attributes = dense.operator.attributes
            depth = () if dense.operator.kernel is None else dense.operator.kernel.shape[:1]
            rows, made = (self._tensors[s].shape for s in (dense.inputs[0], step.output))
            kept = (*rows[:-1], self._tensors[dense.output].shape[-1]) == made
            flat = not attributes.get("keep_num_dims", False)
            if dense.operator.kind == "FULLY_CONNECTED" and flat and kept and rows[-1:] == depth:
                attributes = {**attributes, "keep_num_dims": True}
                operator = dataclasses.replace(dense.operator, attributes=attributes)
                # In the place of the RESHAPE, whose output it makes.
                self._steps[step.output] = dataclasses.replace(
                    dense, operator=operator, output=step.output
                )

    def _changes_nothing(self, step: Step) -> bool:
        operator = step.operator
        if operator.kind in ("PAD", "PADV2"):
            return not np.any(operator.attributes["paddings"])
        if operator.kind == "TRANSPOSE":
            return list(operator.attributes["perm"]) == sorted(operator.attributes["perm"])
        same = self._tensors[step.output].shape == self._tensors[step.inputs[0]].shape
        return operator.kind == "RESHAPE" and same

    def _computed(self, step: Step) -> str | None:
        """The tensor that an equal step has made."""
        operator = step.operator
        if operator.kind == "FLOAT":
            return None
        attributes = json.dumps(operator.attributes, sort_keys=True, default=_plain)
        grids = operator.inputs, operator.output, operator.activation, operator.kernel_grid
        key = (operator.kind, step.inputs, attributes, *grids)
        others = self._seen.setdefault(key, [])
        for other in others:
            if _same_constants(operator, other.operator):
                return other.output
        others.append(step)
        return None

    def _without_reduction(self, step: Step) -> Step:
        """A RESHAPE, where a reduction takes one element each, and leaves it as it is."""
        operator = step.operator
        if operator.kind not in _REDUCTIONS or (operator.output,) != operator.inputs:
            return step
        shape, target = (self._tensors[name].shape for name in (step.inputs[0], step.output))
        if any(shape[axis] != 1 for axis in operator.attributes["axes"]):
            return step
        reshape = Operator(
            "RESHAPE",
            operator.inputs,
            operator.output,
            {"shape": [1 if n is None else int(n) for n in target[1:]]},
        )
        return dataclasses.replace(step, operator=reshape)

    def _without_reshape(self, step: Step) -> Step:
        """Reading what is before a RESHAPE, where the shape makes no difference."""
        operator = step.operator
        before = self._steps.get(step.inputs[0]) if step.inputs else None
        if before is None or before.operator.kind != "RESHAPE":
            return step
        rows = not operator.attributes.get("keep_num_dims", False)
        flat = len(before.operator.attributes["shape"]) == 1
        dense = operator.kind == "FULLY_CONNECTED" and rows and flat
        if not (dense or operator.kind == "RESHAPE"):
            return step
        return dataclasses.replace(step, inputs=before.inputs)

    def _without_pad(self, step: Step) -> Step:
        """SAME in the place of a PAD and VALID, where it puts the same zeros."""
        operator = step.operator
        before = self._steps.get(step.inputs[0]) if step.inputs else None
        valid = operator.kind in _PADDED and operator.attributes["padding"] == "VALID"
        if before is None or before.operator.kind != "PAD" or not valid:
            return step
        sizes = self._tensors[before.inputs[0]].shape
        wanted = [[0, 0], *_same_zeros(operator, sizes[1:3]), [0, 0]]
        given = [[int(n) for n in pair] for pair in before.operator.attributes["paddings"]]
        if given != wanted:
            return step
        attributes = {**operator.attributes, "padding": "SAME"}
        same = dataclasses.replace(operator, inputs=before.operator.inputs, attributes=attributes)
        return dataclasses.replace(step, operator=same, inputs=before.inputs)


def _same_zeros(operator: Operator, sizes: Sequence[int | None]) -> list[list[int]]:
    """Zeros before and after each spatial axis under TensorFlow's SAME rule."""
    attributes, found = operator.attributes, []
    dilations = attributes.get("dilations", (1, 1))
    window = np.asarray(operator.kernel).shape[:2]
    for n, k, stride, dilation in zip(sizes, window, attributes["strides"], dilations, strict=True):
        if n is None:
            return []
        total = max((-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)
        found.append([total // 2, total - total // 2])
    return found


def _plain(values: Any) -> Any:
    """An attribute of NumPy's as JSON values; of a table what tells it from others."""
    array = np.asarray(values)
    if array.size < _LARGE:
        return array.tolist()
    return [array.shape, hashlib.blake2b(np.ascontiguousarray(array).data).hexdigest()]


def _same_constants(a: Operator, b: Operator) -> bool:
    pairs = ((a.kernel, b.kernel), (a.kernel_scale, b.kernel_scale), (a.bias, b.bias))
    return all(
        x is y or (x is not None and y is not None and np.array_equal(x, y)) for x, y in pairs
    )
