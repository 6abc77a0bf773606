"""The layer by itself: a drop-in for BatchNormalization when a model is built from the start."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from rewriter import layers

both = pytest.mark.parametrize("kind", builders.KERASES)
CHANNELS = 5


def fused(kind: str) -> Any:
    """Our class for this Keras."""
    return getattr(layers, kind).FusedBatchNormalization


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what it reads."""

    shape: tuple[int, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([f"rank{len(self.shape)}", *map(str, self.options.values())])


CASES = (
    Case((6, CHANNELS)),
    Case((3, 7, CHANNELS)),
    Case((3, 4, 5, CHANNELS)),
    Case((2, 3, 4, 2, CHANNELS)),
    Case((3, CHANNELS, 4, 6), {"axis": 1}),
    Case((3, 4, CHANNELS, 6), {"axis": 2}),
    Case((6, CHANNELS), {"axis": 1}),
    Case((3, 4, 5, CHANNELS), {"momentum": 0.6, "epsilon": 0.1}),
    Case((3, 4, 5, CHANNELS), {"scale": False}),
    Case((3, 4, 5, CHANNELS), {"center": False}),
    Case((3, 4, 5, CHANNELS), {"scale": False, "center": False}),
)


def pair(kind: str, case: Case, **more: Any) -> tuple[Any, Any]:
    """The stock layer and ours, built, with the same random variables."""
    rng = np.random.default_rng(3)
    options = {**case.options, **more}
    stock = builders.keras_of(kind).layers.BatchNormalization(name="norm", **options)
    ours = fused(kind)(name="norm", **options)
    for layer in (stock, ours):
        layer.build((None, *case.shape[1:]))
    values = {
        "gamma": rng.normal(size=CHANNELS),
        "beta": rng.normal(size=CHANNELS),
        "moving_mean": rng.normal(size=CHANNELS),
        "moving_variance": rng.uniform(0.1, 3, CHANNELS),
    }
    for layer in (stock, ours):
        builders.set_statistics(layer, **values)
    return stock, ours


def data(case: Case, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0.5, 2.0, case.shape)).astype(np.float32)


@both
@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference_is_the_stock_layer(kind, case):
    stock, ours = pair(kind, case)
    x = data(case)
    claims.assert_close(ours(x, training=False), stock(x, training=False), 1e-6)


@both
@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_is_the_stock_layer(kind, case):
    """Outputs, gradients for the input and the variables, and the moving statistics."""
    stock, ours = pair(kind, case)
    weights = tf.constant(np.random.default_rng(9).normal(size=case.shape).astype(np.float32))
    for seed in range(3):
        x = tf.constant(data(case, seed))
        results = []
        for layer in (stock, ours):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(y * weights)
            variables = [v for v in (layer.gamma, layer.beta) if v is not None]
            sources = [x, *(v if isinstance(v, tf.Variable) else v.value for v in variables)]
            results.append([y, *tape.gradient(loss, sources)])
        for found, expected in zip(results[1], results[0], strict=True):
            claims.assert_close(found, expected, 2e-5)
        for name in claims.STATISTICS:
            claims.assert_close(getattr(ours, name), getattr(stock, name), 1e-6, name)


@both
def test_same_arguments_and_variables(kind):
    """Weights move from the stock layer to ours in Keras's own order."""
    stock, ours = pair(kind, CASES[2])
    assert len(ours.trainable_weights) == len(stock.trainable_weights) == 2
    zero = np.array(0, np.int32)
    ours.set_weights([*stock.get_weights(), zero, zero])
    for name in ("gamma", "beta", *claims.STATISTICS):
        assert np.array_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(stock, name)))


@both
def test_regularizers_constraints_and_initializers(kind):
    keras = builders.keras_of(kind)
    options = {
        "gamma_initializer": keras.initializers.Constant(3.0),
        "beta_initializer": "ones",
        "moving_mean_initializer": "ones",
        "moving_variance_initializer": keras.initializers.Constant(2.0),
        "gamma_regularizer": keras.regularizers.L2(0.5),
        "beta_constraint": "non_neg",
    }
    layer = fused(kind)(**options)
    layer.build((None, CHANNELS))
    for name, value in {"gamma": 3, "beta": 1, "moving_mean": 1, "moving_variance": 2}.items():
        assert (np.asarray(getattr(layer, name)) == value).all()
    assert float(sum(layer.losses)) == pytest.approx(0.5 * 9 * CHANNELS)
    assert layer.beta.constraint is not None
    again = fused(kind).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@both
