"""The statistics of the normalizations: frozen, re-estimated, and under stress."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import oracles
import rewriter
from rewriter import layers, phases, schedule
from rewriter.errors import CalibrationError, UnsupportedModelError

both = pytest.mark.parametrize("kind", builders.KERASES)
VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


def small(keras: Any, *, dropout: float = 0.0, seed: int = 0) -> Any:
    """A convolution with a normalization fused into it, and a normalization alone."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((12, 12, 3), name="image")
    x = keras.layers.Conv2D(6, 3, strides=2, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_bn")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.BatchNormalization(name="alone")(x)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    scores = keras.layers.Dense(5, activation="softmax", name="scores")(x)
    return builders.randomise_all(keras.Model(image, scores, name="small"), seed)


def statistics(model: Any) -> dict[str, np.ndarray]:
    found = builders.weights_by_name(model)
    return {name: value.copy() for name, value in found.items() if "/moving_" in name}


def compiled(kind: str, model: Any, rate: float = 0.02) -> Any:
    keras = builders.keras_of(kind)
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    return model


def batches(count: int, size: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(builders.residual_data(size, s), rng.integers(0, 5, size)) for s in range(count)]


# Frozen


@both
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layer", ["Conv2D", "Conv1D", "Dense", "Conv2DTranspose"])
def test_gradient_of_a_bias_before_a_normalization(kind, layer, frozen):
    """It comes from the normalization: the stock model's, by the statistics that it uses."""
    keras = builders.keras_of(kind)
    keras.utils.set_random_seed(3)
    size = {"Conv2D": (6, 5, 4), "Conv1D": (9, 4), "Dense": (4,), "Conv2DTranspose": (4, 3, 4)}
    arguments = (7,) if layer == "Dense" else (7, 3)
    image = keras.Input(size[layer])
    x = getattr(keras.layers, layer)(*arguments, name="host")(image)
    x = keras.layers.BatchNormalization(name="norm", epsilon=0.02)(x)
    model = builders.randomise_all(keras.Model(image, x), 3)
    qat = rewriter.rewrite(model)
    rewriter.freeze_batch_norm(qat, frozen)
    data = tf.constant(np.random.default_rng(1).normal(1, 2, (8, *size[layer])), tf.float32)
    gradients = []
    for m, training in ((model, not frozen), (qat, True)):
        (bias,) = (v for v in m.trainable_variables if "bias" in getattr(v, "path", v.name))
        (gamma,) = (v for v in m.trainable_variables if "gamma" in getattr(v, "path", v.name))
        sources = [getattr(v, "_value", v) for v in (bias, gamma)]
        with tf.GradientTape() as tape:
            y = m(data, training=training)
            loss = tf.reduce_sum(
                y * tf.cast(tf.reshape(tf.range(tf.size(y)) % 5, tf.shape(y)), y.dtype)
            )
        gradients.append([np.asarray(g) for g in tape.gradient(loss, sources)])
    (expected, gamma), (found, _) = gradients
    if frozen:
        claims.assert_close(found, expected, 1e-5)
        assert found.any()
    else:
        # The batch's mean takes the bias out again: rounding noise in the stock model.
        assert not found.any()
        assert np.abs(expected).max() < 1e-3 * np.abs(gamma).max()


@both
@pytest.mark.parametrize("phase", ["float", "quantize"])
def test_frozen_statistics_do_not_move(kind, phase):
    """Bit-identical over 100 steps, while the weights learn; and free again when asked."""
    x = builders.residual_data(32)
    qat = compiled(kind, builders.calibrated(small(builders.keras_of(kind)), x))
    rewriter.set_phase(qat, phase)
    rewriter.freeze_batch_norm(qat)
    before = statistics(qat)
    weights = {name: value.copy() for name, value in builders.weights_by_name(qat).items()}
    data = batches(10)
    for step in range(100):
        qat.train_on_batch(*data[step % 10])
    for name, value in statistics(qat).items():
        assert value.tobytes() == before[name].tobytes(), name
    after = builders.weights_by_name(qat)
    assert all((after[name] != weights[name]).any() for name in ("stem/kernel", "alone/gamma"))
    rewriter.freeze_batch_norm(qat, False)
    qat.train_on_batch(*data[0])
    assert all((value != before[name]).any() for name, value in statistics(qat).items())


@both
def test_frozen_training_is_inference(kind):
    """Frozen, the outputs in training are those of inference, and so they are the file's."""
    x = builders.residual_data(16)
    qat = builders.calibrated(small(builders.keras_of(kind)), x)
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    rewriter.freeze_batch_norm(qat)
    inference = np.asarray(qat(x, training=False))
    assert np.array_equal(np.asarray(qat(x, training=True)), inference)
    rewriter.freeze_batch_norm(qat, False)
    assert not np.allclose(np.asarray(qat(x, training=True)), inference, rtol=1e-3)


@both
def test_batch_of_one_trains_when_frozen(kind):
    x = builders.residual_data(16)
    qat = compiled(kind, builders.calibrated(small(builders.keras_of(kind)), x))
    rewriter.freeze_batch_norm(qat)
    losses = [float(np.ravel(qat.train_on_batch(*b))[0]) for b in batches(10, 1) * 4]
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < np.mean(losses[:10])


def test_freezing_needs_our_layers():
    keras = builders.keras_of(builders.KERASES[0])
    with pytest.raises(UnsupportedModelError, match="'small' has no .*rewriter.rewrite"):
        rewriter.freeze_batch_norm(small(keras))
    with pytest.raises(UnsupportedModelError, match="'small' has no .*rewriter.rewrite"):
        rewriter.reestimate_batch_norm(small(keras), builders.residual_data(4))


@both
def test_phases_are_left_alone(kind):
    """Freezing is not a phase: each can be changed without the other."""
    model = rewriter.rewrite(small(builders.keras_of(kind)))
    rewriter.freeze_batch_norm(model)
    assert rewriter.get_phase(model) == "float"
    rewriter.set_phase(model, "observe")
    assert {int(np.asarray(n.frozen)) for n in schedule.batch_norms(model)} == {1}
    assert {int(np.asarray(n.phase)) for n in schedule.batch_norms(model)} == {phases.OBSERVE}


# Re-estimated


def plain_average(model: Any, data: list[np.ndarray], bessel: bool) -> dict[str, np.ndarray]:
    """Each normalization's statistics by NumPy, batch by batch, float64."""
    (host,) = (h for h in builders.hosts(model) if h.batch_norm is not None)
    alone = model.get_layer("alone")
    sums: dict[str, list[np.ndarray]] = {}
    for images in data:
        x = oracles.linear_of(host.host)(images)
        for layer in (host.batch_norm, alone):
            n = x[..., 0].size
            mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            sums.setdefault(f"{layer.name}/moving_mean", []).append(mean)
            corrected = variance * n / (n - 1) if bessel else variance
            sums.setdefault(f"{layer.name}/moving_variance", []).append(corrected)
            gamma, beta = (np.asarray(v).astype(np.float64) for v in (layer.gamma, layer.beta))
            x = np.maximum(oracles.Norm(gamma, beta, mean, variance, layer.epsilon)(x), 0)
    return {name: np.mean(values, axis=0) for name, values in sums.items()}


@both
@pytest.mark.parametrize("start", [1.0, 1e8, np.nan])
def test_reestimation_is_the_plain_average(kind, start):
    """Over all batches, the last and smaller one included; what was there before is forgotten."""
    model = rewriter.rewrite(small(builders.keras_of(kind), dropout=0.5))
    for name in VARIABLES[2:]:
        for norm in schedule.batch_norms(model):
            variable = getattr(norm, name)
            variable.assign(np.full(variable.shape, start, np.float32))
    images = builders.residual_data(40)
    expected = plain_average(model, [images[:16], images[16:32], images[32:]], kind == "tf_keras")
    weights = {name: value.copy() for name, value in builders.weights_by_name(model).items()}
    assert rewriter.reestimate_batch_norm(model, images, batch_size=16, progress=False) is model
    found = statistics(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        claims.assert_close(found[name], value, 1e-5, name)
    for name, value in builders.weights_by_name(model).items():
        assert "/moving_" in name or np.array_equal(value, weights[name]), name
    assert rewriter.get_phase(model) == "float"


def all_ranges(model: Any) -> list[float]:
    layers_ = claims.quantize_layers(model)
    return [float(np.asarray(v)) for layer in layers_ for v in layer.range_variables.values()]


@both
def test_reestimation_of_a_quantized_model(kind):
    """In the model's own phase, whether it was frozen or not, from a tf.data.Dataset."""
    images = builders.residual_data(32)
    model = builders.calibrated(small(builders.keras_of(kind)), images)
    rewriter.freeze_batch_norm(model)
    ranges = all_ranges(model)
    (host,) = (h for h in builders.hosts(model) if h.batch_norm is not None)
    data = tf.data.Dataset.from_tensor_slices((images, np.zeros(32))).batch(16)
    rewriter.reestimate_batch_norm(model, data, progress=False)
    # The convolution reads quantized images and has a quantized kernel.
    grid = claims.range_of(model.get_layer("image_quantize"))
    linear = oracles.linear_of(host.host).quantized()
    sums = [linear(grid(images[i : i + 16])) for i in (0, 16)]
    expected = np.mean([s.mean((0, 1, 2)) for s in sums], axis=0)
    claims.assert_close(host.batch_norm.moving_mean, expected, 1e-4)
    assert all_ranges(model) == ranges
    assert rewriter.get_phase(model) == "quantize"
    assert {int(np.asarray(n.frozen)) for n in schedule.batch_norms(model)} == {1}


@both
def test_reestimation_helps_after_training(kind):
    """Statistics that lag behind the weights are set right: the loss of inference falls."""
    images, labels = builders.residual_data(64), np.random.default_rng(0).integers(0, 5, 64)
    model = compiled(kind, rewriter.rewrite(small(builders.keras_of(kind))), 0.3)
    for _ in range(10):
        model.train_on_batch(images, labels)
    before = model.evaluate(images, labels, batch_size=64, verbose=0)
    rewriter.reestimate_batch_norm(model, images, batch_size=64, progress=False)
    after = model.evaluate(images, labels, batch_size=64, verbose=0)
    assert after < before - 0.1, (before, after)


def _breaks_off() -> Any:
    yield np.ones((4, 12, 12, 3), np.float32)
    yield np.ones((4, 5, 12, 3), np.float32)


@both
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: np.zeros((0, 12, 12, 3), np.float32), "The data is empty"),
        (lambda: np.zeros((4, 9, 12, 3), np.float32), "Received: samples of shape"),
        (
            lambda: tf.data.Dataset.from_generator(
                _breaks_off, output_signature=tf.TensorSpec((None, None, 12, 3))
            ),
            "Received: samples of shape",
        ),
    ],
    ids=["empty", "shape", "later"],
)
def test_failing_reestimation_leaves_the_statistics(kind, data, message):
    model = rewriter.rewrite(small(builders.keras_of(kind)))
    before = statistics(model)
    with pytest.raises(CalibrationError, match=message):
        rewriter.reestimate_batch_norm(model, data(), progress=False)
    for name, value in statistics(model).items():
        assert np.array_equal(value, before[name]), name


