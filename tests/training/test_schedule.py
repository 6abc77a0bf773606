"""Phases that change while a compiled ``fit`` runs: when, and without retracing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import builders
import rewriter
from rewriter import FixedPoint, QuantizationSchedule
from rewriter.errors import UnsupportedModelError
from rewriter.quantization import phases
from rewriter.training.schedule import batch_norms
from schedules import compiled, data, fit, recorder, rewritten
from small_models import small

both = pytest.mark.parametrize("kind", builders.KERASES)


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
    frozen = {int(np.asarray(layer.frozen)) for layer in batch_norms(model)}
    codes = {int(np.asarray(layer.phase)) for layer in phases.phased_layers(model)}
    assert frozen == {1} and codes == {phases.QUANTIZE_FROZEN, phases.QUANTIZE_FIXED}
    assert schedule.history == [
        (0, "float"),
        (0, "batch normalization free"),
        (3, "observe"),
        (6, "quantize"),
        (12, "batch normalization frozen"),
        (14, "quantize"),
    ]


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
    assert schedule.history == [(0, "observe"), (2, "quantize")]


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
    model = compiled(kind, small(builders.keras_of(kind), softmax=False))
    with pytest.raises(UnsupportedModelError, match="'small' has no quantization-aware layers"):
        fit(kind, model, QuantizationSchedule(2))
