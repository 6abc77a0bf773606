"""Layers in float that compute something of several samples together: a file treats each by itself.

What has an integer form never does. Of the others nothing is known but what they return, so each is
run on three samples, together and one after the other.

Layers that only move samples about, as to have the batch as the second axis, are taken where others
read them: those may move them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from rewriter.errors import ExportError
from rewriter.program import Program, Step

_LARGEST = 1 << 22  # elements of an input: beyond it, running a layer four times takes a while
_APART, _MOVED, _MIXED = "apart", "moved", "mixed"
_SAMPLES = 3
_NEAR = 1e-3  # of the largest magnitude: sums in another order


def refuse(program: Program, batch_size: int | None) -> None:
    """Raise ExportError, naming the layer, where a file would compute something else.

    Args:
      program: of the file.
      batch_size: of the file; None: open. Samples of one larger than 1 may belong together.
    """
    for step in program.steps:
        if step.operator.attributes.get("whole"):
            raise one_number(step.layer)
    if batch_size is not None and batch_size > 1:
        return
    found = {step: _kind(program, step) for step in _calls(program)}
    refused = [step for step, kind in found.items() if kind == _MIXED]
    moving = [step for step, kind in found.items() if kind == _MOVED]
    if len(moving) == 1 and moving[0].output in _last(program):  # nothing moves them back
        refused += moving
    if refused:
        raise ExportError(
            f"Layer '{refused[0].layer}': what it computes of a sample depends on the others of "
            "the batch, and a file treats each by itself. Reduce, sort, index and join over the "
            "axes from 1 on; or, if a number of samples belong together, export for so many: "
            "export_tflite(..., batch_size=...)."
        )


def one_number(layer: str) -> ExportError:
    """What is said of a layer that returns a number without a batch."""
    return ExportError(
        f"Layer '{layer}': it computes one number for all samples, and a file treats each by "
        "itself. Compute one for each: reduce over the axes from 1 on, with keepdims=True."
    )


def _calls(program: Program) -> Iterator[Step]:
    """The steps in float, one for each call of a layer."""
    seen = set()
    for step in program.steps:
        key = id(step.operator.function), step.inputs
        if step.operator.kind == "FLOAT" and key not in seen:
            seen.add(key)
            yield step


def _last(program: Program) -> set[str]:
    """The tensors that are outputs, or become such by another scale."""
    found = set(program.outputs)
    for step in reversed(program.steps):
        if step.output in found and step.operator.kind == "QUANTIZE":
            found.update(step.inputs)
    return found


def _kind(program: Program, step: Step) -> str:
    """Whether three samples together give something else than one after the other, and how."""
    shapes = [program.tensors[name].shape for name in step.inputs]
    if not shapes or any(not shape or None in shape[1:] for shape in shapes):
        return _APART
    sizes = [(_SAMPLES, *(size or 0 for size in shape[1:])) for shape in shapes]
    if max(int(np.prod(size)) for size in sizes) > _LARGEST:
        return _APART
    rng = np.random.default_rng(0)
    # Positive, for the sake of logarithms; the samples have their own extremes and sums.
    samples = [
        np.stack([rng.uniform(0.1, 0.3 * (i + 1), size[1:]) for i in range(_SAMPLES)])
        for size in sizes
    ]
    try:
        both, again = _run(step, samples), _run(step, samples)
        single = [_run(step, [v[i : i + 1] for v in samples]) for i in range(_SAMPLES)]
    except Exception:  # whatever a user's layer raises: it is traced next, and refused by its name
        return _APART
    kinds = {_compared(*part) for part in zip(both, again, *single, strict=True)}
    return next((kind for kind in (_MIXED, _MOVED) if kind in kinds), _APART)


def _run(step: Step, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    tensors = [tf.constant(value, tf.float32) for value in values]
    found = step.operator.function(*tensors)  # type: ignore[misc]
    parts = list(map(tf.convert_to_tensor, tf.nest.flatten(found)))
    # Sizes are integers; of their own batch.
    return [np.asarray(tf.cast(each, tf.float32)) for each in parts if each.dtype.is_floating]


def _compared(both: np.ndarray, again: np.ndarray, *single: np.ndarray) -> str:
    if not both.ndim or not np.isfinite(both).all() or not _same(both, again):
        return _APART  # the numbers say nothing, or are random
    if all(_same(both, each) for each in single):
        return _APART  # of no sample
    alike = all(each.shape[1:] == both.shape[1:] for each in single)
    if alike and _same(both, np.concatenate(single)):
        return _APART
    values = np.concatenate([each.ravel() for each in single])
    return _MOVED if _same(np.sort(both, None), np.sort(values)) else _MIXED


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    largest = float(np.max(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=0, atol=_NEAR * max(largest, 1e-6)))
