"""Fine-tuning that keeps the best: after each epoch the exported file is scored."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rewriter import keras_compat
from rewriter.checking import interpreter
from rewriter.errors import RewriterError
from rewriter.export import export_tflite
from rewriter.files.replacing import replacing, write_bytes
from rewriter.training.distillation import without_noise
from rewriter.workflow import samples
from rewriter.workflow.tasks import Task

_STATE, _LAST, _BEST = "state.json", "last.keras", "best.keras"


class Epochs(NamedTuple):
    """The epochs of one fine-tuning.

    Attributes:
      first: the number of the first one; 0 is the calibrated model, before any training.
      scores: of the exported file after each.
      losses: of the training in each; None for epoch 0.
      shown: a score as text.
      task: the name of what was trained for.
      unit: how scores are drawn, see :class:`rewriter.workflow.tasks.Task`.
    """

    first: int
    scores: tuple[float, ...]
    losses: tuple[float | None, ...]
    shown: Callable[[float], str]
    task: str
    unit: tuple[float, str]


class Progress:
    """What has been done so far, in a folder, so that a run that ended can go on.

    Args:
      folder: where it is kept, made if it is not there; None: nowhere.
      load: reads a model that was saved there.
      of: what the run is of, as text: another one's epochs are not gone on from.
    """

    def __init__(self, folder: Path | None, load: Callable[[Path], Any], of: str):
        self.folder = folder
        self._load = load
        self._of = of
        self.epochs = 0
        self.best: float | None = None

    def read(self) -> bool:
        """Whether something is there to go on from; then ``epochs`` and ``best`` are from there.

        Raises:
          RewriterError: it is of another run.
        """
        if self.folder is None or not (self.folder / _STATE).is_file():
            return False
        state = json.loads((self.folder / _STATE).read_text())
        if state.get("of") != self._of:
            raise RewriterError(
                f"{str(self.folder)!r} holds the epochs of another run: its model, data, recipe, "
                "learning rate or batch size is not this one's. Give another folder, or remove it "
                "to begin anew."
            )
        self.epochs, self.best = int(state["epochs"]), float(state["best"])
        return True

    def model(self, best: bool = False) -> Any:
        """The model after the last epoch, or the best one."""
        return self._load((self.folder or Path()) / (_BEST if best else _LAST))

    def keep(self, model: Any, epochs: int, score: float) -> None:
        """After an epoch: the model, and whether it is the best."""
        better = self.best is None or score > self.best
        self.epochs, self.best = epochs, score if better or self.best is None else self.best
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (_LAST, *([_BEST] if better else [])):
            with replacing(self.folder / name) as path:
                model.save(path)
        # Last: what it speaks of is there by then.
        state = {"epochs": self.epochs, "best": self.best, "of": self._of}
        write_bytes(self.folder / _STATE, json.dumps(state).encode())

    def done(self, epochs: int) -> None:
        """Remove the folder if so many have been run: now that the output is there."""
        if self.epochs >= epochs and self.folder is not None and self.folder.is_dir():
            for name in (_STATE, _BEST, _LAST):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()


def fine_tune(
    qat: Any,
    task: Task,
    x: Any,
    held_out: tuple[Any, np.ndarray],
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    kept: Progress,
    allow_float: bool,
    say: Callable[[str], None],
) -> Epochs:
    """Train a calibrated model, and leave it with the weights of its best epoch.

    Adam with a cosine from ``learning_rate`` to 0. After each epoch the model is exported, and the
    file scored in LiteRT on what is held out; the untrained model is epoch 0. An interrupt (Ctrl-C)
    ends it with the best so far.

    Args:
      qat: the model, in phase ``quantize``.
      task: with the labels of ``x``.
      x: inputs (N, ...), or several.
      held_out: inputs and labels that are not trained on.
      epochs: in all, those that are ``kept`` included.
      learning_rate: at the start.
      batch_size: samples in a step.
      kept: what has been done, and where it is kept.
      allow_float: as for ``export_tflite``.
      say: gets a line after each epoch.

    Returns:
      The epochs run here, epoch 0 first if it was.
    """
    keras = keras_compat.flavour_of(qat).keras
    steps = -(-len(task.labels) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, max(epochs * steps, 1))
    optimizer = keras.optimizers.Adam(schedule)
    qat.compile(optimizer, task.loss(keras))
    optimizer.build(qat.trainable_variables)
    optimizer.iterations.assign(kept.epochs * steps)
    first = 0 if kept.best is None else kept.epochs + 1
    scores: list[float] = []
    losses: list[float | None] = []
    best = qat.get_weights() if kept.best is None else kept.model(best=True).get_weights()

    def judge(epoch: int, loss: float | None) -> list[Any]:
        score = file_score(qat, task, *held_out, allow_float=allow_float)
        better = kept.best is None or score > kept.best
        scores.append(score)
        losses.append(loss)
        kept.keep(qat, epoch, score)
        say(f"epoch {epoch} of {epochs}: file {task.shown(score)}{' (best)' if better else ''}")
        return qat.get_weights() if better else best

    if kept.best is None:
        best = judge(0, None)
    try:
        for epoch in range(kept.epochs + 1, epochs + 1):
            # Not around all: models are saved between epochs, with the noise that they have.
            with without_noise(qat) if task.still else contextlib.nullcontext():
                seen = _fit(qat, x, task.labels, batch_size, seed=epoch)
            best = judge(epoch, float(seen.history["loss"][-1]))
    except KeyboardInterrupt:
        say(f"interrupted: the best of {kept.epochs} epochs is taken")
    qat.set_weights(best)
    if task.still:
        qat.make_train_function(force=True)  # the one at hand was traced without noise
    return Epochs(first, tuple(scores), tuple(losses), task.shown, task.name, task.unit)


def _fit(qat: Any, x: Any, labels: np.ndarray, batch_size: int, seed: int) -> Any:
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    if any(isinstance(each, samples.Lazy) for each in values):
        made = samples.batches(keras_compat.flavour_of(qat), values, labels, batch_size, seed)
        return qat.fit(made, epochs=1, verbose=0, shuffle=False)
    return qat.fit(x, labels, batch_size=batch_size, epochs=1, verbose=0)


def file_score(
    qat: Any, task: Task, x: Any, labels: np.ndarray, *, allow_float: bool = False
) -> float:
    """The score of the file that a model is exported to.

    Args:
      qat: the model.
      task: how outputs are scored.
      x: inputs (N, ...), or several in the order of the model's.
      labels: of them.
      allow_float: as for ``export_tflite``.
    """
    with tempfile.TemporaryDirectory(prefix="rewriter-") as folder:
        path = Path(folder) / "model.tflite"
        export_tflite(qat, path, allow_float=allow_float)
        return task.score(run_file(path, x), labels)


def run_file(path: Path, x: Any) -> np.ndarray:
    """The first output of a file, real numbers.

    Args:
      path: the file.
      x: inputs (N, ...), or several in the order of the file's.
    """
    runner = interpreter.Runner(path.read_bytes(), isolated=True)
    try:
        values = list(x) if isinstance(x, (list, tuple)) else [x]
        parts = [runner.run(chunk).outputs[0] for chunk in samples.chunks(values)]
        stored = parts[0] if len(parts) == 1 else np.concatenate(parts)
        quantization = runner.quantization(runner.file.outputs[0])
    finally:
        runner.close()
    return stored if quantization is None else interpreter.dequantize(stored, quantization)
