"""Phases that change while a compiled ``fit`` runs: when, without retracing, and after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import real_models
import rewriter
from rewriter import FixedPoint, QuantizationSchedule, phases
from rewriter.errors import UnsupportedModelError

both = pytest.mark.parametrize("kind", builders.KERASES)


def small(keras: Any, *, seed: int = 0) -> Any:
    """A convolution with a normalization fused into it, and a normalization alone."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="relu")(x))
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(5, name="scores")(x), name="small")


def rewritten(kind: str, *, pipeline: Any = None, seed: int = 0) -> Any:
    recipe = rewriter.Recipe(batch_norm_pipeline=pipeline)
    return rewriter.rewrite(small(builders.keras_of(kind), seed=seed), recipe)


def data(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return builders.residual_data(count), rng.integers(0, 5, count)


def compiled(kind: str, model: Any, loss: Any = None, **options: Any) -> Any:
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
    options = {"batch_size": 8, "epochs": 1, "shuffle": False, "verbose": 0, **options}
    return model.fit(*data(), callbacks=list(callbacks), **options)


# Acceptance: no retracing


@both
@pytest.mark.parametrize("jit", [False, True], ids=["", "jit"])
def test_nothing_is_traced_again(kind, jit):
    """Through all phases, ranges and statistics frozen at the end, with a pipeline."""
    keras = builders.keras_of(kind)
    seen = recorder(kind)

    def loss(y: Any, scores: Any) -> Any:  # Python code runs when a graph is traced
        seen.count[0] += 1
        return keras.losses.sparse_categorical_crossentropy(y, scores, from_logits=True)

    pipeline = {name: FixedPoint(8) for name in ("gamma", "beta", "moving_mean", "moving_variance")}
    model = compiled(kind, rewritten(kind, pipeline=pipeline), loss, jit_compile=jit)
    if hasattr(model, "run_eagerly"):
        assert not model.run_eagerly
    schedule = QuantizationSchedule(6, 12, observe_for=3, freeze_ranges_at=14)
    fit(kind, model, schedule, seen, epochs=4)
    assert seen.phases == ["float"] * 3 + ["observe"] * 3 + ["quantize"] * 14
    # tf.function traces its first call twice: once more to create the optimizer's variables.
    assert seen.traces[0] in (1, 2) and set(seen.traces) == {seen.traces[0]}
    counted = getattr(model.train_function, "experimental_get_tracing_count", None)
    if counted is not None:
        assert counted() == seen.traces[0] or jit
    assert np.isfinite(seen.losses).all()
    frozen = {int(np.asarray(layer.frozen)) for layer in rewriter.schedule.batch_norms(model)}
    codes = {int(np.asarray(layer.phase)) for layer in phases.phased_layers(model)}
    assert frozen == {1} and codes == {phases.QUANTIZE_FROZEN}
    assert schedule.history == [
        (0, "float"),
        (0, "batch normalization free"),
        (3, "observe"),
        (6, "quantize"),
        (12, "batch normalization frozen"),
        (14, "quantize"),
    ]


# Acceptance: phase float is the stock model, step by step


def residual_block(keras: Any, x: Any, filters: int, name: str, activation: str) -> Any:
    layers = keras.layers

    def conv(x: Any, stride: int, size: int, end: str) -> Any:
        x = layers.Conv2D(
            filters, size, strides=stride, padding="same", use_bias=False, name=f"{name}_{end}"
        )(x)
        return layers.BatchNormalization(name=f"{name}_{end}_bn")(x)

    shortcut = conv(x, 2, 1, "shortcut")
    x = layers.Activation(activation, name=f"{name}_act1")(conv(x, 2, 3, "conv1"))
    x = layers.Add(name=f"{name}_add")([conv(x, 1, 3, "conv2"), shortcut])
    return layers.Activation(activation, name=f"{name}_act2")(x)


def residual(keras: Any, activation: str) -> Any:
    """A small residual network with 7 normalizations, for 32x32 images."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.Activation(activation, name="stem_act")(layers.BatchNormalization(name="stem_bn")(x))
    x = residual_block(keras, x, 16, "a", activation)
    x = residual_block(keras, x, 32, "b", activation)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(10, name="scores")(x), name="residual")


@both
@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "rate", "momentum"), [("silu", 0.02, 0.9), ("relu", 0.002, 0.0)]
)
def test_loss_curve_in_float_is_the_stock_models(kind, activation, rate, momentum, shared):
    """200 steps on real images: each loss within 1e-3, and the variables in the end.

    With ReLU and large steps two stock models that differ by one rounding part too: an input
    crosses the kink in one of them only. A smooth activation shows the layers as they are.
    """
    keras = builders.keras_of(kind)
    arrays = real_models.cifar(shared)
    x = arrays["x_train"][:3200].astype(np.float32) / 127.5 - 1
    y = arrays["y_train"][:3200].astype(np.int64).ravel()
    stock = residual(keras, activation)
    curves = []
    models = (stock, rewriter.rewrite(stock))
    for model in models:
        compiled(kind, model, optimizer=keras.optimizers.SGD(rate, momentum=momentum))
        curves.append([])
        for step in range(200):
            batch = slice(32 * (step % 100), 32 * (step % 100) + 32)
            curves[-1].append(float(np.ravel(model.train_on_batch(x[batch], y[batch]))[0]))
    expected, found = np.array(curves)
    assert expected[-20:].mean() < expected[:20].mean() - 0.05  # it learns
    off = np.abs(found - expected) / expected
    assert off.max() <= (1e-4 if activation == "silu" else 1e-3), f"{off.argmax()}: {off.max():.2e}"
    before, after = (builders.weights_by_name(model) for model in models)
    for name, value in before.items():
        np.testing.assert_allclose(
            after[name], value, rtol=1e-2, atol=1e-2 * np.abs(value).max(), err_msg=name
        )


# When


@both
@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_units(kind, unit):
    seen = recorder(kind)
    model = compiled(kind, rewritten(kind))
    fit(kind, model, QuantizationSchedule(2, 3, unit=unit), seen, epochs=4)
    per = 1 if unit == "step" else 5
    assert seen.phases == ["observe"] * 2 * per + ["quantize"] * (20 - 2 * per)


@both
def test_switches_change_what_is_computed(kind):
    """Float and observe are the same numbers; quantize is not, and frozen is not again."""
    curves = {}
    for name, schedule in {
        "float": QuantizationSchedule(None),
        "observe": QuantizationSchedule(100),
        "quantize": QuantizationSchedule(4),
        "frozen": QuantizationSchedule(4, 7),
        "without observing": QuantizationSchedule(4, observe=False),
    }.items():
        seen = recorder(kind)
        model = compiled(kind, rewritten(kind))
        # Each step's loss, not the mean so far.
        losses = [
            float(np.ravel(model.train_on_batch(x, y))[0])
            for x, y in _scheduled(model, schedule, seen)
        ]
        curves[name] = np.array(losses)
    assert np.array_equal(curves["float"], curves["observe"])
    for name in ("quantize", "without observing"):
        assert np.array_equal(curves[name][:4], curves["float"][:4])
        assert (curves[name][4:] != curves["float"][4:]).any()
        np.testing.assert_allclose(curves[name][:5], curves["float"][:5], rtol=0.05)
    assert np.array_equal(curves["frozen"][:7], curves["quantize"][:7])
    assert (curves["frozen"][7:] != curves["quantize"][7:]).all()


def _scheduled(model: Any, schedule: Any, seen: Any) -> Any:
    """Batches; the schedule is applied by hand before each."""
    x, y = data(80)
    for step in range(10):
        schedule.apply(model, step)
        yield x[8 * step : 8 * step + 8], y[8 * step : 8 * step + 8]


@both
def test_gradual_by_layers(kind):
    """One after the other, from the input on; all by the end."""
    model = rewriter.rewrite(builders.residual(builders.keras_of(kind)))
    schedule = QuantizationSchedule(10, gradual="layers", gradual_for=20)
    quantized: list[set[str]] = []
    for step in range(35):
        schedule.apply(model, step)
        quantized.append(
            {
                layer.name
                for layer in phases.phased_layers(model)
                if int(np.asarray(layer.phase)) == 2
            }
        )
    total = len(list(phases.phased_layers(model)))
    assert not quantized[9] and 0 < len(quantized[10]) < total / 3
    assert all(a <= b for a, b in zip(quantized, quantized[1:], strict=False))
    sizes = [len(names) for names in quantized]
    assert sizes[29] < sizes[30] and rewriter.get_phase(model) == "quantize"
    assert max(b - a for a, b in zip(sizes[10:], sizes[11:], strict=False)) <= total / 4
    depth = ["image_quantize", "stem", "dw", "pw", "alone", "scores"]
    when = [next(i for i, names in enumerate(quantized) if name in names) for name in depth]
    assert when == sorted(when) and len(set(when)) == len(when)


@both
def test_kernels_first(kind):
    model = rewriter.rewrite(builders.residual(builders.keras_of(kind)))
    schedule = QuantizationSchedule(5, gradual="kernels_first", gradual_for=3)

    def codes(kinds: tuple[str, ...]) -> set[int]:
        found = phases.phased_layers(model)
        return {int(np.asarray(f.phase)) for f in found if type(f).__name__ in kinds}

    table = []
    for step in range(9):
        schedule.apply(model, step)
        table.append([codes(("QuantizedHost", "FusedBatchNormalization")), codes(("Quantize",))])
    assert table == [[{1}, {1}]] * 5 + [[{2}, {1}]] * 3 + [[{2}, {2}]]
    assert [what for _, what in schedule.history] == ["observe", "mixed", "quantize"]


@both
def test_gradual_training_runs(kind):
    for gradual in ("layers", "kernels_first"):
        seen = recorder(kind)
        model = compiled(kind, rewritten(kind))
        fit(kind, model, QuantizationSchedule(4, gradual=gradual, gradual_for=6), seen, epochs=3)
        assert seen.phases == ["observe"] * 4 + ["mixed"] * 6 + ["quantize"] * 5
        assert np.isfinite(seen.losses).all()


@both
def test_several_steps_per_execution(kind):
    """A call of the train function takes several steps: the switch is made at its beginning."""
    model = compiled(kind, rewritten(kind), steps_per_execution=2)
    schedule = QuantizationSchedule(3)
    fit(kind, model, schedule, epochs=2, batch_size=10)
    assert schedule.history == [(0, "observe"), (4, "quantize")]


def test_accumulated_gradients():
    """Keras 3 may take several batches for one step of the optimizer: those steps count."""
    keras = pytest.importorskip("keras")
    optimizer = keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)
    model = compiled("keras", rewritten("keras"), optimizer=optimizer)
    seen = recorder("keras")
    fit("keras", model, QuantizationSchedule(4), seen, batch_size=10, epochs=4)
    assert seen.phases == ["observe"] * 8 + ["quantize"] * 8


@both
def test_says_what_it_does(kind, capfd):
    model = rewritten(kind)
    QuantizationSchedule(0, 0, verbose=1).apply(model, 0)
    output = "".join(capfd.readouterr())
    assert "step 0: quantize" in output and "step 0: batch normalization frozen" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize_at": -1}, "quantize_at must be a whole number from 0 on. Received: -1"),
        ({"quantize_at": 1.5}, "quantize_at"),
        ({"quantize_at": True}, "quantize_at"),
        ({"freeze_batch_norm_at": "3"}, "freeze_batch_norm_at"),
        ({"freeze_ranges_at": -2}, "freeze_ranges_at"),
        ({"observe_for": -2}, "observe_for"),
        ({"gradual": "layers", "gradual_for": None}, "gradual_for"),
        ({"unit": "batch"}, "unit must be 'step' or 'epoch'. Received: 'batch'"),
        ({"gradual": "channels"}, "gradual must be one of"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        QuantizationSchedule(**options)


@both
def test_models_without_our_layers(kind):
    model = compiled(kind, small(builders.keras_of(kind)))
    with pytest.raises(UnsupportedModelError, match="'small' has no quantization-aware layers"):
        fit(kind, model, QuantizationSchedule(2))


# Resuming


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
        codes = [int(np.asarray(n.frozen)) for n in rewriter.schedule.batch_norms(model)]
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
