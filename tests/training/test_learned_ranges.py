"""Learned ranges in a model: phases, training, saving, and the file."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

import builders
import claims
import real_models
import residuals
import rewriter
from builders import KERASES, fresh, keras_of
from residuals import X
from rewriter import Recipe
from rewriter.errors import CalibrationError, ExportError, RecipeError
from rewriter.layers import learned_kernels
from rewriter.lowering.lower import lower
from rewriter.quantization import phases
from rewriter.quantization.learned import LearnedKernelQuantizer, LearnedRangeQuantizer
from rewriter.quantization.quantizers import PerChannelQuantizer, RangeQuantizer
from tfmot_recipes import KERNEL, last_value, moving_average

pytestmark = pytest.mark.kernels
both = pytest.mark.parametrize("kind", KERASES)
METHODS = ("lsq", "lsq+", "tqt")
Y = np.arange(len(X)) % 5
LOSS = "sparse_categorical_crossentropy"
keras = residuals.keras


def learned_variables(qat):
    return [v for v in qat.trainable_weights if "learned" in v.name]


def values(variables):
    return [np.asarray(v).copy() for v in variables]  # not a view of what training changes


def all_learned(method, **fields):
    """Ranges of 8 bits, too, which are learned only where that is asked for."""
    return Recipe(ranges=method, activation_quantizer=LearnedRangeQuantizer(method), **fields)


def moved(before, variables):
    return [not np.array_equal(a, b) for a, b in zip(before, values(variables), strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_from_float_to_the_file(keras, method, tmp_path):
    """The original model before, every scale trained in phase quantize, and kept to the file."""
    model = builders.trained_residual(keras)
    qat = rewriter.rewrite(model, all_learned(method))
    plain = rewriter.rewrite(model)
    for each in (qat, plain):
        each.compile(keras.optimizers.SGD(5e-4, momentum=0.9), LOSS)
    for phase in ("float", "observe"):
        for each in (qat, plain):
            rewriter.set_phase(each, phase)
            before = values(learned_variables(each))
            each.train_on_batch(X, Y)
            assert not any(moved(before, learned_variables(each)))
        outputs = [np.asarray(each(X, training=False)) for each in (qat, plain)]
        claims.assert_close(*outputs, 1e-6)

    rewriter.calibrate(qat, X, progress=False)
    variables = learned_variables(qat)
    kernels = [h for h in builders.hosts(qat) for _ in h.kernel_quantizers]
    assert len(variables) > 2 * len(kernels)
    # An offset moves where something lies below the range, or above.
    scales = [v for v in variables if "offset" not in v.name]
    before, offsets = values(scales), values(variables)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(getattr(keras.losses, LOSS)(Y, qat(X, training=True)))
    found = tape.gradient(loss, [v if isinstance(v, tf.Variable) else v.value for v in scales])
    assert all(np.abs(each).max() > 0 for each in found)
    qat.fit(X, Y, epochs=3, verbose=0)
    # A step of 5e-4 times such a gradient may be less than the last bit of a logarithm.
    assert all(moved(before, scales)) or method == "tqt"
    assert sum(moved(before, scales)) > len(scales) - 3
    assert sum(moved(offsets, variables)) > len(scales) or method != "lsq+"
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    before = values(variables)
    rest = values(qat.trainable_weights)
    optimizer = keras.optimizers.SGD(2e-3)  # without momentum, which goes on by itself
    qat.compile(optimizer, LOSS)
    qat.fit(X, Y, epochs=1, verbose=0)
    assert not any(moved(before, variables)) and any(moved(rest, qat.trainable_weights))

    expected = np.asarray(qat(X, training=False))
    names = ["qat.keras", "qat.h5"] + (["qat"] if keras.__name__ == "tf_keras" else [])
    for name in names:
        qat.save(tmp_path / name)
        again = keras.models.load_model(tmp_path / name)
        assert np.array_equal(np.asarray(again(X, training=False)), expected)
    claims.check_file(again, rewriter.fold(again), X, tmp_path)
    frozen = np.asarray(rewriter.freeze(again)(X, training=False))
    claims.assert_close(frozen, expected, 0.03)
    scales_are_the_learned(again, method)


def scales_are_the_learned(qat, method):
    """Those in the program are what the variables say, to the last bit."""
    program = lower(qat)
    grids = {t.quantization for t in program.tensors.values() if t.quantization is not None}
    found = {(np.float32(g.scale), g.zero_point) for g in grids}
    for layer in claims.quantize_layers(qat):
        if not isinstance(layer.quantizer, LearnedRangeQuantizer):
            continue
        learned, offset, zero = (
            np.float32(layer.range_variables[k]) for k in ("learned", "offset", "zero_point")
        )
        if method == "tqt":
            learned = np.float32(2.0 ** np.ceil(learned) / (127 + 1 - zero))
        if method == "lsq+":
            zero = np.clip(np.floor(-offset / learned + np.float32(0.5)), 0, 255) - 128
        assert (learned, int(zero)) in found
    hosts = {h.name: h for h in builders.hosts(qat)}
    for step in program.steps:
        host = hosts.get(step.name)
        if step.operator.kernel is None or host is None:
            continue
        scale = np.asarray(learned_kernels.scales(host, 0))
        if host.batch_norm is not None and not host.folds_first:
            factor = (
                np.abs(np.asarray(host.factor(tf.constant(phases.FLOAT))))
                .ravel()
                .astype(np.float64)
            )
            scale = (scale * factor).astype(np.float32)
        live = step.operator.kernel_scale > 1e-6  # others are raised, see folding.bound_scale
        np.testing.assert_allclose(step.operator.kernel_scale[live], scale[live], rtol=1e-6)
        if method == "tqt":
            mantissa, _ = np.frexp(step.operator.kernel_scale)
            assert set(mantissa) == {0.5}


@both
def test_mixed_precision(kind):
    """The scales are float32, and the loss scale reaches none of them."""
    keras = fresh(keras_of(kind))
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = builders.trained_residual(keras)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    qat = builders.calibrated(model, X, all_learned("lsq+"))
    variables = learned_variables(qat)
    assert {np.asarray(v).dtype for v in variables} == {np.dtype("float32")}
    before = values(variables)
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(1e-3))
    qat.compile(optimizer, LOSS)
    qat.fit(X, Y, epochs=2, verbose=0)
    after = values(variables)
    assert sum(moved(before, variables)) > len(variables) // 2
    for a, b in zip(before, after, strict=True):
        assert np.abs(a - b).max() < 0.2 * max(np.abs(a).max(), 0.1)


@both
def test_a_schedule_starts_what_is_learned(kind):
    """Observed while training in float: no calibration is needed."""
    keras = fresh(keras_of(kind))
    qat = rewriter.rewrite(builders.trained_residual(keras), all_learned("lsq"))
    qat.compile(keras.optimizers.SGD(1e-3), LOSS)
    with pytest.raises(CalibrationError, match=r"range of '\w+' is learned \(lsq\).*calibrate"):
        rewriter.set_phase(qat, "quantize")
    schedule = rewriter.QuantizationSchedule(2)
    qat.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[schedule])
    assert all(np.all(v != 0) for v in values(learned_variables(qat)))
    lower(qat)  # and export has its ranges


@pytest.mark.slow
@both
def test_an_input_with_levels_keeps_its_scale(kind):
    """Learned, its scale would put pixels on ties; powers of two are asked for all the same."""
    keras = fresh(keras_of(kind))
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (32, 12, 12, 3)) / 127.5 - 1).astype(np.float32)
    found = {}
    for method in METHODS:
        qat = builders.calibrated(builders.trained_residual(keras), images, Recipe(ranges=method))
        qat.compile(keras.optimizers.SGD(1e-3), LOSS)
        before = lower(qat).tensors["image"].quantization
        qat.fit(images, np.arange(32) % 5, verbose=0)
        found[method] = before, lower(qat).tensors["image"].quantization
    plain = lower(builders.calibrated(builders.trained_residual(keras), images))
    for method in ("lsq", "lsq+"):
        assert found[method][0] == found[method][1] == plain.tensors["image"].quantization
    assert np.frexp(found["tqt"][1].scale)[0] == 0.5


# What may be asked for


@both
def test_rules_for_single_layers(kind):
    recipe = Recipe(
        layers=[{"match": "pw", "ranges": "observed"}, {"kind": "Conv2D", "ranges": "tqt"}],
        ranges="lsq",
    )
    assert Recipe.from_json(recipe.to_json()) == recipe
    qat = rewriter.rewrite(builders.trained_residual(fresh(keras_of(kind))), recipe)
    found = {h.name: getattr(h.kernel_quantizers[0], "method", None) for h in builders.hosts(qat)}
    assert found == {"stem": "tqt", "dw": "lsq", "pw": None, "scores": "lsq"}


def test_a_recipe_without_learned_ranges_is_written_as_before():
    assert "ranges" not in Recipe().to_dict()
    assert "calibration" not in Recipe(calibration="minmax").to_dict()
    assert Recipe.from_dict({}).calibration == "minmax"  # which it meant when there was no other
    assert Recipe.from_dict(Recipe().to_dict()).calibration is None


REFUSED = {
    "a name": ({"ranges": "pact"}, "ranges must be one of"),
    "a rule": ({"layers": [{"ranges": "pact"}]}, "layers: ranges must be one of"),
    "their kernels": (
        {"kernel_quantizer": last_value(**KERNEL), "ranges": "lsq"},
        "ranges 'lsq' and kernel_quantizer LastValueQuantizer exclude each other",
    ),
    "their activations": (
        {"activation_quantizer": moving_average(), "ranges": "tqt"},
        "ranges 'tqt' and activation_quantizer MovingAverageQuantizer exclude",
    ),
    "2 bits": (
        {"kernel_quantizer": PerChannelQuantizer(2), "ranges": "tqt"},
        r"3\.\.8.*no power of two. Received: 2. Use 3 bits or ranges 'lsq'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, message = REFUSED[name]
    with pytest.raises(RecipeError, match=message):
        Recipe(**arguments)


def test_what_a_rule_asks_for_is_refused_by_layer():
    keras = fresh(keras_of(KERASES[0]))
    recipe = Recipe(ranges="tqt", layers=[{"match": "pw", "kernel_bits": 2}])
    with pytest.raises(RecipeError, match=r"does not fit 'pw'.*3\.\.8"):
        rewriter.rewrite(builders.trained_residual(keras), recipe)


@both
@pytest.mark.parametrize("method", ["lsq", "tqt"])
def test_one_scale_for_a_kernel(kind, method, tmp_path):
    keras = fresh(keras_of(kind))
    recipe = Recipe(ranges=method, layers=[{"per_tensor": True}])
    qat = builders.calibrated(builders.trained_residual(keras), X, recipe)
    # Without momentum, at a rate at which thresholds of powers of two move by more than a bit.
    qat.compile(keras.optimizers.SGD(1e-2 if method == "tqt" else 1e-3), LOSS)
    before = values(learned_variables(qat))
    qat.fit(X, Y, epochs=2, verbose=0)
    assert all(moved(before, learned_variables(qat)))
    claims.check_file(qat, rewriter.fold(qat), X, tmp_path)
    for host in builders.hosts(qat):
        assert isinstance(host.kernel_quantizers[0], LearnedKernelQuantizer)
        assert learned_kernels.scales(host, 0).shape == ()


# What it is for


@pytest.mark.slow
def test_three_bits_with_outliers():
    """Digits with some hot pixels: the batches' extremes spend the steps on those."""
    keras = fresh(keras_of(KERASES[0]))
    digits, rng = load_digits(), np.random.default_rng(0)
    x, y = digits.images[..., None] / 16, digits.target
    x = np.where(rng.random(x.shape) < 0.01, rng.uniform(3, 8, x.shape), x).astype(np.float32)
    layers = keras.layers
    z = image = keras.Input((8, 8, 1))
    for name, filters, strides in (("a", 12, 1), ("b", 16, 2)):
        z = layers.Conv2D(filters, 3, strides=strides, padding="same", name=name)(z)
        z = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(z))
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(z)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    model.fit(x[:1300], y[:1300], batch_size=50, epochs=5, verbose=0)
    accuracy = {}
    for ranges in ("observed", "lsq", "lsq+"):
        recipe = Recipe(
            kernel_quantizer=PerChannelQuantizer(3),
            activation_quantizer=RangeQuantizer(3),
            ranges=ranges,
        )
        keras.utils.set_random_seed(1)
        qat = builders.calibrated(model, x[:300], recipe)
        qat.compile(keras.optimizers.Adam(2e-3), loss)
        qat.fit(x[:1300], y[:1300], batch_size=50, epochs=10, verbose=0)
        found = qat.predict(x[1300:], verbose=0).argmax(-1)
        accuracy[ranges] = np.mean(found == y[1300:])
    assert accuracy["lsq"] > accuracy["observed"] + 0.05, accuracy
    assert accuracy["lsq+"] > accuracy["observed"] + 0.05, accuracy


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_real_model(method, shared, tmp_path):
    """Trained for a few steps at 4 bits, exported, and verified tensor by tensor."""
    keras = fresh(keras_of("tf_keras"))
    model = real_models.load(shared, "kws01", "tf_keras")
    x, y = real_models.kws_extra(shared)
    recipe = all_learned(method, layers=[{"kind": "pointwise", "kernel_bits": 4}])
    qat = builders.calibrated(model, x[::10], recipe)
    qat.compile(keras.optimizers.Adam(1e-4), LOSS)
    rewriter.freeze_batch_norm(qat)
    before = values(learned_variables(qat))
    qat.fit(x[:640], y[:640], batch_size=64, verbose=0)
    # Those of 10 kernels and 10 activations; the input's is not learned.
    assert sum(moved(before, learned_variables(qat))) >= 20
    rewriter.export_tflite(qat, tmp_path / "model.tflite")
    found = rewriter.verify(qat, tmp_path / "model.tflite", x[:64], progress=False)
    assert found.training.fault is None and not found.comparison.differences
    assert found.comparison.worst.identical == 1
    assert found.training.weakest.snr_db > 20


