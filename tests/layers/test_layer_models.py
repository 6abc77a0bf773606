"""Models built with the layer from the start: training, saving, rewriting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from norm_layers import fused
from rewriter.quantization import phases

both = pytest.mark.parametrize("kind", builders.KERASES)


def network(kind: str, *, ours: bool, pipeline: Any = None) -> Any:
    """A small classifier built from the start of the stock layer, or of ours."""
    keras = builders.keras_of(kind)
    keras.utils.set_random_seed(4)
    make = fused(kind) if ours else keras.layers.BatchNormalization
    options = {"pipeline": pipeline} if ours else {}
    image = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(8, 3, name="conv")(image)
    x = keras.layers.ReLU(name="relu")(make(name="norm", **options)(x))
    x = make(name="norm2", **options)(keras.layers.MaxPooling2D(name="pool")(x))
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, keras.layers.Dense(5, name="scores")(x), name="small")


def batches(count: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(builders.residual_data(16, seed), rng.integers(0, 5, 16)) for seed in range(count)]


def loss_of(keras: Any) -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@both
@pytest.mark.parametrize("jit", [False, True], ids=["", "jit"])
def test_fit_is_the_stock_model(kind, jit):
    keras = builders.keras_of(kind)
    losses = []
    for ours in (False, True):
        model = network(kind, ours=ours)
        model.compile(keras.optimizers.SGD(0.1), loss_of(keras), jit_compile=jit)
        losses.append([float(np.ravel(model.train_on_batch(x, y))[0]) for x, y in batches()])
    assert losses[0][-1] != losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5", ""], ids=["keras", "h5", "savedmodel"])
def test_saved_with_phase_and_pipeline(kind, suffix, tmp_path):
    if kind == "keras" and not suffix:
        pytest.skip("Keras 3 loads no SavedModel")
    keras = builders.keras_of(kind)
    pipeline = {"gamma": rewriter.FixedPoint(4), "moving_variance": rewriter.PowerOfTwo(4)}
    model = network(kind, ours=True, pipeline=pipeline)
    model.compile(keras.optimizers.SGD(0.1), loss_of(keras))
    for x, y in batches(3):
        model.train_on_batch(x, y)
    rewriter.set_phase(model, "quantize")
    path = tmp_path / f"model{suffix}"
    model.save(path)
    again = keras.models.load_model(path)
    x = batches(1)[0][0]
    assert rewriter.get_phase(again) == "quantize"
    assert np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert again.get_layer("norm").pipeline.gamma.num_bits == 4
    rewriter.set_phase(again, "float")
    assert not np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


@both
def test_pipeline_argument_by_hand(kind):
    """In a loop of one's own: the phase is switched between steps of one traced function."""
    keras = builders.keras_of(kind)
    model = network(kind, ours=True, pipeline={"gamma": rewriter.FixedPoint(2)})
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    loss, traces = loss_of(keras), []

    @tf.function
    def step(x: Any, y: Any) -> Any:
        traces.append(1)
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        variables = model.trainable_variables
        raw = [v if isinstance(v, tf.Variable) else v.value for v in variables]
        optimizer.apply_gradients(zip(tape.gradient(value, raw), variables, strict=True))
        return value

    schedule = rewriter.QuantizationSchedule(2, 4)
    values = []
    for index, (x, y) in enumerate(batches()):
        schedule.apply(model, index)
        values.append(float(step(tf.constant(x), tf.constant(y))))
    assert len(traces) == 1 and np.isfinite(values).all()
    assert [what for _, what in schedule.history] == [
        "observe",
        "batch normalization free",
        "quantize",
        "batch normalization frozen",
    ]
    norm = model.get_layer("norm")
    piped = np.asarray(norm.variables_in(tf.constant(phases.QUANTIZE))["gamma"])
    # Two bits: -2, -1, 0 and 1 steps, a step being the smallest power of two that holds them.
    assert len(np.unique(piped)) <= 3 and not np.array_equal(piped, np.asarray(norm.gamma))


def learned(keras: Any) -> Any:
    """A layer with a variable of its own, for a pipeline."""

    class Learned(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.factor = self.add_weight(name="factor", shape=shape, initializer="ones")
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Learned(name="learned")


@both
def test_models_built_with_the_layer_are_rewritten_and_exported(kind, tmp_path):
    """The layer fuses into the host before it as the stock one does, with its own pipeline."""
    keras = builders.keras_of(kind)
    pipeline = rewriter.BatchNormPipeline(
        gamma=rewriter.FixedPoint(5),
        beta=lambda beta: beta + 0.25,
        moving_mean=learned(keras),
        phases=("float", "observe", "quantize"),
    )
    model = network(kind, ours=True, pipeline=pipeline)
    for name in ("norm", "norm2"):
        variable = model.get_layer(name).pipeline_variables[0]
        variable.assign(np.linspace(0.5, 1.5, 8, dtype=np.float32))
    model.compile(keras.optimizers.SGD(0.1), loss_of(keras))
    for x, y in batches():
        model.train_on_batch(x, y)
    x = batches(1)[0][0]
    assert {e.name: e.host for e in rewriter.plan(model).entries} == {"norm": "conv", "norm2": None}
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, x)
    rewriter.calibrate(qat, x, progress=False, method="minmax")
    path = tmp_path / "m.tflite"
    report = rewriter.export_tflite(qat, path)
    assert not report.float_tensors and report.ops["DEPTHWISE_CONV_2D"] == 1
    found = rewriter.verify(qat, path, x, progress=False).comparison
    assert found.worst.identical >= 0.999 and found.worst.maximum <= 1
