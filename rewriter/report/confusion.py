"""The classes that the file says against those that are right."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Confusion:
    """What the file says of labelled samples.

    Attributes:
      counts: for each right class (rows) how often the file says each class (columns).
      others: the accuracy of the other models on the same samples, by name.
    """

    counts: tuple[tuple[int, ...], ...]
    others: dict[str, float]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(map(sum, self.counts))

    @property
    def accuracy(self) -> float:
        """The share, 0 to 1, of samples that the file gets right."""
        return sum(row[i] for i, row in enumerate(self.counts)) / max(self.samples, 1)

    @property
    def recalls(self) -> tuple[float | None, ...]:
        """For each class the share of its samples that the file gets right; None without any."""
        sums = [sum(row) for row in self.counts]
        return tuple(
            row[i] / total if total else None
            for i, (row, total) in enumerate(zip(self.counts, sums, strict=True))
        )

    @property
    def mistakes(self) -> tuple[tuple[int, int, int], ...]:
        """Right class, class said and number of samples, the most frequent first."""
        found = [
            (right, said, count)
            for right, row in enumerate(self.counts)
            for said, count in enumerate(row)
            if count and said != right
        ]
        return tuple(sorted(found, key=lambda each: -each[2]))


def of(labels: np.ndarray, said: np.ndarray, count: int, others: dict[str, float]) -> Confusion:
    """Count what was said.

    Args:
      labels: the right classes, int (N,).
      said: those of the file, int (N,).
      count: how many classes there are.
      others: see :class:`Confusion`.
    """
    labels, said = labels.astype(np.int64).reshape(-1), said.astype(np.int64).reshape(-1)
    flat = np.bincount(labels * count + said, minlength=count * count)
    return Confusion(tuple(map(tuple, flat.reshape(count, count).tolist())), others)