@pytest.mark.parametrize("what", ["kernel", "activation"])
def test_a_scale_that_training_has_driven_below_zero(keras, what, tmp_path):
    """It is not an outlier in the data, which is what LiteRT's refusal of the file looked like."""
    qat = rewriter.rewrite(builders.residual(keras), all_learned("lsq"))
    rewriter.calibrate(qat, X, progress=False)
    weights = {
        "kernel": lambda: builders.hosts(qat)[1].kernel_weights[0],
        "activation": lambda: claims.quantize_layers(qat)[2].range_variables,
    }[what]()
    before = np.array(weights["learned"])
    below = before.copy()
    below.reshape(-1)[0] = -1e-3
    weights["learned"].assign(below)
    with pytest.raises(ExportError, match=r"driven a learned scale of '\w+' to -0.001.*smaller"):
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
    weights["learned"].assign(before)
    rewriter.export_tflite(qat, tmp_path / "model.tflite")


def test_kernels_whose_scales_are_kept_by_themselves():
    """As models have them that were saved before: their configuration says nothing of units."""
    keras = fresh(keras_of("tf_keras"))
    config = {"method": "lsq", "num_bits": 4, "channel_axes": [-1]}
    before = LearnedKernelQuantizer.from_config(config)
    assert not before.rooted and LearnedKernelQuantizer("lsq", 4).rooted
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 2, 5)), tf.float32)
    scales, learned = [], []
    for quantizer in (before, LearnedKernelQuantizer("lsq", 4)):
        layer = keras.layers.Layer()
        weights = quantizer.build(kernel.shape, "kernel0", layer)
        quantizer.start(kernel, weights)
        learned.append(np.asarray(weights["learned"]))
        scales.append(np.asarray(quantizer.scales(kernel, weights)))
    np.testing.assert_allclose(scales[1], scales[0], rtol=1e-6)
    assert np.array_equal(scales[0], learned[0])
    np.testing.assert_allclose(learned[1], learned[0] * np.sqrt(14), rtol=1e-6)
    again = LearnedKernelQuantizer.from_config(LearnedKernelQuantizer("lsq", 4).get_config())
    assert again.rooted