def test_not_trainable_means_inference(kind):
    stock, ours = pair(kind, CASES[2])
    x = data(CASES[2])
    stock.trainable = ours.trainable = False
    claims.assert_close(ours(x, training=True), stock(x, training=True), 1e-6)
    for name in claims.STATISTICS:
        assert np.array_equal(np.asarray(getattr(ours, name)), np.asarray(getattr(stock, name)))


@both
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_dtypes(kind, dtype):
    keras = builders.keras_of(kind)
    policy = keras.mixed_precision.Policy(dtype) if dtype.startswith("mixed") else dtype
    stock, ours = pair(kind, CASES[2], dtype=policy)
    assert str(ours.gamma.dtype) == str(stock.gamma.dtype)
    x = data(CASES[2])
    tolerance = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2, "float64": 1e-9}[dtype]
    wide = tf.cast(x, "float64" if dtype == "float64" else dtype.removeprefix("mixed_"))
    for training in (False, True):
        found, expected = ours(wide, training=training), stock(wide, training=training)
        assert found.dtype == expected.dtype
        claims.assert_close(tf.cast(found, tf.float64), tf.cast(expected, tf.float64), tolerance)
    for name in claims.STATISTICS:
        claims.assert_close(getattr(ours, name), getattr(stock, name), tolerance, name)


@both
def test_masks(kind):
    """Keras 3 leaves masked steps out of the statistics; tf_keras ignores masks at rank 3."""
    case = Case((4, 6, CHANNELS))
    stock, ours = pair(kind, case)
    x, mask = data(case), np.random.default_rng(1).random((4, 6)) < 0.6
    found = ours(x, training=True, mask=tf.constant(mask))
    try:
        expected = stock(x, training=True, mask=tf.constant(mask))
    except TypeError:  # tf_keras's layer takes no mask
        pytest.skip("this Keras's layer takes no mask")
    claims.assert_close(found, expected, 1e-5)
    for name in claims.STATISTICS:
        claims.assert_close(getattr(ours, name), getattr(stock, name), 1e-5, name)


@both
def test_training_as_a_tensor(kind):
    """``training`` may be known only when the graph runs."""
    stock, ours = pair(kind, CASES[2])
    x = tf.constant(data(CASES[2]))
    run = tf.function(lambda flag: ours(x, training=flag))
    for flag in (True, False):
        claims.assert_close(run(tf.constant(flag)), stock(x, training=flag), 1e-5)
    claims.assert_close(ours.moving_mean, stock.moving_mean, 1e-6)


@both
def test_second_derivatives(kind):
    """As for a gradient penalty; the oracle is the same formula without a kernel."""
    _, ours = pair(kind, Case((4, 3, 3, CHANNELS)))
    x = tf.constant(data(Case((4, 3, 3, CHANNELS))))
    gamma, beta = tf.convert_to_tensor(ours.gamma), tf.convert_to_tensor(ours.beta)

    def plain(t: Any) -> Any:
        mean, variance = tf.nn.moments(t, [0, 1, 2])
        return tf.nn.batch_normalization(t, mean, variance, beta, gamma, ours.epsilon)

    results = []
    for function in (lambda t: ours(t, training=True), plain):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                loss = tf.reduce_sum(tf.sin(function(x)))
            penalty = tf.reduce_sum(tf.square(inner.gradient(loss, x)))
        results.append(outer.gradient(penalty, x))
    claims.assert_close(results[0], results[1], 1e-4)


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
    piped = np.asarray(norm.variables_in(tf.constant(rewriter.phases.QUANTIZE))["gamma"])
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
    rewriter.calibrate(qat, x, progress=False)
    path = tmp_path / "m.tflite"
    report = rewriter.export_tflite(qat, path)
    assert not report.float_tensors and report.ops["DEPTHWISE_CONV_2D"] == 1
    found = rewriter.verify(qat, path, x, progress=False).comparison
    assert found.worst.identical >= 0.999 and found.worst.maximum <= 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"pipeline": {"gama": None}}, TypeError),
        ({"pipeline": {"gamma": 3}}, rewriter.RewriterError),
    ],
)
@both
def test_bad_pipelines(kind, options, error):
    with pytest.raises(error, match="gam"):
        fused(kind)(**options)
