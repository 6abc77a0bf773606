"""The tensors: how far each is from the trained model's, and how its range lies over its values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from rewriter.checking import emulation
from rewriter.checking.verify import Evidence
from rewriter.lowering.lower import Lowered
from rewriter.program import Program, Tensor
from rewriter.quantization import phases
from rewriter.training import histograms
from rewriter.training.histograms import Histogram

BINS = 48  # of a histogram as it is shown
_ELEMENTS = 50_000_000  # of all tensors and samples: what takes a few seconds to count
_CHUNK = 10_000_000  # elements at a time, but 16 samples at least


@dataclasses.dataclass(frozen=True)
class Values:
    """What the model has for one tensor when nothing is quantized.

    Attributes:
      samples: how many were run.
      minimum, maximum: the smallest and the largest value.
      below, above: shares of the values, 0 to 1, that are more than half a step outside of the
        range of the integers, and so clipped.
      zeros: the share that is 0 exactly.
      first, last: where the histogram begins and ends.
      counts: of each of its :data:`BINS` bins of equal width, zeros included.
    """

    samples: int
    minimum: float
    maximum: float
    below: float
    above: float
    zeros: float
    first: float
    last: float
    counts: tuple[int, ...]

    @property
    def clipped(self) -> float:
        """The share of the values, 0 to 1, that are clipped at either end."""
        return self.below + self.above


@dataclasses.dataclass(frozen=True)
class TensorRow:
    """One tensor of the program.

    Attributes:
      name, layer: the tensor, and the Keras layer that it comes from.
      snr_db: the trained model's values to what the twin differs from them, end to end; None
        where it was not compared, infinite where all are equal.
      scale, zero_point, low, high: of its integers, and the range that they span; None in float.
      values: what the model has without quantization; None where it has no such tensor.
    """

    name: str
    layer: str
    snr_db: float | None
    scale: float | None
    zero_point: int | None
    low: float | None
    high: float | None
    values: Values | None


def rows(evidence: Evidence, snr: Mapping[str, float]) -> tuple[TensorRow, ...]:
    """All tensors of a program, worst first; those that were not compared last.

    Args:
      evidence: of the verification.
      snr: signal to noise in dB by the name of the tensor.
    """
    program = evidence.lowered.program
    layers = {step.output: step.layer for step in program.steps}
    found = _values(evidence.lowered, evidence.inputs)
    made = []
    for name, tensor in program.tensors.items():
        grid = tensor.quantization
        grid = None if grid is None or grid.whole else grid
        low, high = (None, None) if grid is None else grid.range
        made.append(
            TensorRow(
                name,
                layers.get(name, name),
                snr.get(name),
                None if grid is None else grid.scale,
                None if grid is None else grid.zero_point,
                low,
                high,
                found.get(name),
            )
        )
    return tuple(sorted(made, key=lambda r: (r.snr_db is None, r.snr_db or 0.0)))


def elements(program: Program) -> int:
    """How many elements all tensors of one sample have."""
    return sum(math.prod(size or 1 for size in t.shape[1:]) for t in program.tensors.values())


def _values(lowered: Lowered, inputs: tuple[np.ndarray, ...]) -> dict[str, Values]:
    """Run the model in phase ``float`` and count its values."""
    each = max(elements(lowered.program), 1)
    count = min(len(inputs[0]), max(1, _ELEMENTS // each))
    chunk_size = max(16, _CHUNK // each)
    places = np.arange(count) * len(inputs[0]) // count  # spread over the samples
    counters: dict[str, _Counter] = {}
    for start in range(0, count, chunk_size):
        chunk = [array[places[start : start + chunk_size]] for array in inputs]
        for name, values in emulation.emulated(lowered, chunk, phases.FLOAT).items():
            if not (values.dtype.is_floating or values.dtype.is_integer):
                continue
            if name not in counters:
                counters[name] = _Counter(lowered.program.tensors[name])
            counters[name].add(tf.cast(values, tf.float32))
    return {name: c.values(count) for name, c in counters.items() if c.total}


class _Counter:
    def __init__(self, tensor: Tensor):
        grid = tensor.quantization
        self._grid = None if grid is None or grid.whole else grid
        self._histogram = histograms.of_array(np.zeros(0, np.float32))
        self.total = self._below = self._above = 0
        self._minimum, self._maximum = math.inf, -math.inf

    def add(self, values: tf.Tensor) -> None:
        array = np.asarray(values)
        smallest, largest = (float(f(array)) if array.size else math.nan for f in (np.min, np.max))
        if not math.isfinite(smallest + largest):  # NaN where any value is
            array = array[np.isfinite(array)]
            if not array.size:
                return
            smallest, largest = float(array.min()), float(array.max())
        self.total += array.size
        self._histogram = self._histogram.merged(histograms.of_array(array))
        self._minimum = min(self._minimum, smallest)
        self._maximum = max(self._maximum, largest)
        if self._grid is not None:
            low, high = self._grid.range
            half = self._grid.scale / 2
            # Counted only where there is something: the extremes are known by now.
            if smallest < low - half:
                self._below += int(np.count_nonzero(array < np.float32(low - half)))
            if largest > high + half:
                self._above += int(np.count_nonzero(array > np.float32(high + half)))

    def values(self, samples: int) -> Values:
        low, high = (0.0, 0.0) if self._grid is None else self._grid.range
        first, last = min(self._minimum, low), max(self._maximum, high)
        if first == last:
            first, last = first - 0.5, last + 0.5
        return Values(
            samples,
            self._minimum,
            self._maximum,
            self._below / self.total,
            self._above / self.total,
            self._histogram.zeros / self.total,
            first,
            last,
            _shown(self._histogram, first, last),
        )


def _shown(histogram: Histogram, first: float, last: float) -> tuple[int, ...]:
    """The counts in :data:`BINS` bins from ``first`` to ``last``."""
    width = (last - first) / BINS
    places = np.clip(np.floor((histogram.centers - first) / width), 0, BINS - 1).astype(int)
    counts = np.bincount(places, weights=histogram.counts, minlength=BINS)
    return tuple(int(count) for count in counts)