def test_adam_drives_no_kernel_of_eight_bits_to_zero():
    """In 200 steps of the same sign at a usual rate; what is learned is 0.03 here."""
    keras = fresh(keras_of("tf_keras"))
    kernel = tf.constant(np.random.default_rng(0).normal(0, 0.1, (3, 3, 8, 5)), tf.float32)
    quantizer, layer = LearnedKernelQuantizer("lsq", 8), keras.layers.Layer()
    weights = quantizer.build(kernel.shape, "kernel0", layer)
    quantizer.start(kernel, weights)
    first = np.asarray(quantizer.scales(kernel, weights))
    optimizer = keras.optimizers.Adam(1e-4)
    variable = weights["learned"]
    for _ in range(200):
        optimizer.apply_gradients([(tf.ones_like(tf.convert_to_tensor(variable)), variable)])
    scales = np.asarray(quantizer.scales(kernel, weights))
    assert (scales > first / 4).all() and (first - scales < 200 * 1e-4).all()


@pytest.mark.parametrize(("method", "bits", "learns"), [
    ("lsq", 8, False), ("lsq+", 8, False), ("lsq", 4, True), ("tqt", 4, True),
])  # fmt: skip
def test_which_ranges_are_learned(method, bits, learns):
    """One that is not learned is as it would be without: it follows the data as the recipe says."""
    recipe = Recipe(ranges=method, activation_quantizer=RangeQuantizer(bits, momentum=0.7))
    for given in (False, True):
        found = recipe.new_activation_quantizer("relu", given=given)
        assert isinstance(found, LearnedRangeQuantizer) == learns
        assert found.num_bits == bits
        if not learns:
            without = Recipe(activation_quantizer=RangeQuantizer(bits, momentum=0.7))
            expected = without.new_activation_quantizer("relu")
            assert type(found) is type(expected) and found.get_config() == expected.get_config()
    asked = all_learned(method)
    assert Recipe.from_json(asked.to_json()).to_json() == asked.to_json()
    assert isinstance(asked.new_activation_quantizer("relu"), LearnedRangeQuantizer)
    of_input = asked.new_activation_quantizer("image", given=True)
    assert not isinstance(of_input, LearnedRangeQuantizer)


