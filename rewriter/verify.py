"""Verification: the file, run by LiteRT, against the twin, tensor by tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from rewriter.calibrate import batches_of
from rewriter.compare import compare_program
from rewriter.comparison import Comparison
from rewriter.errors import CalibrationError, VerificationError
from rewriter.lower import lower


@dataclasses.dataclass(frozen=True)
class Verification:
    """How well a file agrees with the model it came from.

    Attributes:
      path: the file.
      comparison: every quantized tensor, operator by operator and end to end.
    """

    path: str
    comparison: Comparison

    @property
    def top1(self) -> float | None:
        """Share of samples with the same best class, over all outputs; None without classes."""
        shares = list(self.comparison.top1.values())
        return min(shares) if shares else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {"path": self.path, "top1": self.top1, **self.comparison.to_dict()}

    def __str__(self) -> str:
        return f"{self.path}\n{self.comparison}"


def verify(
    model: Any,
    path: str | Path,
    data: Any,
    *,
    kernels: str = "xnnpack",
    samples: int | None = None,
    progress: bool = True,
) -> Verification:
    """Run a file in LiteRT's interpreter and compare every tensor with the twin's.

    Args:
      model: the quantization-aware model that the file was exported from.
      path: the ``.tflite`` file.
      data: inputs, as for :func:`rewriter.calibrate`.
      kernels: ``"xnnpack"`` (LiteRT's default) or ``"reference"``.
      samples: use only the first so many.
      progress: show a progress bar.

    Raises:
      VerificationError: if the file cannot be run, is not one of this model's, or the data does
        not fit.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise VerificationError(f"The file {str(path)!r} cannot be read: {error}.") from error
    inputs = _arrays(model, data, samples)
    with tqdm(total=len(inputs[0]), desc="verifying", disable=not progress) as bar:
        comparison = compare_program(
            lower(model),
            content,
            None,
            inputs,
            kernels=kernels,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    return Verification(str(path), comparison)


def _arrays(model: Any, data: Any, samples: int | None) -> list[np.ndarray]:
    """The model's flattened inputs, samples first."""
    parts: list[list[np.ndarray]] = []
    count = 0
    try:
        batches, _ = batches_of(model, data, 64)
        for batch in batches:
            parts.append([np.asarray(t) for t in tf.nest.flatten(batch)])
            count += len(parts[-1][0])
            if samples is not None and count >= samples:
                break
    except CalibrationError as error:
        raise VerificationError(str(error)) from error
    if not parts:
        raise VerificationError("There is nothing to compare. Received: no samples.")
    return [np.concatenate(arrays)[:samples] for arrays in zip(*parts, strict=True)]
