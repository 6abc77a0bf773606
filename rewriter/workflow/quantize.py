"""From a trained model to a verified integer file, in one call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rewriter import keras_compat
from rewriter.checking.verify import Verification, verify
from rewriter.errors import ExportError, RewriterError
from rewriter.export import ExportReport, export_tflite
from rewriter.files import outputs as outputs_of_files
from rewriter.reading.load import load_model
from rewriter.rewriting.plan import Plan, plan
from rewriter.rewriting.recipe import Recipe
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate
from rewriter.training.schedule import freeze_batch_norm
from rewriter.workflow import arrays, tasks
from rewriter.workflow.fine_tuning import Progress, fine_tune, run_file

_VERIFIED = 256  # samples


@dataclasses.dataclass(frozen=True)
class Quantized:
    """What :func:`quantize` has done.

    Attributes:
      model: the quantization-aware model that the file was made of.
      plan: what became of every batch normalization.
      export: what was written.
      verification: file, twin and model on test samples.
      task: what the labels are for; None without labels.
      scores: of ``"float model"``, ``"quantized model"`` and ``"file"`` on the test samples; shares
        of samples for classes, minus the mean squared error for numbers.
      epochs: the scores of the file after each epoch, on samples that were not trained on.
    """

    model: Any
    plan: Plan
    export: ExportReport
    verification: Verification
    task: str | None
    scores: Mapping[str, float]
    epochs: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "plan": self.plan.to_dict(),
            "export": self.export.to_dict(),
            "verification": self.verification.to_dict(),
            "task": self.task,
            "scores": dict(self.scores),
            "epochs": list(self.epochs),
        }

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        lines = [str(self.export), str(self.verification)]
        if self.scores:
            lines.append(f"{self.task}, on the test samples:")
            width = max(map(len, self.scores))
            for name, score in self.scores.items():
                squared = f"mean squared error {-score:.6g}"
                shown = squared if self.task == tasks.REGRESSION else f"{100 * score:.2f} %"
                lines.append(f"  {name.ljust(width)}  {shown}")
        return "\n".join(lines)


def quantize(
    model: Any,
    data: Any,
    labels: Any = None,
    *,
    output: str | Path,
    test: tuple[Any, Any] | None = None,
    recipe: Recipe | str | None = None,
    method: str | None = None,
    calibration_samples: int = 512,
    epochs: int = 0,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    distill: bool = False,
    seed: int = 0,
    float_io: bool = False,
    allow_float: bool = False,
    file_batch: int | None = 1,
    resume: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Quantized:
    """Plan, rewrite, calibrate, fine-tune, export and verify.

    Args:
      model: a trained model of either Keras; it is left as it is.
      data: inputs: an array (N, ...), or a list, tuple or dict of arrays by the model's inputs.
      labels: of ``data``: classes (N,) or one-hot (N, C), 0 and 1 for one output, or numbers of the
        outputs' shape. The task is told from them and the outputs.
      output: the ``.tflite`` file to write.
      test: inputs and labels to report on; None: the tenth of ``data`` that is not trained on.
      recipe: how to quantize, see :func:`rewriter.rewrite`.
      method: of calibration, see :func:`rewriter.calibrate`.
      calibration_samples: how many of ``data`` calibrate, spread evenly.
      epochs: of fine-tuning, with Adam and a cosine from ``learning_rate`` to 0, the statistics of
        the normalizations frozen. The best epoch by the exported file's score is taken, the
        calibrated model among them. 0: none.
      learning_rate: at the start of fine-tuning.
      batch_size: samples in a step.
      distill: train towards the outputs of ``model`` instead of the labels, as is done without any.
      seed: of all that is random.
      float_io, allow_float: see :func:`rewriter.export_tflite`.
      file_batch: its ``batch_size``.
      resume: a folder in which fine-tuning keeps each epoch, and from which it goes on. It is
        removed when all are done.
      progress: show progress bars.
      say: gets lines to show.

    Returns:
      The model, and what was found on the way.

    Raises:
      RewriterError: as the steps do, or for labels that fit no task, or data too few to hold some
        out.
      OSError: if the file cannot be written.
    """
    # Known before the work is done, not after.
    refusal = outputs_of_files.refusal(output, (".tflite",), "A LiteRT file")
    if refusal is not None:
        raise ExportError(refusal)
    flavour = keras_compat.flavour_of(model)
    flavour.keras.utils.set_random_seed(seed)
    x = arrays.inputs(model, data)
    count = len(x[0])
    train, held = _split(count)
    if epochs and (not len(train) or not len(held)):
        raise RewriterError(f"Fine-tuning needs at least 10 samples. Received: {count}.")
    planned = plan(model)
    say(str(planned))
    qat = rewrite(model, recipe)
    sample = np.arange(min(calibration_samples, count)) * count // min(calibration_samples, count)
    structured = [values[sample] for values in x]
    calibrate(qat, arrays.packed(structured), method=method, progress=progress)
    task, outputs = None, None
    if labels is not None or epochs:
        outputs = _predicted(model, x)
        if len(model.outputs) != 1:
            raise RewriterError(
                f"Labels and fine-tuning need a model with one output. Received: "
                f"{len(model.outputs)}. Train it by your own loop, between calibrate and "
                "export_tflite."
            )
        if labels is not None:
            task = tasks.find(outputs, labels)
            if len(task.labels) != count:
                raise RewriterError(
                    f"Data and labels differ in number. Received: {count} samples and "
                    f"{len(task.labels)} labels."
                )
            say(f"task: {task.name}")
    scores: list[float] = []
    kept: Progress | None = None
    if epochs and outputs is not None:
        aim = task if task is not None and not distill else tasks.imitation(outputs)
        kept = Progress(None if resume is None else Path(resume), load_model)
        if kept.read():
            qat = kept.model()
            say(f"going on after epoch {kept.epochs}")
        freeze_batch_norm(qat)
        held_out = (arrays.packed([v[held] for v in x]), aim.labels[held])
        scores = fine_tune(
            qat,
            dataclasses.replace(aim, labels=aim.labels[train]),
            arrays.packed([v[train] for v in x]),
            held_out,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            kept=kept,
            allow_float=allow_float,
            say=say,
        )
    report = export_tflite(
        qat, output, float_io=float_io, allow_float=allow_float, batch_size=file_batch
    )
    test_x, test_labels = _test(model, task, test, x, held)
    few = [values[:_VERIFIED] for values in test_x]
    verification = verify(qat, output, arrays.packed(few), progress=progress)
    found: dict[str, float] = {}
    if task is not None and test_labels is not None:
        for name, tested in (("float model", model), ("quantized model", qat)):
            found[name] = task.score(_predicted(tested, test_x), test_labels)
        found["file"] = task.score(run_file(Path(output), list(test_x)), test_labels)
    if kept is not None and kept.epochs >= epochs:
        kept.remove()
    named = None if task is None else task.name
    return Quantized(qat, planned, report, verification, named, found, tuple(scores))


def _split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples to train on, and every tenth, which is held out."""
    held = np.arange(count) % 10 == 9
    return np.flatnonzero(~held), np.flatnonzero(held)


def _predicted(model: Any, x: list[np.ndarray]) -> np.ndarray:
    outputs = model.predict(arrays.packed(x), verbose=0)
    first: np.ndarray = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    return first


def _test(
    model: Any,
    task: tasks.Task | None,
    test: tuple[Any, Any] | None,
    x: list[np.ndarray],
    held: np.ndarray,
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The samples to report on, with their labels in the task's form."""
    if test is None:
        places = held if len(held) else np.arange(len(x[0]))
        return [v[places] for v in x], None if task is None else task.labels[places]
    inputs = arrays.inputs(model, test[0])
    if task is None or test[1] is None:
        return inputs, None
    return inputs, tasks.find(_predicted(model, inputs), test[1]).labels
