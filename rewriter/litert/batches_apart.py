"""Layers in float that compute something of several samples together: a file treats each by itself.

What has an integer form never does. Of the others nothing is known but what they return, so each is
run on three samples, together and one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from rewriter.errors import ExportError
from rewriter.program import Program, Step

_LARGEST = 1 << 22  # elements of an input: beyond it, running a layer four times takes a while
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
    for step in _calls(program):
        if _mixes(program, step):
            raise ExportError(
                f"Layer '{step.layer}': what it computes of a sample depends on the others of the "
                "batch, and a file treats each by itself. Reduce, sort, index and join over the "
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


def _mixes(program: Program, step: Step) -> bool:
    """Whether three samples together give something else than one after the other."""
    shapes = [program.tensors[name].shape for name in step.inputs]
    if not shapes or any(not shape or None in shape[1:] for shape in shapes):
        return False
    sizes = [(_SAMPLES, *(size or 0 for size in shape[1:])) for shape in shapes]
    if max(int(np.prod(size)) for size in sizes) > _LARGEST:
        return False
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
        return False
    return any(_differs(*part) for part in zip(both, again, *single, strict=True))


def _run(step: Step, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    tensors = [tf.constant(value, tf.float32) for value in values]
    found = step.operator.function(*tensors)  # type: ignore[misc]
    return [np.asarray(tf.cast(each, tf.float32)) for each in tf.nest.flatten(found)]


def _differs(both: np.ndarray, again: np.ndarray, *single: np.ndarray) -> bool:
    if not both.ndim or not np.isfinite(both).all() or not _same(both, again):
        return False  # a size; or the numbers say nothing; or they are random
    if all(_same(both, each) for each in single):
        return False  # of no sample
    if any(each.shape[1:] != both.shape[1:] for each in single):
        return True
    return not _same(both, np.concatenate(single))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    largest = float(np.max(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=0, atol=_NEAR * max(largest, 1e-6)))