# Stress: the layer by itself against the definition in float64


def stressed(kind: str, shape: tuple[int, ...], **values: Any) -> Any:
    layer = getattr(layers, kind).FusedBatchNormalization(name="norm")
    layer.build((None, *shape[1:]))
    builders.set_statistics(layer, **{k: np.resize(v, shape[-1]) for k, v in values.items()})
    return layer


SHAPES = ((1, 1, 1, 4), (1, 3, 3, 4), (8, 1, 1, 4), (1, 4), (6, 4))
VARIANCES = (0.0, 1e-8, 1e-3, 1e6)


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mode", ["inference", "frozen", "batch"])
def test_layer_under_stress(kind, shape, variance, mode):
    """Batch size 1, one-pixel maps, gamma 0, tiny and huge variances: nothing but numbers."""
    rng = np.random.default_rng(0)
    spread = max(np.sqrt(variance), 1e-4)
    x = (0.5 * spread + spread * rng.normal(size=shape)).astype(np.float32)
    layer = stressed(
        kind, shape, gamma=[0.0, -1.5, 1e-7, 2.0], beta=[0.5, -0.1, 3.0, 0.0],
        moving_mean=[0.25 * spread], moving_variance=[variance],
    )  # fmt: skip
    layer.frozen.assign(int(mode == "frozen"))
    before = [np.asarray(getattr(layer, n)).astype(np.float64) for n in VARIABLES]
    raw = [v if isinstance(v, tf.Variable) else v.value for v in (layer.gamma, layer.beta)]
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = layer(tensor, training=mode != "inference")
        loss = tf.reduce_sum(tf.square(y - 1.0))
    wide, axes = x.astype(np.float64), tuple(range(len(shape) - 1))
    mean, var = before[2:]
    if mode == "batch":
        mean, var = wide.mean(axes), wide.var(axes)
    expected = oracles.Norm(before[0], before[1], mean, var, layer.epsilon)(wide)
    # Terms that cancel leave float32's rounding of them.
    factor = np.abs(before[0]) / np.sqrt(var + layer.epsilon)
    terms = factor * (np.abs(wide).max(axes) + np.abs(mean)) + np.abs(before[1])
    assert (np.abs(np.asarray(y) - expected) <= 3e-6 * terms + 1e-12).all()
    for gradient in tape.gradient(loss, [tensor, *raw]):
        assert np.isfinite(np.asarray(gradient)).all()
    for name in claims.STATISTICS:
        value = np.asarray(getattr(layer, name))
        assert np.isfinite(value).all() and (name == "moving_mean" or (value >= 0).all())


