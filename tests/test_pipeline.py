"""Operations on gamma, beta, moving mean and variance: what is computed, learned, saved, exported."""

from __future__ import annotations

import fractions
import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_model_optimization.python.core.quantization.keras import quantizers as tfmot

import builders
import claims
import oracles
import rewriter
from rewriter import BatchNormPipeline, Clip, FixedPoint, PowerOfTwo, layers, phases
from rewriter.errors import RecipeError
from rewriter.lower import lower

both = pytest.mark.parametrize("kind", builders.KERASES)
VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
QUANTIZE = tf.constant(phases.QUANTIZE)
CHANNELS = 6


def apply(op: Any, values: Any, dtype: str = "float32") -> np.ndarray:
    return np.asarray(op(tf.constant(values, dtype), training=False, weights={}))


# The ready-made operations, against exact arithmetic


def fixed_point(values: Any, bits: int) -> np.ndarray:
    """The documented formula in rational numbers: the smallest power of two that fits."""
    exact = [fractions.Fraction(float(v)) for v in values]
    largest = max(abs(v) for v in exact)
    top = 2 ** (bits - 1) - 1
    exponent = -140
    while fractions.Fraction(2) ** exponent * top < largest:
        exponent += 1
    step = fractions.Fraction(2) ** exponent
    return np.array([float(round(v / step) * step) for v in exact])  # round: half to even


magnitudes = st.floats(-60, 60).map(lambda e: 2.0**e)
vectors = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(vectors, magnitudes, st.integers(2, 16))
def test_fixed_point(values, magnitude, bits):
    x = (np.array(values) * magnitude).astype(np.float32)
    if not 2.0**-60 < np.abs(x).max() < 2.0**60:
        return
    np.testing.assert_array_equal(apply(FixedPoint(bits), x), fixed_point(x, bits))


@pytest.mark.parametrize("exponent", range(-40, 41))
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_fixed_point_on_the_edge(bits, exponent):
    """The largest value on the grid itself needs no wider step, the next float does."""
    top = 2 ** (bits - 1) - 1
    edge = np.float32(top * 2.0**exponent)
    step = np.float32(2.0**exponent)
    assert apply(FixedPoint(bits), [edge, step])[1] == step
    if bits > 2:
        above = np.nextafter(edge, np.float32(np.inf))
        half = apply(FixedPoint(bits), [above, step])[1]
        assert half in (0, step)  # a step of twice the size rounds this one half to even


def test_fixed_point_with_fraction_bits():
    x = [-2.0, -1.01, -1.0, -0.376, 0.125, 0.375, 0.9, 7.0]
    found = apply(FixedPoint(4, fraction_bits=3), x)  # steps of 1/8 from -1 to 7/8
    np.testing.assert_array_equal(found, [-1, -1, -1, -0.375, 0.125, 0.375, 0.875, 0.875])
    np.testing.assert_array_equal(apply(FixedPoint(8, 2), [0.125, 0.375, -0.125]), [0, 0.5, 0])


@pytest.mark.parametrize("bits", [24, 28, 32])
def test_wide_fixed_point_stays_inside(bits):
    x = np.array([1.0, -1.0, 1 / 3, 0.99999], np.float32)
    found = apply(FixedPoint(bits), x)
    np.testing.assert_allclose(found, x, rtol=3e-7)
    clipped = apply(FixedPoint(bits, fraction_bits=bits - 1), [1.0])[0]  # 1 itself is one too many
    assert 1 - 2.0**-22 <= clipped < 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_power_of_two(bits):
    rng = np.random.default_rng(bits)
    x = (rng.choice([-1, 1], 200) * 2.0 ** rng.uniform(-12, 6, 200)).astype(np.float32)
    x[3] = 0
    exponents = [None if v == 0 else round(math.log2(abs(float(v)))) for v in x]
    high = max(e for e in exponents if e is not None)
    codes = 2 ** (bits - 1) - 1  # without the sign and the code of 0
    expected = [
        0.0 if e is None or e <= high - codes else math.copysign(2.0**e, v)
        for e, v in zip(exponents, x, strict=True)
    ]
    found = apply(PowerOfTwo(bits), x)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(np.abs(found))) <= codes + 1


