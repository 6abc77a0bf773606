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
from rewriter.errors import ExportError
from rewriter.export import ExportReport, export_tflite
from rewriter.files import outputs as outputs_of_files
from rewriter.rewriting.plan import Plan, plan
from rewriter.rewriting.recipe import Recipe
from rewriter.rewriting.rewrite import rewrite
from rewriter.training.calibrate import calibrate
from rewriter.workflow import objectives, tasks
from rewriter.workflow.fine_tuning import Epochs, run_file
from rewriter.workflow.finetune import Training, train
from rewriter.workflow.samples import (
    check_enough,
    chosen,
    inputs_of,
    packed,
    predicted,
    split,
    spread,
)

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
      tuning: of the same epochs the losses, and the number of the first; None without any.
      tested: the samples that ``scores`` are of, and what the models said; None without labels.
      float_bytes: what the weights of the trained model take.
    """

    model: Any
    plan: Plan
    export: ExportReport
    verification: Verification
    task: str | None
    scores: Mapping[str, float]
    epochs: tuple[float, ...] = ()
    tuning: Epochs | None = dataclasses.field(default=None, repr=False, compare=False)
    tested: tasks.Tested | None = dataclasses.field(default=None, repr=False, compare=False)
    float_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "plan": self.plan.to_dict(),
            "export": self.export.to_dict(),
            "verification": self.verification.to_dict(),
            "task": self.task,
            "scores": dict(self.scores),
            "epochs": list(self.epochs),
            "losses": [] if self.tuning is None else list(self.tuning.losses),
            "float_bytes": self.float_bytes,
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
                shown = f"{score:.6g}" if self.tested is None else self.tested.task.shown(score)
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
    loss: Any = None,
    metric: Any = None,
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
      loss: to train by: a name of ``keras.losses``, or a function or object as ``compile`` takes
        it; None: what suits the labels. With it, any labels that it takes are taken.
      metric: to score by: ``"accuracy"``, a name of ``keras.metrics``, a metric, or a function of
        labels and outputs (N, ...); None: what suits the labels, else the loss. One that is called
        an error, loss, crossentropy or divergence is better when it is smaller, any other when it
        is larger.
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
    x = inputs_of(model, data)
    count = len(x[0])
    _, held = split(count)
    if epochs:
        check_enough(count)
    planned = plan(model)
    say(str(planned))
    qat = rewrite(model, recipe)
    sample = spread(count, calibration_samples)
    say(f"calibrating on {len(sample)} of {count} samples")
    calibrate(
        qat,
        packed([values[sample] for values in x]),
        method=method,
        progress=progress,
        for_training=False,  # its training has frozen statistics
    )
    task, outputs = None, None
    if labels is not None or epochs or loss is not None or metric is not None:
        outputs = predicted(model, x)
        task = objectives.of(model, outputs, labels, say, loss, metric)
    tuning: Epochs | None = None
    kept = None
    if epochs and outputs is not None:
        aim = task if task is not None and not distill else tasks.imitation(outputs)
        training = Training(epochs, learning_rate, batch_size, allow_float, resume, say)
        qat, tuning, kept = train(qat, aim, x, training)
    say(f"exporting to {output}")
    report = export_tflite(
        qat, output, float_io=float_io, allow_float=allow_float, batch_size=file_batch
    )
    test_x, test_labels = _test(model, task, test, x, held, (loss, metric))
    few = [values[:_VERIFIED] for values in test_x]
    say(f"verifying on {len(few[0])} samples")
    verification = verify(qat, output, packed(few), progress=progress)
    found: dict[str, float] = {}
    tested: tasks.Tested | None = None
    if task is not None and test_labels is not None:
        say(f"scoring on {len(test_x[0])} samples")
        said = {
            "float model": predicted(model, test_x),
            "quantized model": predicted(qat, test_x),
            "file": run_file(Path(output), list(test_x)),
        }
        found = {name: task.score(values, test_labels) for name, values in said.items()}
        classes = task.classes
        chosen = {} if classes is None else {name: classes(values) for name, values in said.items()}
        tested = tasks.Tested(tuple(test_x), test_labels, task, chosen)
    if kept is not None:
        kept.done(epochs)
    named = None if task is None else task.name
    return Quantized(
        qat,
        planned,
        report,
        verification,
        named,
        found,
        () if tuning is None else tuning.scores,
        tuning,
        tested,
        sum(array.nbytes for array in model.get_weights()),
    )


def _test(
    model: Any,
    task: tasks.Task | None,
    test: tuple[Any, Any] | None,
    x: list[np.ndarray],
    held: np.ndarray,
    objective: tuple[Any, Any],
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The samples to report on, with their labels in the task's form."""
    if test is None:
        places = held if len(held) else np.arange(len(x[0]))
        return [chosen(v, places) for v in x], None if task is None else task.labels[places]
    inputs = inputs_of(model, test[0])
    if task is None or test[1] is None:
        return inputs, None
    keras = keras_compat.flavour_of(model).keras
    return inputs, objectives.find(keras, predicted(model, inputs), test[1], *objective).labels
