"""How well a program agrees with the model that was trained: the figures, and what they mean."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from rewriter.grid import BITS
from rewriter.program import Tensor

# Below this the outputs are said to be far from the model's. Real models have 24 dB and more.
LOW_SNR_DB = 15.0
# Of a float tensor's largest magnitude: what stands for one step.
_FLOAT_STEP = 1e-3
# Where several roundings differ: what they leave of the signal. A product of three has 30 dB.
_SEVERAL_DB = 28.0
# On grids of 16 bits LiteRT's tables are what is left: those of a normalization have 50 dB.
_WIDE_DB = 40.0
# A share of elements that rounding does not explain. A constant that is added, rounded to a grid of
# its own, moves up to 0.7 of them by one step.
_MOST = 0.95


class Counter:
    """Sums over chunks of samples, in float64 and in steps of the tensor's scale."""

    def __init__(self, tensor: Tensor):
        self._grid = tensor.quantization
        self.elements = self.other = 0
        self._signal = self._noise = self._largest = self._magnitude = 0.0

    def steps(self, real: np.ndarray) -> np.ndarray:
        """Real values in steps, float32; as they are where the tensor is not quantized.

        Not clipped: values that the grid cannot hold are a difference.
        """
        real = np.asarray(real, np.float32)
        return real if self._grid is None else np.rint(real / np.float32(self._grid.scale))

    def add(self, model: np.ndarray, twin: np.ndarray) -> None:
        """Add the model's values, in steps, and the twin's, integers where it is quantized."""
        ours = twin if self._grid is None else twin - np.int32(self._grid.zero_point)
        ours = ours.astype(np.float32)
        other = model != ours
        noise = model[other].astype(np.float64) - ours[other]  # few
        self.elements += model.size
        self.other += noise.size
        self._signal += float(np.sum(np.square(model), dtype=np.float64, where=np.isfinite(model)))
        self._noise += float(np.sum(np.square(noise)))
        self._largest = max(self._largest, float(np.abs(noise).max(initial=0.0)))
        if self._grid is None:
            largest = np.abs(model).max(initial=0.0, where=np.isfinite(model))
            self._magnitude = max(self._magnitude, float(largest))

    @property
    def largest(self) -> float:
        """The largest difference: in steps, or relative to the largest magnitude."""
        if self._grid is not None or not self._largest:
            return self._largest
        return self._largest / max(self._magnitude, float(np.finfo(np.float32).tiny))

    @property
    def snr_db(self) -> float:
        """Signal to noise; what is smaller than its own rounding counts as that."""
        if not self._noise:
            return math.inf
        floor = float(np.finfo(np.float64).tiny) if self._grid is None else self.elements / 12
        return 10 * math.log10(max(self._signal, floor) / self._noise)


@dataclasses.dataclass(frozen=True)
class TrainingAgreement:
    """How well one tensor of the twin agrees with the trained model's.

    Attributes:
      name: the program's tensor.
      layer: the Keras layer that it comes from.
      elements: how many were compared, over all samples.
      snr_db: signal to noise, end to end; infinite where all are equal.
      max_steps: the largest difference, end to end.
      step_snr_db, step_max_steps: the same, where the twin is given the model's own tensors.
      step_other: the share of elements, 0 to 1, that differ then.
      roundings: how many roundings may differ then: of this tensor, and of those before it that
        the model does not have; and by how many steps LiteRT's tables of 16 bits are off.
      unit: ``"step"``: of the tensor's scale. ``"relative"``: of the largest magnitude, for
        float tensors. ``"number"``: of whole numbers, such as places.
      bits: width of its integers.
    """

    name: str
    layer: str
    elements: int
    snr_db: float
    max_steps: float
    step_snr_db: float
    step_max_steps: float
    step_other: float
    roundings: int = 1
    unit: str = "step"
    bits: int = BITS

    @property
    def parts(self) -> bool:
        """Whether, given the same inputs, model and twin differ by more than rounding."""
        if self.unit == "number":
            # Rounded otherwise, two almost equal values give any two places.
            return self.roundings == 1 and self.step_max_steps > 0
        if self.unit != "step":
            return self.step_max_steps > _FLOAT_STEP * self.roundings
        if self.roundings == 1:
            return self.step_max_steps > 1 or self.step_other > _MOST
        # One step of a tensor that the model does not have may be several of this one.
        least = _SEVERAL_DB if self.bits == BITS else _WIDE_DB
        return self.step_max_steps > self.roundings and self.step_snr_db < least

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: ``None`` for an infinite ratio."""
        return {key: finite(value) for key, value in dataclasses.asdict(self).items()}


def finite(value: Any) -> Any:
    """``value``, or ``None`` for an infinite number, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class TrainingComparison:
    """What :func:`rewriter.checking.emulation.compare_training` found.

    Attributes:
      samples: how many were run.
      tensors: all that the model has too, in the order of execution.
      outputs: for each output the tensors that it may be judged by: itself, and what a softmax
        or the largest value's place is found from, because that magnifies what differs.
      skipped: tensors that could not be computed, with the reason; the model's own values took
        their place further on.
    """

    samples: int
    tensors: tuple[TrainingAgreement, ...]
    outputs: tuple[tuple[str, ...], ...]
    skipped: dict[str, str]

    @property
    def weakest(self) -> TrainingAgreement | None:
        """The output with the smallest signal to noise; ``None`` if none could be compared."""
        by_name = {tensor.name: tensor for tensor in self.tensors}
        judged = [[by_name[n] for n in names if n in by_name] for names in self.outputs]
        best = [max(tensors, key=lambda t: t.snr_db) for tensors in judged if tensors]
        return min(best, key=lambda t: t.snr_db, default=None)

    @property
    def snr(self) -> float | None:
        """The smallest signal to noise of the outputs, in dB."""
        return None if self.weakest is None else self.weakest.snr_db

    @property
    def parts_at(self) -> TrainingAgreement | None:
        """The first tensor where, given the same inputs, more than rounding differs."""
        return next((tensor for tensor in self.tensors if tensor.parts), None)

    @property
    def fault(self) -> str | None:
        """In words: where the file computes something else than the model; ``None``: nowhere."""
        part = self.parts_at
        if part is None:
            return None
        unit = " steps" if part.unit == "step" else " of the largest magnitude"
        return (
            f"the file computes something else than the trained model from layer {part.layer!r} "
            f"on: given the same inputs, its tensor {part.name!r} differs by up to "
            f"{part.step_max_steps:.3g}{unit}, in {100 * part.step_other:.1f} % of the elements "
            f"({part.step_snr_db:.1f} dB)"
        )

    @property
    def weakness(self) -> str | None:
        """In words: that the outputs are far from the model's; ``None`` if they are not."""
        weakest = self.weakest
        if weakest is None or weakest.snr_db >= LOW_SNR_DB:
            return None
        return (
            f"roundings add up: the tensor {weakest.name!r} of layer {weakest.layer!r} is at "
            f"{weakest.snr_db:.1f} dB of the trained model's, below {LOW_SNR_DB:.0f} dB; "
            "measure the accuracy of the file"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: ``None`` for an infinite ratio."""
        part = self.parts_at
        return {
            "snr": finite(self.snr),
            "weakest": None if self.weakest is None else self.weakest.name,
            "parts_at": None if part is None else part.name,
            "fault": self.fault,
            "weakness": self.weakness,
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "skipped": self.skipped,
        }