@both
def test_model_under_stress(kind, tmp_path):
    """A model with all of it, in phase quantize: trains without a NaN, and the file agrees."""
    keras = builders.keras_of(kind)
    model = small(keras)
    x = builders.residual_data(48)
    builders.set_statistics(
        model.get_layer("stem_bn"),
        gamma=[0.0, 1e-8, -1.0, 1.0, 0.5, -1e-3],
        moving_variance=[1e-8, 1e6, 1.0, 1e-8, 1e6, 1.0],
        moving_mean=[0.0, 10.0, 0.1, 1e-4, -900.0, 0.0],
    )
    builders.set_statistics(
        model.get_layer("alone"),
        gamma=[1.0, 0.0, -1.0, 1e-6, 2.0, -2.0],
        moving_variance=[1e-8, 1.0, 1e6, 1.0, 1e-8, 1e6],
    )
    for frozen in (False, True):
        qat = compiled(kind, builders.calibrated(model, x), 1e-3)
        rewriter.freeze_batch_norm(qat, frozen)
        losses = [float(np.ravel(qat.train_on_batch(*b))[0]) for b in batches(5)]
        losses += [float(np.ravel(qat.train_on_batch(*b))[0]) for b in batches(3, 1)]
        assert np.isfinite(losses).all()
        for name, value in builders.weights_by_name(qat).items():
            assert np.isfinite(value).all(), name
        path = tmp_path / f"{frozen}.tflite"
        assert not rewriter.export_tflite(qat, path).float_tensors
        found = rewriter.verify(qat, path, x, progress=False).comparison
        assert found.worst.identical >= 0.999 and found.worst.maximum <= 1, found.worst


