"""How many bits each layer needs, and a recipe under a budget of bytes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from rewriter import grid as grids
from rewriter.errors import RecipeError, RewriterError, RewriterWarning
from rewriter.litert import writer
from rewriter.lowering.lower import lower
from rewriter.rewriting.layer_rules import LayerRule
from rewriter.rewriting.recipe import Recipe
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate
from rewriter.workflow import allocation, samples
from rewriter.workflow.kernel_widths import Host, Kernels, Measure, integer_hosts
from rewriter.workflow.sensitivity_report import Choice, LayerSensitivity, Sensitivity

WIDTHS = (8, 4, 2)
_SHARES = (0.0, 0.25, 0.5, 0.75)  # of the way from the smallest file to the largest: the frontier
_TRIES = 8  # a file is padded here and there: a budget is tightened by what it is exceeded by


def sensitivity(
    model: Any,
    data: Any,
    labels: Any = None,
    *,
    widths: Sequence[int] = WIDTHS,
    budget_bytes: int | None = None,
    budget_share: float | None = None,
    recipe: Recipe | str | None = None,
    calibration_samples: int = 512,
    batch_size: int = 64,
    allow_float: bool = False,
    progress: bool = True,
) -> Sensitivity:
    """What each layer loses at few bits, and the widths that suit a budget.

    The kernels of one layer at a time are put on their grid of each width, everything else is in
    float, and the outputs are compared with the trained model's. Under a budget, widths for all
    layers are chosen by integer programming, as if noise powers, or losses of the score, added up;
    so are those of a greedy search, and the same width for all. Each is then measured with all
    kernels on their grids at once, and the best of those within the budget is proposed: where there
    are labels, of the recipes within one standard error of the best score the one with the least
    noise. Nothing is trained: fine-tuning by the proposed recipe comes after.

    Args:
      model: a trained model of either Keras; it is left as it is.
      data: inputs: an array (N, ...), or a list, tuple or dict of arrays by the model's inputs.
      labels: of ``data``, as for :func:`rewriter.quantize`; None: signal to noise decides.
      widths: bits that are tried, from 2 to 8; of each layer those that a file carries.
      budget_bytes: for the whole file.
      budget_share: the same, as a share of the file with kernels of 8 bits.
      recipe: all but the widths: the proposal has its other fields and rules.
      calibration_samples: how many of ``data`` calibrate the activations, spread evenly.
      batch_size: samples at a time.
      allow_float: as of :func:`rewriter.export_tflite`, where sizes of files are told.
      progress: show progress bars.

    Returns:
      The sensitivities, and with a budget the proposal and its recipe.

    Raises:
      RewriterError: for data or labels that do not fit, or both budgets at once.
      RecipeError: for a width that there is not, a kernel quantizer that is not ours, or a budget
        below the smallest file.
      ExportError: a layer has no integer form; it is named.
    """
    tried = sorted({grids.width(bits, grids.BITS, "sensitivity", "widths") for bits in widths})
    _check_budget(budget_bytes, budget_share)
    base = Recipe.named(recipe) if isinstance(recipe, str) else recipe or Recipe()
    inputs = samples.inputs_of(model, data)
    if labels is not None and len(model.outputs) != 1:
        raise RewriterError(
            f"Labels need a model with one output. Received: {len(model.outputs)}. Leave them out: "
            "signal to noise then decides."
        )
    qat = rewrite(model, base)
    sample = samples.spread(len(inputs[0]), calibration_samples)
    with warnings.catch_warnings():
        # The ranges are for the sizes of files only; what is to be said of them is said when a
        # model is calibrated that is kept.
        warnings.simplefilter("ignore", RewriterWarning)
        given = samples.packed([each[sample] for each in inputs])
        calibrate(qat, given, progress=progress, for_training=False)
    hosts = [Host(host, tried) for host in integer_hosts(qat)]
    measure = Measure(qat, inputs, labels, batch_size)
    layers = []
    steps = tqdm(hosts, desc="measuring layers", disable=not progress)
    for host in steps:
        found = {}
        for bits in host.widths:
            with host.at(bits):
                found[bits] = measure()
        name, kind = host.layer.name, host.layer.row.name
        sizes = {bits: host.bytes(bits) for bits in host.widths}
        layers.append(LayerSensitivity(name, kind, host.parameters, found, sizes))
    search = _Search(qat, hosts, layers, measure, allow_float)
    result = Sensitivity(measure.task_name, measure.baseline, tuple(layers), search.int8_bytes)
    if budget_bytes is None and budget_share is not None:
        budget_bytes = int(budget_share * search.int8_bytes)
    if budget_bytes is None:
        return result
    choices = search.choices(budget_bytes, progress)
    within = [choice for choice in choices if choice.bytes <= budget_bytes]
    proposal = best(within)
    proposed = _recipe(base, hosts, proposal)
    _require(model, proposed, proposal)
    return dataclasses.replace(
        result,
        choices=tuple(choices),
        budget_bytes=budget_bytes,
        proposal=proposal,
        recipe=proposed,
    )


def best(choices: Sequence[Choice]) -> Choice:
    """The one with the least noise among those that the labels do not tell from the best score.

    Choices within one standard error of the best are alike on other samples (the rule of Breiman et
    al. 1984, *Classification and Regression Trees*, 3.4.3), and noise is measured at every output.
    """
    first = max(choices, key=lambda choice: choice.measured.rank).measured
    if first.score is not None:
        least = first.score - (first.score_error or 0.0)
        choices = [c for c in choices if (c.measured.score or 0.0) >= least]
    return max(choices, key=lambda choice: choice.measured.snr_db)


def _check_budget(budget_bytes: int | None, budget_share: float | None) -> None:
    if budget_bytes is not None and budget_share is not None:
        raise RewriterError("Give budget_bytes or budget_share, not both.")
    if budget_share is not None and not 0 < budget_share <= 1:
        raise RewriterError(f"budget_share must be in (0, 1]. Received: {budget_share!r}.")


class _Search:
    """Widths for all layers."""

    def __init__(
        self,
        qat: Any,
        hosts: list[Host],
        layers: list[LayerSensitivity],
        measure: Measure,
        allow_float: bool,
    ):
        self._qat, self._hosts, self._measure = qat, hosts, measure
        self._layers, self._allow_float = layers, allow_float
        self._sizes = [layer.bytes for layer in layers]
        self._int8 = tuple(max(size) for size in self._sizes)
        self.int8_bytes = self._file_bytes(self._int8)

    def _file_bytes(self, widths: Sequence[int]) -> int:
        """Of the file with kernels of these widths."""
        before = [host.layer.kernel_quantizers for host in self._hosts]
        try:
            for host, bits in zip(self._hosts, widths, strict=True):
                host.layer.kernel_quantizers = host.quantizers(bits)
            content, _ = writer.assemble(lower(self._qat), allow_float=self._allow_float)
        finally:
            for host, quantizers in zip(self._hosts, before, strict=True):
                host.layer.kernel_quantizers = quantizers
        return len(content)

    def choices(self, budget: int, progress: bool) -> list[Choice]:
        """All that is worth measuring, within the budget or not."""
        noise = [_noise(layer) for layer in self._layers]
        wanted: list[tuple[str, tuple[int, ...]]] = [("8 bits", self._int8)]
        for bits in sorted({width for layer in self._layers for width in layer.widths}):
            if bits < max(self._int8):
                same = [min((w for w in s if w >= bits), default=max(s)) for s in self._sizes]
                wanted.append((f"{bits} bits", tuple(same)))
        for label, costs in self._costs(noise):
            for how, solve in (("", allocation.cheapest), (", greedy", allocation.greedy)):
                wanted.append((f"budget, {label}{how}", self._fitting(solve, costs, budget)))
        least = self._file_bytes([min(s, key=s.__getitem__) for s in self._sizes])
        for share in _SHARES[1:]:
            bytes_ = int(least + share * (self.int8_bytes - least))
            found = self._fitting(allocation.cheapest, noise, bytes_)
            wanted.append((f"{bytes_:,} bytes, by noise", found))
        unique: dict[tuple[int, ...], str] = {}
        for label, widths in wanted:
            unique.setdefault(widths, label)
        result = []
        names = [layer.name for layer in self._layers]
        for widths, label in tqdm(unique.items(), desc="measuring recipes", disable=not progress):
            with Kernels(self._hosts, widths):
                measured = self._measure()
            chosen = dict(zip(names, widths, strict=True))
            result.append(Choice(label, chosen, self._file_bytes(widths), measured))
        return result

    def _costs(self, noise: list[dict[int, float]]) -> list[tuple[str, list[dict[int, float]]]]:
        """What the sums are of, by label."""
        found = [("by noise", noise)]
        baseline = self._measure.baseline
        if baseline is not None:
            # Where the labels do not tell layers apart, the noise does.
            least = 1e-3 / max((max(each.values()) for each in noise), default=1.0)
            losses = [
                {
                    bits: max(baseline - (found.score or 0.0), 0.0) + least * own[bits]
                    for bits, found in layer.widths.items()
                }
                for layer, own in zip(self._layers, noise, strict=True)
            ]
            found.append(("by score", losses))
        return found

    def _fitting(
        self,
        solve: Callable[[allocation.Costs, allocation.Bytes, float], tuple[int, ...]],
        costs: Sequence[Mapping[int, float]],
        budget: int,
    ) -> tuple[int, ...]:
        """The widths of a file that is not larger than the budget."""
        kernels = sum(size[bits] for size, bits in zip(self._sizes, self._int8, strict=True))
        room = budget - (self.int8_bytes - kernels)  # what is not kernels stays
        for _ in range(_TRIES):
            widths = solve(costs, self._sizes, room)
            over = self._file_bytes(widths) - budget
            if over <= 0:
                return widths
            room -= over
        raise RecipeError(
            f"No widths were found whose file has {budget:,} bytes at most. Give a larger budget."
        )


def _noise(layer: LayerSensitivity) -> dict[int, float]:
    return {bits: 10 ** (-found.snr_db / 10) for bits, found in layer.widths.items()}


def _recipe(base: Recipe, hosts: Sequence[Host], choice: Choice) -> Recipe:
    """The recipe with the chosen widths, as rules before its own."""
    rules = []
    groups = sorted({(choice.widths[h.layer.name], h.per_tensor) for h in hosts}, reverse=True)
    for bits, per_tensor in groups:
        named = [
            host.layer.name
            for host in hosts
            if (choice.widths[host.layer.name], host.per_tensor) == (bits, per_tensor)
        ]
        rules.append(LayerRule(named, kernel_bits=bits, per_tensor=per_tensor or None))
    return dataclasses.replace(base, layers=(*rules, *base.layers))


def _require(model: Any, recipe: Recipe, choice: Choice) -> None:
    """Raise RecipeError if rewriting by the recipe gives other widths than the chosen ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they have been shown: the model is the same
        rewritten = rewrite(model, recipe)
    for layer in integer_hosts(rewritten):
        found = {grids.of(quantizer).bits for quantizer in layer.kernel_quantizers}
        if found != {choice.widths[layer.name]}:
            raise RecipeError(
                f"The layer {layer.name!r} cannot be told from others by its name: a rule gives it "
                f"{sorted(found)} bits, not {choice.widths[layer.name]}. Rename it."
            )