@both
def test_eight_bits_of_activations_stay_as_calibrated(kind):
    """Their ranges are those of a model without learned ones, before and after training."""
    keras = fresh(keras_of(kind))
    model = builders.trained_residual(keras)
    found = {}
    for ranges in ("observed", "lsq", "lsq+"):
        recipe = Recipe(ranges=ranges, calibration="percentile")
        qat = builders.calibrated(model, X, recipe)
        layers = [q for q in claims.quantize_layers(qat) if q.range_is_set]
        before = [values([q.range_variables[k] for k in ("min_var", "max_var")]) for q in layers]
        if ranges != "observed":
            kernels = learned_variables(qat)
            assert len(kernels) == sum(len(h.kernel_quantizers) for h in builders.hosts(qat))
            start = values(kernels)
            qat.compile(keras.optimizers.Adam(1e-4), LOSS)
            qat.fit(X, Y, verbose=0)
            assert all(moved(start, kernels))
            after = [values([q.range_variables[k] for k in ("min_var", "max_var")]) for q in layers]
            assert np.array_equal(before, after)
        found[ranges] = before
    assert np.array_equal(found["observed"], found["lsq"])
    assert np.array_equal(found["observed"], found["lsq+"])


@pytest.mark.parametrize(("method", "bits"), [("lsq", 3), ("lsq", 8), ("lsq+", 3)])
def test_kernels_start_where_their_error_is_smallest(method, bits):
    keras = fresh(keras_of("tf_keras"))
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 8, 5)), tf.float32)
    quantizer, layer = LearnedKernelQuantizer(method, bits), keras.layers.Layer()
    weights = quantizer.build(kernel.shape, "kernel0", layer)
    papers = np.asarray(quantizer.scales(kernel, weights))
    quantizer.start(kernel, weights)
    closest = np.asarray(quantizer.scales(kernel, weights))

    def error(scales):
        top = 2 ** (bits - 1) - 1
        w = np.asarray(kernel, np.float64)
        return ((np.clip(np.rint(w / scales), -top, top) * scales - w) ** 2).sum((0, 1, 2))

    assert (error(closest) < error(papers)).all()
    steps = np.abs(np.asarray(kernel)).max((0, 1, 2)) / (2 ** (bits - 1) - 1)
    assert (error(closest) <= error(steps)).all()