@both
@pytest.mark.parametrize("pipeline", [False, True], ids=["", "pipeline"])
def test_gamma_crosses_zero_while_training(kind, pipeline, tmp_path):
    """Driven from +0.3 to -0.3 and exactly to 0 on the way; the file agrees at each stop."""
    keras = builders.keras_of(kind)
    model = small(keras)
    x = builders.residual_data(48)
    ops = {name: rewriter.FixedPoint(8) for name in VARIABLES} if pipeline else None
    qat = builders.calibrated(model, x, rewriter.Recipe(batch_norm_pipeline=ops))
    norms = schedule.batch_norms(qat)
    for norm in norms:
        norm.gamma.assign(np.linspace(0.2, 0.4, 6, dtype=np.float32))
    raw = [n.gamma if isinstance(n.gamma, tf.Variable) else n.gamma.value for n in norms]

    @tf.function
    def step(images: Any) -> Any:
        with tf.GradientTape() as tape:
            y = qat(images, training=True)
            # Pulls every gamma down by the same amount, whatever the scores say.
            pull = tf.add_n([tf.reduce_sum(g) for g in raw])
            loss = 1e-3 * tf.reduce_sum(y * y) + pull
        gradients = tape.gradient(loss, raw)
        for variable, gradient in zip(raw, gradients, strict=True):
            variable.assign_sub(0.025 * gradient)
        return loss, gradients

    signs = set()
    for index, (images, _) in enumerate(batches(30)):
        if index == 12:
            norms[0].gamma.assign(np.zeros(6, np.float32))
            norms[1].gamma.assign(np.array([0, 0, 0, 0.1, 0.1, -0.1], np.float32))
        if index in (0, 12, 29):
            path = tmp_path / f"{index}.tflite"
            rewriter.export_tflite(qat, path)
            found = rewriter.verify(qat, path, x, progress=False).comparison
            assert found.worst.identical >= 0.999 and found.worst.maximum <= 1, found.worst
            emulated = np.asarray(qat(x, training=False))
            assert np.abs(emulated - np.asarray(rewriter.fold(qat)(x))).max() <= 3 / 256
        loss, gradients = step(tf.constant(images))
        assert np.isfinite(float(loss)) and all(np.isfinite(g).all() for g in gradients)
        signs |= set(np.sign(np.asarray(norms[0].gamma)).tolist())
    assert signs >= {-1.0, 1.0}


@both
def test_ranges_that_are_almost_nothing(kind, tmp_path):
    """The converter widens ranges below 1e-6; the twin must know."""
    k = builders.keras_of(kind)
    image = k.Input((6, 6, 3))
    x = k.layers.Conv2D(4, 3, name="tiny")(image)
    x = k.layers.Conv2D(4, 1, name="large")(x)
    model = builders.randomise_all(k.Model(image, k.layers.Add()([x, x])), 3)
    for name, factor in (("tiny", 1e-8), ("large", 1e8)):
        layer = model.get_layer(name)
        layer.set_weights([weight * factor for weight in layer.get_weights()])
    data = np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype(np.float32)
    qat = builders.calibrated(model, data)
    claims.check_file(qat, rewriter.fold(qat), data, tmp_path)
    found = rewriter.verify(qat, tmp_path / "model.tflite", data, progress=False).comparison
    assert not found.missing and not found.differences
    assert all(tensor.identical == 1 for tensor in found.operator_by_operator)
