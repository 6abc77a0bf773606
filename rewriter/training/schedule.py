"""Train in float, then quantize: a callback that switches a running ``fit``.

The phase and the freezing of the statistics are variables of the layers, read by conditions in
the graph. The callback only assigns them: nothing is compiled or traced again, and a checkpoint
resumes in the phase that it was saved in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewriter import keras_compat
from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import flat_layers
from rewriter.quantization import phases

GRADUAL = ("layers", "kernels_first")


def freeze_batch_norm(model: Any, frozen: bool = True) -> None:
    """Let training use the moving statistics of every batch normalization, and keep them.

    Args:
      model: a rewritten model, or one built with our batch normalization. Nothing is retraced.
      frozen: False to let the statistics follow the batches again.

    Raises:
      UnsupportedModelError: if the model has no batch normalization of ours.
    """
    norms = batch_norms(model)
    if not norms:
        raise UnsupportedModelError(
            f"The model {model.name!r} has no quantization-aware batch normalization. "
            "Pass the model that rewriter.rewrite returned."
        )
    for layer in norms:
        layer.frozen.assign(int(frozen))


def batch_norms(model: Any) -> list[Any]:
    """Every batch normalization of ours in the model, those inside hosts included."""
    return [layer for layer in flat_layers(model) if hasattr(layer, "variables_in")]


class QuantizationSchedule(*keras_compat.callback_bases()):  # type: ignore[misc]
    """A callback for ``fit`` of either Keras: float, observe, quantize, freeze.

    From the beginning until ``quantize_at`` the model trains in float and, with ``observe``,
    records the ranges of its activations. Steps are the optimizer's own, so a resumed training
    goes on where it was. Where a model is compiled with ``steps_per_execution=N``, callbacks run
    once in N steps: what falls on one of these steps takes effect at the first of them.

    Args:
      quantize_at: when to switch to phase ``quantize``; None: never.
      freeze_batch_norm_at: from when on the moving statistics are used in training too, and
        kept; None: never.
      freeze_ranges_at: from when on the ranges of the activations are kept; None: never.
      unit: ``"step"`` or ``"epoch"``: what the times count.
      observe: record ranges during the last part of the float phase.
      observe_for: how long before ``quantize_at`` to begin with that; None: from the start.
      gradual: None: all at once; ``"layers"``: one layer after the other from the input on;
        ``"kernels_first"``: the kernels at ``quantize_at``, the activations ``gradual_for``
        later.
      gradual_for: over how long.
      verbose: 1: say so when something is switched.

    Raises:
      ValueError: for an argument that makes no sense, by name.
    """

    def __init__(
        self,
        quantize_at: int | None = 0,
        freeze_batch_norm_at: int | None = None,
        *,
        freeze_ranges_at: int | None = None,
        unit: str = "step",
        observe: bool = True,
        observe_for: int | None = None,
        gradual: str | None = None,
        gradual_for: int = 0,
        verbose: int = 0,
    ):
        super().__init__()
        times = {
            "quantize_at": quantize_at,
            "freeze_batch_norm_at": freeze_batch_norm_at,
            "freeze_ranges_at": freeze_ranges_at,
            "observe_for": observe_for,
            "gradual_for": gradual_for,
        }
        for name, value in times.items():
            if value is None and name != "gradual_for":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0 on. Received: {value!r}.")
        if unit not in ("step", "epoch"):
            raise ValueError(f"unit must be 'step' or 'epoch'. Received: {unit!r}.")
        if gradual is not None and gradual not in GRADUAL:
            raise ValueError(f"gradual must be one of {GRADUAL} or None. Received: {gradual!r}.")
        self.quantize_at = quantize_at
        self.freeze_batch_norm_at = freeze_batch_norm_at
        self.freeze_ranges_at = freeze_ranges_at
        self.unit = unit
        self.observe = observe
        self.observe_for = observe_for
        self.gradual = gradual
        self.gradual_for = gradual_for
        self.verbose = verbose
        self.history: list[tuple[int, str]] = []
        self._epoch = 0
        self._step: int | None = None
        self._first = 0
        self._at_once: int | None = None
        self._began: int | None = None  # the first of several steps that are taken at once
        self._last: dict[str, Any] = {}

    # The callback's side

    def on_train_begin(self, logs: Any = None) -> None:
        self._last = {}
        self._step = self._at_once = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        if self.unit == "epoch":
            self.apply(self.model, epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.unit == "step":
            # The counter is read once; afterwards the batches are counted here, without a
            # transfer from the device in every step.
            if self._step is None or batch == 0:
                self._step, self._first = int(self.model.optimizer.iterations.numpy()), batch
            several = getattr(self.model.optimizer, "gradient_accumulation_steps", None) or 1
            last = batch + self._steps_at_once(batch) - 1
            self._began = self._step + (batch - self._first) // several
            self.apply(self.model, self._step + (last - self._first) // several)
            self._began = None

    def _steps_at_once(self, batch: int) -> int:
        """How many steps are taken until the next call of a callback."""
        if self._at_once is None or batch == 0:
            flavour = keras_compat.flavour_of(self.model)
            self._at_once = flavour.steps_per_execution(self.model)
        steps = (self.params or {}).get("steps")
        return self._at_once if steps is None else max(min(self._at_once, steps - batch), 1)

    # By hand, for loops of one's own

    def apply(self, model: Any, time: int) -> None:
        """Bring ``model`` to what the schedule says for ``time`` (in ``unit``).

        Call it before each step of a training loop of your own. Assigns only what changes.

        Raises:
          UnsupportedModelError: the model has not been rewritten.
        """
        layers = list(phases.phased_layers(model))
        if not layers:
            raise UnsupportedModelError(
                f"The model {model.name!r} has no quantization-aware layers. "
                "Pass the model that rewriter.rewrite returned."
            )
        codes = self._codes(layers, time)
        if codes != self._last.get("codes"):
            for layer, code in zip(layers, codes, strict=True):
                phases.assign(layer, code)
            self._note("codes", codes, time, phases.get_phase(model))
        frozen = self._reached(self.freeze_batch_norm_at, time)
        if self.freeze_batch_norm_at is not None and frozen != self._last.get("frozen"):
            freeze_batch_norm(model, frozen)
            state = "frozen" if frozen else "free"
            self._note("frozen", frozen, time, f"batch normalization {state}")

    def _note(self, key: str, value: Any, time: int, what: str) -> None:
        self._last[key] = value
        time = time if self._began is None else self._began
        self.history.append((time, what))
        if self.verbose:
            from tqdm.auto import tqdm

            tqdm.write(f"{self.unit} {time}: {what}")

    @staticmethod
    def _reached(start: int | None, time: int) -> bool:
        return start is not None and time >= start

    def _codes(self, layers: Sequence[Any], time: int) -> list[int]:
        final = phases.QUANTIZE
        if self._reached(self.freeze_ranges_at, time):
            final = phases.QUANTIZE_FROZEN
        before = phases.FLOAT
        if self.observe and self.quantize_at is not None:
            since = 0 if self.observe_for is None else self.quantize_at - self.observe_for
            before = phases.OBSERVE if time >= since else phases.FLOAT
        return [final if self._reached(start, time) else before for start in self._starts(layers)]

    def _starts(self, layers: Sequence[Any]) -> list[int | None]:
        """When each layer is quantized."""
        start = self.quantize_at
        if start is None or self.gradual is None:
            return [start] * len(layers)
        if self.gradual == "kernels_first":
            late = start + self.gradual_for
            return [late if hasattr(layer, "range_variables") else start for layer in layers]
        count = max(len(layers) - 1, 1)
        return [start + self.gradual_for * i // count for i in range(len(layers))]
