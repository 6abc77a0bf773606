"""Training of a small model under a schedule."""

from __future__ import annotations

from typing import Any

import numpy as np

import builders
import rewriter
from small_models import small


def rewritten(kind: str, *, pipeline: Any = None, seed: int = 0) -> Any:
    """The small model with a pipeline."""
    recipe = rewriter.Recipe(batch_norm_pipeline=pipeline)
    return rewriter.rewrite(small(builders.keras_of(kind), seed=seed, softmax=False), recipe)


def data(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    rng = np.random.default_rng(0)
    return builders.residual_data(count), rng.integers(0, 5, count)


def compiled(kind: str, model: Any, loss: Any = None, **options: Any) -> Any:
    """Compiled with momentum, and with a loss of logits."""
    keras = builders.keras_of(kind)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options.setdefault("optimizer", keras.optimizers.SGD(0.05, momentum=0.9))
    model.compile(loss=loss, **options)
    return model


def recorder(kind: str) -> Any:
    """A callback that writes down each step's phase, and how often anything was traced."""
    keras = builders.keras_of(kind)

    class Recorder(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.phases: list[str] = []
            self.losses: list[float] = []
            self.traces: list[int] = []
            self.count = [0]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.phases.append(rewriter.get_phase(self.model))
            self.losses.append(float(logs["loss"]))
            self.traces.append(self.count[0])

    return Recorder()


def fit(kind: str, model: Any, *callbacks: Any, **options: Any) -> Any:
    """``fit`` on :func:`data`, five steps an epoch."""
    options = {"batch_size": 8, "epochs": 1, "shuffle": False, "verbose": 0, **options}
    return model.fit(*data(), callbacks=list(callbacks), **options)
