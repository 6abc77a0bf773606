"""What a sensitivity analysis has found: tables, JSON, and a plot."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewriter.errors import RewriterError
from rewriter.files.replacing import replacing
from rewriter.rewriting.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Measured:
    """How good the outputs are.

    Attributes:
      snr_db: signal to noise of the outputs against the trained model's, in dB; of a softmax, of
        what it is given.
      score: on the labels: the share of right classes, or minus the mean squared error; None
        without labels.
      score_error: the standard error of the score: how far it is from that on other samples.
    """

    snr_db: float
    score: float | None = None
    score_error: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """The larger, the better: by the labels, and where those do not tell, by the noise."""
        return (self.score or 0.0, self.snr_db)


@dataclasses.dataclass(frozen=True)
class LayerSensitivity:
    """One fused layer, with its kernels alone at each width and all else in float.

    Attributes:
      name: of the layer.
      kind: its class.
      parameters: how many elements its kernels have.
      widths: what was found by width; only widths that a file carries for it.
      bytes: of its kernels in a file, by width.
    """

    name: str
    kind: str
    parameters: int
    widths: Mapping[int, Measured]
    bytes: Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Widths for all layers together, measured with all kernels at their widths.

    Attributes:
      label: how they were chosen.
      widths: by layer.
      bytes: of the file.
      measured: how good it is.
    """

    label: str
    widths: Mapping[str, int]
    bytes: int
    measured: Measured


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What :func:`rewriter.sensitivity` has found.

    Attributes:
      task: what the labels are for; None without labels.
      baseline: the score of the trained model; None without labels.
      layers: the fused layers, in the model's order.
      int8_bytes: of the file with all kernels at 8 bits.
      choices: all that was measured as a whole.
      budget_bytes: for the file; None: none was given.
      proposal: the best of the choices within the budget.
      recipe: it, for :func:`rewriter.rewrite`; None without a budget.
    """

    task: str | None
    baseline: float | None
    layers: tuple[LayerSensitivity, ...]
    int8_bytes: int
    choices: tuple[Choice, ...] = ()
    budget_bytes: int | None = None
    proposal: Choice | None = None
    recipe: Recipe | None = None

    @property
    def worst(self) -> LayerSensitivity:
        """The layer that suffers most at its smallest width.

        Raises:
          RewriterError: the model has no layer with an integer kernel.
        """
        if not self.layers:
            raise RewriterError("The model has no linear layer with an integer kernel.")
        return min(self.layers, key=lambda layer: layer.widths[min(layer.widths)].rank)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("layers", "choices", "proposal", "recipe")
        }
        return values | {
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "choices": [dataclasses.asdict(choice) for choice in self.choices],
            "proposal": None if self.proposal is None else dataclasses.asdict(self.proposal),
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
        }

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        widths = sorted({width for layer in self.layers for width in layer.widths}, reverse=True)
        what = "dB" if self.baseline is None else "points"
        header = ["layer", "kind", "parameters", *(f"{w} bits, {what}" for w in widths)]
        chosen = {} if self.proposal is None else self.proposal.widths
        if chosen:
            header.append("proposed")
        rows = [header]
        for layer in self.layers:
            cells = [self._loss(layer.widths.get(width)) for width in widths]
            last = [f"{chosen[layer.name]} bits"] if chosen else []
            rows.append([layer.name, layer.kind, f"{layer.parameters:,}", *cells, *last])
        lines = [*_aligned(rows), "", f"int8: {self.int8_bytes:,} bytes"]
        if self.task is not None and self.baseline is not None:
            lines.append(f"{self.task}, trained model: {self._score(self.baseline)}")
        for choice in self.choices:
            score = choice.measured.score
            told = "" if score is None else f", {self._score(score)}"
            mark = "  <- proposed" if choice is self.proposal else ""
            lines.append(
                f"{choice.label}: {choice.bytes:,} bytes, {choice.measured.snr_db:.1f} dB"
                f"{told}{mark}"
            )
        return "\n".join(lines)

    def _loss(self, found: Measured | None) -> str:
        if found is None:
            return "-"
        if found.score is None or self.baseline is None:
            return f"{found.snr_db:.1f}"
        scale = 1 if self.baseline < 0 else 100
        return f"{scale * (found.score - self.baseline):+.2f}"

    @staticmethod
    def _score(score: float) -> str:
        return f"mean squared error {-score:.6g}" if score < 0 else f"{100 * score:.2f} %"

    def plot(self, path: str | Path) -> None:
        """Bytes against quality of all that was measured, as an image.

        Args:
          path: where to write; the suffix says the format, such as ``.png`` or ``.svg``.

        Raises:
          RewriterError: matplotlib is not installed, or has no such format.
          OSError: the file cannot be written.
        """
        if importlib.util.find_spec("matplotlib") is None:
            raise RewriterError("A plot needs matplotlib: pip install matplotlib.")
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 5), layout="constrained")
        known = FigureCanvasAgg(figure).get_supported_filetypes()
        suffix = Path(path).suffix.lower().lstrip(".")
        if suffix not in known:
            raise RewriterError(f"A plot is one of {sorted(known)}. Received: {str(path)!r}.")
        axes = figure.subplots()
        scored = self.baseline is not None
        for choice in sorted(self.choices, key=lambda each: each.bytes):
            score = choice.measured.score
            y = choice.measured.snr_db if score is None else score
            axes.plot(choice.bytes / 1024, y, "*" if choice is self.proposal else "o")
            axes.annotate(choice.label, (choice.bytes / 1024, y), fontsize=7)
        axes.set_xlabel("size of the file, KiB")
        axes.set_ylabel(f"score ({self.task})" if scored else "outputs, dB to the trained model")
        if self.budget_bytes is not None:
            axes.axvline(self.budget_bytes / 1024, linestyle="--", linewidth=1)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=suffix)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, the first two to the left and numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