@pytest.mark.parametrize("op", [FixedPoint(8), FixedPoint(6, 4), PowerOfTwo(4), Clip(-1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ready_made_for_zeros_and_wide_floats(op, dtype):
    assert not apply(op, np.zeros(3), dtype).any()
    found = apply(op, [0.7, -0.3], dtype)
    assert found.dtype == dtype and np.isfinite(found).all()


@pytest.mark.parametrize("op", [FixedPoint(3), FixedPoint(3, 1), PowerOfTwo(3)])
def test_straight_through(op):
    x = tf.constant([9.0, -0.3, 0.0, 1e-9])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(op(x, training=True, weights={}) * [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(tape.gradient(y, x), [1, 2, 3, 4])


def test_clip_has_no_gradient_where_it_clips():
    x = tf.constant([-2.0, -0.5, 0.5, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = Clip(minimum=-1.0, maximum=1)(x, training=True, weights={})
    np.testing.assert_array_equal(y, [-1, -0.5, 0.5, 1])
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 0])
    np.testing.assert_array_equal(apply(Clip(minimum=0.0), [-5.0, 5.0]), [0, 5])
    np.testing.assert_array_equal(apply(Clip(maximum=0.0), [-5.0, 5.0]), [-5, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPoint(1), "num_bits must be in 2..32. Received: 1"),
        (lambda: FixedPoint(33), "num_bits"),
        (lambda: FixedPoint(8.0), "num_bits"),
        (lambda: FixedPoint(8, 0.5), "fraction_bits must be a whole number"),
        (lambda: PowerOfTwo(9), "num_bits must be in 2..8. Received: 9"),
        (lambda: Clip(2, 1), "minimum must not exceed maximum. Received: 2 and 1"),
        (lambda: BatchNormPipeline(gamma=3), r"batch_norm_pipeline.gamma must be callable"),
        (lambda: BatchNormPipeline(phases=()), "batch_norm_pipeline.phases must be some of"),
        (lambda: BatchNormPipeline(phases="quantize"), "batch_norm_pipeline.phases"),
        (lambda: BatchNormPipeline(phases=("quantise",)), "Received: .*quantise"),
        (lambda: BatchNormPipeline(layers=(1,)), "batch_norm_pipeline.layers must be patterns"),
        (lambda: rewriter.Recipe(batch_norm_pipeline={"gama": None}), "unknown field 'gama'"),
        (lambda: rewriter.Recipe(batch_norm_pipeline=7), "must be a mapping, a BatchNormPipeline"),
        (
            lambda: rewriter.Recipe(batch_norm_pipeline={"gamma": {"function": "os.system"}}),
            "operation .*os.system.* is not known",
        ),
        (
            lambda: BatchNormPipeline(gamma={"function": "tensorflow._os.system"}),
            "is not known",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


# What the layer computes with it


def eight_bits() -> dict[str, Any]:
    return {name: FixedPoint(8) for name in VARIABLES}


def norm_layer(kind: str, seed: int = 0, **options: Any) -> Any:
    """Our layer with random variables, in phase ``quantize``."""
    layer = getattr(layers, kind).FusedBatchNormalization(name="norm", **options)
    layer.build((None, 4, 5, CHANNELS))
    rng = np.random.default_rng(seed)
    builders.set_statistics(
        layer,
        gamma=rng.normal(size=CHANNELS),
        beta=rng.normal(size=CHANNELS),
        moving_mean=rng.normal(0, 3, CHANNELS),
        moving_variance=rng.uniform(0.01, 4, CHANNELS),
    )
    layer.phase.assign(phases.QUANTIZE)
    return layer


def values_of(layer: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(layer, name)).astype(np.float64) for name in VARIABLES}


def image(seed: int = 5) -> np.ndarray:
    shape = (8, 4, 5, CHANNELS)
    return np.random.default_rng(seed).normal(0.4, 1.5, shape).astype(np.float32)


def normalized(x: Any, v: dict[str, Any], epsilon: float) -> np.ndarray:
    """The definition, float64."""
    norm = oracles.Norm(v["gamma"], v["beta"], v["moving_mean"], v["moving_variance"], epsilon)
    return norm(np.asarray(x, np.float64))


def batch_moments(x: np.ndarray) -> dict[str, np.ndarray]:
    wide = x.astype(np.float64)
    return {"moving_mean": wide.mean((0, 1, 2)), "moving_variance": wide.var((0, 1, 2))}


@both
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_piped_values_normalize(kind, training, frozen):
    layer = norm_layer(kind, pipeline=eight_bits())
    layer.frozen.assign(int(frozen))
    before = values_of(layer)
    piped = {name: fixed_point(value.astype(np.float32), 8) for name, value in before.items()}
    assert all((piped[name] != before[name]).any() for name in VARIABLES)
    x = image()
    moments = batch_moments(x)
    used = {**piped, **moments} if training and not frozen else piped
    claims.assert_close(layer(x, training=training), normalized(x, used, layer.epsilon), 2e-6)
    after = values_of(layer)
    if training and not frozen:
        # The averages go on from the variables, not from the piped values.
        n = x.size / CHANNELS
        moments["moving_variance"] *= n / (n - 1) if kind == "tf_keras" else 1
        for name, batch in moments.items():
            expected = 0.99 * before[name] + 0.01 * batch
            claims.assert_close(after[name], expected, 1e-6, name)
    else:
        for name in claims.STATISTICS:
            assert np.array_equal(after[name], before[name])


@both
def test_averages_do_not_lose_digits_to_what_is_piped(kind):
    """A pipe may give values of quite another size; the variable moves as without it."""
    layers_ = [norm_layer(kind, pipeline={n: Clip(1e6) for n in VARIABLES[2:]}), norm_layer(kind)]
    for layer in layers_:
        layer(image(), training=True)
    for name in claims.STATISTICS:
        a, b = (np.asarray(getattr(layer, name)) for layer in layers_)
        assert np.array_equal(a, b), name


@both
@pytest.mark.parametrize(
    ("acting", "active"),
    [
        (("quantize",), (False, False, True, True)),
        (("float",), (True, False, False, False)),
        (("observe", "quantize"), (False, True, True, True)),
        (("float", "observe", "quantize"), (True, True, True, True)),
    ],
)
def test_phases(kind, acting, active):
    layer = norm_layer(kind, pipeline={"gamma": FixedPoint(2), "phases": acting})
    before = values_of(layer)
    for code in range(4):
        layer.phase.assign(code)
        used = {**before}
        if active[code]:
            used["gamma"] = fixed_point(before["gamma"].astype(np.float32), 2)
        x = image()
        claims.assert_close(layer(x, training=False), normalized(x, used, layer.epsilon), 2e-6)


def numeric(function: Any, value: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a float64 function."""
    result = np.zeros_like(value)
    for index in np.ndindex(value.shape):
        moved = [value.copy(), value.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        result[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return result


SMOOTH = {
    "gamma": (tf.math.tanh, np.tanh),
    "beta": (tf.math.sinh, np.sinh),
    "moving_mean": (lambda v: v * v, lambda v: v * v),
    "moving_variance": (tf.math.softplus, lambda v: np.log1p(np.exp(v))),
}


@both
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_gradients_of_smooth_operations(kind, frozen):
    """For the input, gamma and beta, against differences of the definition in float64."""
    layer = norm_layer(kind, pipeline={name: ours for name, (ours, _) in SMOOTH.items()})
    layer.frozen.assign(int(frozen))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 2, 2, CHANNELS)).astype(np.float32)
    weights = rng.normal(size=x.shape)

    def loss(variables: dict[str, np.ndarray], image: np.ndarray) -> float:
        piped = {name: SMOOTH[name][1](value) for name, value in variables.items()}
        if not frozen:
            piped |= batch_moments(image)
        return float((normalized(image, piped, layer.epsilon) * weights).sum())

    start = values_of(layer)
    tensor = tf.constant(x)
    raw = [v if isinstance(v, tf.Variable) else v.value for v in (layer.gamma, layer.beta)]
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = tf.reduce_sum(layer(tensor, training=True) * tf.constant(weights, tf.float32))
    found = tape.gradient(y, [tensor, *raw])
    expected = [
        numeric(lambda v: loss(start, v), x.astype(np.float64)),
        numeric(lambda v: loss({**start, "gamma": v}, x.astype(np.float64)), start["gamma"]),
        numeric(lambda v: loss({**start, "beta": v}, x.astype(np.float64)), start["beta"]),
    ]
    for a, b in zip(found, expected, strict=True):
        claims.assert_close(a, b, 2e-4)


def learned_class(keras: Any) -> Any:
    """A layer with variables of its own: ``inputs * factor + offset``."""

    @keras.saving.register_keras_serializable(package="tests")
    class Learned(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            add = self.add_weight
            self.factor = add(name="factor", shape=shape, initializer="ones", trainable=True)
            self.offset = add(name="offset", shape=shape, initializer="zeros", trainable=True)
            super().build(shape)

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor + self.offset

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    return Learned


LEARNED = {kind: learned_class(builders.keras_of(kind)) for kind in builders.KERASES}


@both
@pytest.mark.parametrize("frozen", [False, True], ids=["batch", "frozen"])
def test_gradients_of_a_layers_own_variables(kind, frozen):
    """Those on mean and variance learn while the statistics are frozen, else they rest."""
    layer = norm_layer(kind, pipeline={name: LEARNED[kind]() for name in VARIABLES})
    layer.frozen.assign(int(frozen))
    own = layer.pipeline_variables
    assert len(own) == 8 and len(layer.trainable_variables) == 10
    rng = np.random.default_rng(2)
    start = [rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32) for _ in own]
    for variable, value in zip(own, start, strict=True):
        variable.assign(value)
    x = rng.normal(size=(3, 2, 2, CHANNELS)).astype(np.float32)
    weights, before = rng.normal(size=x.shape), values_of(layer)

    def loss(position: int, value: np.ndarray) -> float:
        theirs = [v.astype(np.float64) for v in start]
        theirs[position] = value
        piped = {
            name: before[name] * theirs[2 * i] + theirs[2 * i + 1]
            for i, name in enumerate(VARIABLES)
        }
        if not frozen:
            piped |= batch_moments(x)
        return float((normalized(x, piped, layer.epsilon) * weights).sum())

    raw = [v if isinstance(v, tf.Variable) else v.value for v in own]
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(x, training=True) * tf.constant(weights, tf.float32))
    found = tape.gradient(y, raw, unconnected_gradients="zero")
    for position, gradient in enumerate(found):
        expected = numeric(lambda v, p=position: loss(p, v), start[position].astype(np.float64))
        if position >= 4 and not frozen:
            assert not np.asarray(gradient).any() and not expected.any()
        else:
            claims.assert_close(gradient, expected, 2e-4)


@both
def test_operations_that_change_the_shape_are_refused(kind):
    layer = norm_layer(kind, pipeline={"gamma": lambda v: v[:2]})
    message = r"gamma of 'norm' must keep the shape \(6,\). Received: \(2,\)"
    with pytest.raises(RecipeError, match=message):
        layer(image(), training=False)


# In rewritten models


def small(keras: Any) -> Any:
    """A convolution with a normalization fused into it, and a normalization alone."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(6, 3, strides=2, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.MaxPooling2D(name="pool")(keras.layers.ReLU(name="relu")(x))
    x = keras.layers.BatchNormalization(name="alone")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    scores = keras.layers.Dense(5, activation="softmax", name="scores")(x)
    model = builders.randomise_all(keras.Model(image, scores, name="small"), 0)
    return builders.fit_statistics(model, builders.residual_data())


def recipe(*pipelines: Any) -> rewriter.Recipe:
    return rewriter.Recipe(batch_norm_pipeline=list(pipelines))


def norms(qat: Any) -> dict[str, Any]:
    """Our normalizations by name."""
    return {n.name: n for n in qat._flatten_layers() if hasattr(n, "variables_in")}


def compiled(kind: str, qat: Any, rate: float = 0.05) -> Any:
    keras = builders.keras_of(kind)
    loss = keras.losses.SparseCategoricalCrossentropy()
    qat.compile(keras.optimizers.Adam(rate), loss)
    return qat


def batches(count: int, size: int = 16) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(builders.residual_data(size, s), rng.integers(0, 5, size)) for s in range(count)]


def train(model: Any, data: Any) -> list[float]:
    return [float(np.ravel(model.train_on_batch(x, y))[0]) for x, y in data]


@both
def test_names_and_patterns(kind):
    """A normalization goes by its own name or its host's; of several pipelines the first counts."""
    model = builders.residual(builders.keras_of(kind))
    ops = [FixedPoint(bits) for bits in range(4, 9)]
    qat = rewriter.rewrite(
        model,
        recipe(
            {"gamma": ops[0], "layers": "stem"},  # the host
            {"gamma": ops[1], "layers": ["dw_b?", "nothing"]},
            {"gamma": ops[2], "layers": "*_bn"},
        ),
    )
    bits = {
        n: None if m.pipeline is None else m.pipeline.gamma.num_bits for n, m in norms(qat).items()
    }
    assert bits == {"stem_bn": 4, "dw_bn": 5, "pw_bn": 6, "alone": None}
    assert BatchNormPipeline(layers="A*").applies_to(None, "b", "Ab")
    assert not BatchNormPipeline(layers="A*").applies_to("a")


@both
def test_float_phase_is_untouched(kind):
    model = builders.trained_residual(builders.keras_of(kind))
    qat = rewriter.rewrite(model, recipe(eight_bits()))
    x = builders.residual_data(8)
    assert np.array_equal(rewriter.rewrite(model)(x, training=False), qat(x, training=False))
    claims.check_float_phase(model, qat, x)


@both
def test_exported_exactly_as_trained(kind, tmp_path):
    """The file's constants come from the piped variables, and it agrees with the twin as ever."""
    model = builders.trained_residual(builders.keras_of(kind))
    x = builders.residual_data(64)
    worst = []
    for name, pipelines in (("plain", []), ("piped", [eight_bits()])):
        qat = builders.calibrated(model, x, recipe(*pipelines))
        train(compiled(kind, qat, 0.002), batches(4))
        path = tmp_path / f"{name}.tflite"
        assert not rewriter.export_tflite(qat, path).float_tensors
        found = rewriter.verify(qat, path, x, progress=False).comparison
        assert not found.differences and not found.skipped
        worst.append(
            [min(t.identical for t in v) for v in (found.operator_by_operator, found.end_to_end)]
        )
    assert worst[1] >= worst[0] and min(worst[1]) >= 0.999
    steps = {step.layer.rpartition("/")[2]: step.operator for step in lower(qat).steps}
    for host in builders.hosts(qat):
        if host.batch_norm is None:
            continue
        v = {n: fixed_point(np.float32(a), 8) for n, a in values_of(host.batch_norm).items()}
        raw = values_of(host.batch_norm)
        assert any((v[n] != raw[n]).any() for n in VARIABLES)
        norm = oracles.Norm(
            v["gamma"], v["beta"], v["moving_mean"], v["moving_variance"], host.batch_norm.epsilon
        )
        bias = np.zeros(len(norm.gamma)) if host.bias is None else np.asarray(host.bias)
        operator = steps[host.name]
        step = operator.inputs[0].scale * operator.kernel_scale.astype(np.float64)
        expected = (bias - norm.mean) * norm.factor + norm.beta
        np.testing.assert_array_less(np.abs(operator.bias * step - expected), 0.51 * step + 1e-6)
        kernel = np.asarray(host.kernel)
        axes = (2, 3) if host.name == "dw" else (-1,)
        scale = oracles.kernel_scale(kernel, axes).ravel() * np.abs(norm.factor)
        # Those of dead channels are raised so that the bias fits int32.
        live = scale > 1e-6
        assert live.sum() >= 4
        np.testing.assert_allclose(operator.kernel_scale[live], scale[live], rtol=1e-5)


@both
def test_emulation_is_the_file(kind):
    """Phase ``quantize`` in inference computes with the constants that ``fold`` rounds."""
    model = builders.trained_residual(builders.keras_of(kind))
    x = builders.residual_data(64)
    qat = builders.calibrated(model, x, recipe(eight_bits()))
    emulated = np.asarray(qat(x, training=False))
    exact = np.asarray(rewriter.fold(qat)(x))
    # The softmax has steps of 1/256; a rounding of a bias flips few of them.
    assert np.abs(emulated - exact).max() <= 3 / 256
    assert (np.abs(emulated - exact) < 0.5 / 256).mean() > 0.9


@both
@pytest.mark.parametrize(
    "make",
    [
        lambda: tfmot.LastValueQuantizer(
            num_bits=6, per_axis=False, symmetric=True, narrow_range=True
        ),
        lambda: tfmot.MovingAverageQuantizer(
            num_bits=6, per_axis=False, symmetric=False, narrow_range=False
        ),
        lambda: tfmot.AllValuesQuantizer(
            num_bits=6, per_axis=False, symmetric=False, narrow_range=False
        ),
    ],
    ids=["last", "average", "all"],
)
def test_tfmot_quantizers(kind, make, tmp_path):
    """They learn their ranges in training, are saved with them, and are exported as they are."""
    keras = builders.keras_of(kind)
    model = small(keras)
    x = builders.residual_data(32)
    pipeline = {"gamma": make(), "moving_mean": make(), "layers": ["stem_bn", "alone"]}
    qat = compiled(kind, builders.calibrated(model, x, recipe(pipeline)), 0.003)
    before = [v.numpy() for v in norms(qat)["alone"].pipeline_variables]
    assert before
    train(qat, batches(3))
    after = norms(qat)["alone"].pipeline_variables
    assert any((np.asarray(v) != old).any() for v, old in zip(after, before, strict=True))
    piped = norms(qat)["alone"].variables_in(QUANTIZE)
    assert not np.array_equal(piped["gamma"], np.asarray(norms(qat)["alone"].gamma))
    qat.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(again.predict(x, verbose=0), qat.predict(x, verbose=0))
    rewriter.export_tflite(again, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", x, progress=False).comparison
    assert found.worst.identical >= 0.999 and found.worst.maximum <= 1


@rewriter.register_op
def halved(value: Any) -> Any:
    return value * 0.5


def unregistered(value: Any) -> Any:
    return value * 0.5


def public_functions(kind: str) -> list[Any]:
    keras = builders.keras_of(kind)
    ours = [tf.math.tanh, tf.abs, tf.nn.softplus, tf.identity, halved]
    return [*ours, keras.activations.tanh, *([keras.ops.abs] if kind == "keras" else [])]


@both
def test_functions_are_saved_by_name(kind):
    for function in public_functions(kind):
        values = recipe({"gamma": function}).to_dict()
        (again,) = rewriter.Recipe.from_json(json.dumps(values)).batch_norm_pipeline
        assert again.gamma is function


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_and_functions_train_and_are_saved(kind, suffix, tmp_path):
    """A layer's own variables learn with the model, in a copy for each normalization."""
    keras = builders.keras_of(kind)
    model = small(keras)
    x = builders.residual_data(32)
    learned = LEARNED[kind]()
    pipeline = {"gamma": learned, "beta": halved, "moving_variance": tf.math.abs}
    qat = compiled(kind, builders.calibrated(model, x, recipe(pipeline)))
    assert not learned.built
    own = {name: norm.pipeline_variables for name, norm in norms(qat).items()}
    assert {len(v) for v in own.values()} == {2} and len({id(v[0]) for v in own.values()}) == 2
    train(qat, batches(3))
    for name, (factor, offset) in own.items():
        assert (np.asarray(factor) != 1).any() and (np.asarray(offset) != 0).any(), name
    qat.save(tmp_path / f"m{suffix}")
    again = keras.models.load_model(tmp_path / f"m{suffix}")
    assert np.array_equal(again.predict(x, verbose=0), qat.predict(x, verbose=0))
    assert norms(again)["alone"].pipeline.beta is halved


@both
@pytest.mark.parametrize(
    ("op", "name"), [(lambda v: v * 0.5, "<lambda>"), (unregistered, "unregistered")]
)
def test_other_functions_train_but_are_not_saved(kind, op, name, tmp_path):
    model = small(builders.keras_of(kind))
    x = builders.residual_data(16)
    qat = compiled(kind, builders.calibrated(model, x, recipe({"beta": op})))
    assert np.isfinite(train(qat, batches(2))).all()
    rewriter.export_tflite(qat, tmp_path / "m.tflite")  # the file holds numbers only
    with pytest.raises(RecipeError, match=f"beta: the function .*{name}.* cannot be saved.*regis"):
        qat.save(tmp_path / "m.keras")
    with pytest.raises(RecipeError, match="register_op"):
        qat.get_config()


def test_unknown_names_in_a_file():
    values = recipe({"gamma": halved}).to_dict()
    values["batch_norm_pipeline"][0]["gamma"]["function"] += "_once"
    with pytest.raises(RecipeError, match="halved_once.*register_op"):
        rewriter.Recipe.from_dict(values)


@both
def test_unregistered_layers_in_a_file(kind):
    keras = builders.keras_of(kind)

    class Private(keras.layers.Layer):
        pass

    values = recipe({"gamma": Private()}).to_dict()
    with pytest.raises(RecipeError, match="Private.*register_keras_serializable"):
        rewriter.Recipe.from_dict(values)
    with keras.saving.custom_object_scope({"Private": Private}):
        (pipeline,) = rewriter.Recipe.from_dict(values).batch_norm_pipeline
    assert type(pipeline.gamma) is Private


# Four pipelines for two layers, saved and loaded


def four_for_two(kind: str) -> rewriter.Recipe:
    """Different operations on all four variables of two layers; the others have none."""
    average = tfmot.MovingAverageQuantizer(
        num_bits=7, per_axis=False, symmetric=False, narrow_range=False
    )
    return recipe(
        {
            "gamma": FixedPoint(6),
            "beta": tf.math.tanh,
            "moving_mean": PowerOfTwo(5),
            "moving_variance": Clip(1e-2, 1e2),
            "layers": "stem_bn",
        },
        {
            "gamma": LEARNED[kind](name="learned"),
            "beta": FixedPoint(5, fraction_bits=2),
            "moving_mean": average,
            "moving_variance": halved,
            "layers": ["alone"],
            "phases": ["observe", "quantize"],
        },
    )


@both
def test_json_round_trip(kind):
    first = four_for_two(kind)
    again = rewriter.Recipe.from_json(first.to_json())
    assert again.to_dict() == first.to_dict()
    assert again.batch_norm_pipeline[1].phases == ("observe", "quantize")
    model = small(builders.keras_of(kind))
    x = builders.residual_data(16)
    outputs = [np.asarray(builders.calibrated(model, x, r)(x)) for r in (first, again)]
    assert np.array_equal(*outputs)


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5", "", ".weights.h5"])
def test_file_round_trips(kind, suffix, tmp_path):
    if kind == "keras" and not suffix:
        pytest.skip("Keras 3 loads no SavedModel")
    keras = builders.keras_of(kind)
    model = small(keras)
    x = builders.residual_data(32)
    qat = compiled(kind, builders.calibrated(model, x, four_for_two(kind)), 0.005)
    train(qat, batches(3))
    path = tmp_path / f"m{suffix}"
    if suffix == ".weights.h5":
        qat.save_weights(path)
        again = rewriter.rewrite(model, four_for_two(kind))
        again.load_weights(path)
    else:
        qat.save(path)
        again = keras.models.load_model(path, compile=False)
    assert rewriter.get_phase(again) == "quantize"
    assert np.array_equal(again.predict(x, verbose=0), qat.predict(x, verbose=0))
    for name in ("stem_bn", "alone"):
        found, expected = norms(again)[name], norms(qat)[name]
        assert found.pipeline.to_dict() == expected.pipeline.to_dict()
        for a, b in zip(found.pipeline_variables, expected.pipeline_variables, strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
        for variable in VARIABLES:
            assert np.array_equal(
                found.variables_in(QUANTIZE)[variable], expected.variables_in(QUANTIZE)[variable]
            )


@pytest.mark.parametrize(
    "op", [rewriter.FixedPoint(8), rewriter.FixedPoint(6, 3), rewriter.PowerOfTwo(4)]
)
def test_rows_of_a_matrix_are_quantized_alone(op):
    """What equal operations on the variables of a layer are computed as."""
    rng = np.random.default_rng(0)
    rows = tf.constant(rng.normal(size=(4, 5)) * [[1e-3], [1], [40], [0]], tf.float32)
    found = op(rows, training=False, weights={})
    for row, value in zip(rows, found, strict=True):
        np.testing.assert_array_equal(value, op(row, training=False, weights={}))
