"""Training that was broken off goes on in its phase, with the same losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from rewriter import FixedPoint, QuantizationSchedule
from rewriter.training.schedule import batch_norms
from schedules import compiled, data, fit, rewritten

both = pytest.mark.parametrize("kind", builders.KERASES)


class _Stop(Exception):
    pass


def stopper(kind: str, step: int) -> Any:
    """A callback that breaks the training off, as a machine does."""
    keras = builders.keras_of(kind)

    class Stopper(keras.callbacks.Callback):
        count = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.count += 1
            if self.count == step:
                raise _Stop

    return Stopper()


def four_for_two() -> Any:
    """Separate operations on the four variables of both layers."""
    return [
        {"gamma": FixedPoint(6), "beta": tf.math.tanh, "moving_mean": FixedPoint(8, 4),
         "moving_variance": rewriter.Clip(1e-2), "layers": "stem_bn"},
        {"gamma": rewriter.PowerOfTwo(5), "beta": FixedPoint(5), "moving_mean": tf.math.sinh,
         "moving_variance": FixedPoint(8), "layers": "alone", "phases": ["observe", "quantize"]},
    ]  # fmt: skip


SWITCHES = {"quantize_at": 12, "freeze_batch_norm_at": 22, "freeze_ranges_at": 27, "observe_for": 6}


def uninterrupted(kind: str) -> list[float]:
    """30 steps in 6 epochs of 5; each epoch's loss."""
    model = compiled(kind, rewritten(kind, pipeline=four_for_two()))
    return fit(kind, model, QuantizationSchedule(**SWITCHES), epochs=6).history["loss"]


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_resumed_from_a_saved_model(kind, suffix, tmp_path):
    """Saved in the phases observe and quantize, and with frozen statistics; with the optimizer.

    A SavedModel of tf_keras does not hold the optimizer's counter of steps.
    """
    if kind == "keras" and suffix == ".h5":
        pytest.skip("Keras 3 itself cannot train on with an optimizer from .h5")
    expected = uninterrupted(kind)
    model = compiled(kind, rewritten(kind, pipeline=four_for_two()))
    losses = []
    for epoch, phase in ((2, "observe"), (5, "quantize"), (6, "quantize")):
        options = {"initial_epoch": len(losses), "epochs": epoch}
        losses += fit(kind, model, QuantizationSchedule(**SWITCHES), **options).history["loss"]
        assert rewriter.get_phase(model) == phase
        path = tmp_path / f"model{epoch}{suffix}"
        model.save(path)
        model = builders.keras_of(kind).models.load_model(path)
        assert rewriter.get_phase(model) == phase
        codes = [int(np.asarray(n.frozen)) for n in batch_norms(model)]
        assert codes == [int(epoch >= 5)] * 2
    assert losses == expected


@both
def test_phase_comes_from_the_checkpoint(kind, tmp_path):
    """Without a schedule too: what was saved in phase quantize goes on there, not in float."""
    expected = uninterrupted(kind)
    model = compiled(kind, rewritten(kind, pipeline=four_for_two()))
    fit(kind, model, QuantizationSchedule(**SWITCHES), epochs=3)
    path = tmp_path / "model.keras"
    model.save(path)
    again = builders.keras_of(kind).models.load_model(path)
    losses = fit(kind, again, initial_epoch=3, epochs=4).history["loss"]
    assert losses == expected[3:4]


@both
@pytest.mark.parametrize("stop", [8, 14, 24])
def test_backup_and_restore(kind, stop, tmp_path):
    """Killed in the middle, in each phase, and started again: the same losses."""
    keras = builders.keras_of(kind)
    expected = uninterrupted(kind)
    options = {"save_freq": "epoch"}
    model = compiled(kind, rewritten(kind, pipeline=four_for_two()))
    backup = keras.callbacks.BackupAndRestore(str(tmp_path), **options)
    with pytest.raises(_Stop):
        fit(kind, model, QuantizationSchedule(**SWITCHES), backup, stopper(kind, stop), epochs=6)
    again = compiled(kind, rewritten(kind, pipeline=four_for_two(), seed=5))
    backup = keras.callbacks.BackupAndRestore(str(tmp_path), **options)
    found = fit(kind, again, backup, QuantizationSchedule(**SWITCHES), epochs=6).history["loss"]
    assert 0 < len(found) < 6 and found == expected[-len(found) :]


@both
def test_tensorflow_checkpoint_in_a_loop_of_ones_own(kind, tmp_path):
    """tf.train.Checkpoint in mid-phase; the loop goes on with the same losses."""
    keras = builders.keras_of(kind)
    x, y = data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    switches = {"quantize_at": 4, "freeze_batch_norm_at": 8, "observe_for": 2}

    class Loop:
        """One traced step; the schedule is applied before each."""

        def __init__(self, seed: int):
            self.model = rewritten(kind, pipeline=four_for_two(), seed=seed)
            self.optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
            self.optimizer.build(self.model.trainable_variables)
            self.schedule = QuantizationSchedule(**switches)
            self.step = tf.function(self._step)
            self.checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.optimizer)

        def _step(self, x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(y, self.model(x, training=True))
            variables = self.model.trainable_variables
            raw = [v if isinstance(v, tf.Variable) else v.value for v in variables]
            gradients = tape.gradient(value, raw)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
            return value

        def run(self, steps: int) -> list[float]:
            losses = []
            for _ in range(steps):
                start = int(self.optimizer.iterations.numpy())
                self.schedule.apply(self.model, start)
                batch = slice(8 * (start % 5), 8 * (start % 5) + 8)
                losses.append(float(self.step(tf.constant(x[batch]), tf.constant(y[batch]))))
            return losses

    whole = Loop(0)
    expected = whole.run(12)
    first = Loop(0)
    losses = first.run(6)
    path = first.checkpoint.save(str(tmp_path / "checkpoint"))
    second = Loop(7)
    second.checkpoint.restore(path).assert_existing_objects_matched()
    assert rewriter.get_phase(second.model) == "quantize"
    assert losses + second.run(6) == expected
    assert second.schedule.history[-1] == (8, "batch normalization frozen")
