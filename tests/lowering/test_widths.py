"""Widths: what training emulates, the twin computes and the file stores are the same integers.

The twin's biases are rounded to int32 steps of the input's scale times the kernel's. Where those
are coarse (kernels of 4 bits and fewer, whose largest integer is 7) training rounds them too (see
test_coarse_bias.py); where they are fine this is all that remains between emulation and twin, and
nothing does with biases that lie on these steps beforehand.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import builders
import commands
import rewriter
import widths
from rewriter import FixedPoint, Recipe, grid
from rewriter.cli import demo
from rewriter.errors import ExportError, RecipeError
from rewriter.grid import Grid
from rewriter.layers import coarse_bias
from rewriter.litert import integer_fixed_point
from rewriter.lowering import folding
from rewriter.lowering.lower import lower
from rewriter.quantization.quantizers import FixedQuantizer, PerChannelQuantizer, RangeQuantizer
from tfmot_recipes import KERNEL, LAST, last_value

KERASES = builders.KERASES
both = pytest.mark.parametrize("kind", KERASES)


# The value


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_grid(bits):
    kernel, activation = grid.kernel(bits, [-1]), grid.activation(bits)
    assert (kernel.qmin, kernel.qmax, kernel.steps) == (
        -kernel.qmax,
        2 ** (bits - 1) - 1,
        2**bits - 2,
    )
    assert (activation.qmin, activation.steps) == (-(2 ** (bits - 1)), 2**bits - 1)
    assert kernel.symmetric and kernel.axes == (-1,) and not activation.symmetric
    assert grid.of(PerChannelQuantizer(bits, (-2, -1))) == grid.kernel(bits, (-2, -1))
    assert grid.of(RangeQuantizer(bits)) == grid.of(FixedQuantizer(0, 1, bits)) == activation
    tfmot = grid.of(last_value(**{**KERNEL, "num_bits": bits, "per_axis": True}))
    assert tfmot == grid.kernel(bits, [-1])


def test_sixteen_bits_are_symmetric():
    assert grid.activation(16) == Grid(16, symmetric=True, narrow=True)
    assert grid.activation(16).qmin == -32767


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_storage(kind):
    found = [grid.storage(kind, grid.kernel(bits)) for bits in range(2, 9)]
    assert found == [4, 4, 4, 8, 8, 8, 8]
    with pytest.raises(ValueError, match="2 to 4 bits or 5 to 8 bits. Received: one of 9 bits"):
        grid.storage(kind, grid.kernel(9))


def test_storage_of_transposed_convolutions():
    assert grid.storage("TRANSPOSE_CONV", grid.kernel(5)) == 8
    with pytest.raises(ValueError, match="takes kernels of 5 to 8 bits. Received: one of 4 bits"):
        grid.storage("TRANSPOSE_CONV", grid.kernel(4))
    with pytest.raises(ValueError, match="ADD has no kernel"):
        grid.storage("ADD", grid.kernel(8))


@pytest.mark.parametrize("bits", [1, 9, 4.0, True, "4"])
def test_bad_widths_are_refused_on_construction(bits):
    for make in (PerChannelQuantizer, rewriter.PerTensorQuantizer):
        with pytest.raises(RecipeError, match=r"num_bits must be in 2\.\.8"):
            make(num_bits=bits)
    with pytest.raises(RecipeError, match=r"RangeQuantizer: num_bits must be in 2\.\.16"):
        RangeQuantizer(num_bits=17 if bits == 9 else bits)


# The same integers on both sides

# Every host in every width, one way in one Keras and the next in the other; the rest is wide.
CASES = [
    pytest.param(
        kind,
        name,
        bits,
        how,
        marks=[]
        if (i + bits + k) % 2 == 0 and w == (i + bits + k) // 2 % 4
        else [pytest.mark.wide],
    )
    for k, kind in enumerate(KERASES)
    for i, name in enumerate(widths.HOSTS)
    for bits in range(2, 9)
    for w, how in enumerate(widths.WAYS)
    if not (name == "Conv2DTranspose" and bits < 5)
]


@pytest.mark.parametrize(("kind", "name", "bits", "how"), CASES)
def test_emulation_and_twin(kind, name, bits, how):
    model, x = widths.model(builders.keras_of(kind), name)
    qat = widths.calibrated(model, x, how, bits)
    widths.check_integers(qat, name, how, bits)
    plain = widths.decibels(qat(x, training=False), rewriter.fold(qat)(x))
    assert plain >= (55 if bits > 4 else 60), plain
    widths.on_the_grid_of_the_file(qat)
    exact = widths.decibels(qat(x, training=False), rewriter.fold(qat)(x))
    assert exact >= 60, exact


@both
@pytest.mark.parametrize("name", ["Conv2D", "DepthwiseConv2D", "Dense", "SeparableConv2D"])
def test_biases_that_are_not_rounded_are_found(kind, name, monkeypatch):
    model, x = widths.model(builders.keras_of(kind), name)
    qat = widths.calibrated(model, x, "tfmot", 4)
    monkeypatch.setattr(coarse_bias, "shifts", lambda host, kernels, phase: [None] * len(kernels))
    assert widths.decibels(qat(x, training=False), rewriter.fold(qat)(x)) < 55


@both
def test_a_narrow_kernel_lies_in_the_wider_storage(kind):
    model, x = widths.model(builders.keras_of(kind), "Conv2D")
    for bits, storage in ((2, 4), (3, 4), (4, 4), (5, 8), (8, 8)):
        program = lower(widths.calibrated(model, x, "explicit", bits))
        (operator,) = (s.operator for s in program.steps if s.operator.kernel is not None)
        assert operator.kernel_storage_bits == storage == operator.kernel_grid.bits
        assert np.abs(operator.kernel).max() <= operator.kernel_grid.qmax
        assert len(np.unique(operator.kernel[..., 0])) <= 2**bits - 1


# Seeded faults


@both
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_biases_have_room_for_sixteen_times_a_narrow_kernel(kind, bits):
    """With AVX-512 VNNI, XNNPACK shifts kernels of 4 bits, and so sums and biases, by 4.

    A channel that is dead but for its bias has the largest that its kernel's scale allows.
    """
    keras = builders.keras_of(kind)
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 1, name="point")(inputs))
    model = builders.randomise_all(keras.Model(inputs, layers.Conv2D(2, 1)(x)), 0)
    builders.set_statistics(
        model.get_layer("norm"), gamma=[1e-12, 1.0, 0.0, 1e-7], beta=[0.5, 0.5, -0.5, 0.5]
    )
    qat = rewriter.rewrite(model, Recipe(layers=[{"match": "point", "kernel_bits": bits}]))
    rewriter.calibrate(qat, builders.normal(16, 6, 6, 3), progress=False)
    made = next(s.operator for s in lower(qat).steps if s.operator.kernel is not None)
    largest = 2.0**26 if bits < 5 else 2.0**30
    assert largest / 2 < np.abs(made.bias.astype(np.float64)).max() < 1.001 * largest
    real = made.bias * made.inputs[0].scale * made.kernel_scale.astype(np.float64)
    np.testing.assert_allclose(np.abs(real[[0, 2]]), 0.5, rtol=1e-3, atol=0.02)


@pytest.mark.parametrize("name", ["Conv2D", "DepthwiseConv2D"])
@pytest.mark.parametrize("fault", ["bits", "axes"])
def test_another_grid_is_found(name, fault, monkeypatch):
    """The file on 8 bits, or along another axis, than training: the fault of earlier versions."""
    wrong = {"bits": lambda g: grid.kernel(8, g.axes), "axes": lambda g: grid.kernel(g.bits, [0])}
    whole = folding.kernel_integers

    def faulty(kernel, given, *scale):
        if fault == "bits":
            return whole(kernel, wrong[fault](given), *scale)
        right, scales = whole(kernel, given, *scale)
        turned = np.roll(right, 1, axis=given.axes[0])
        return turned, scales

    model, x = widths.model(builders.keras_of(KERASES[0]), name)
    qat = widths.calibrated(model, x, "explicit", 4)
    monkeypatch.setattr(folding, "kernel_integers", faulty)
    with pytest.raises(AssertionError, match="off by"):
        widths.check_integers(qat, name, "explicit", 4)
    assert widths.decibels(qat(x, training=False), rewriter.fold(qat)(x)) < 40


# Axes


@both
@pytest.mark.parametrize("name", ["DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"])
def test_the_axes_are_the_hosts(kind, name, tmp_path):
    """Of a quantizer that says otherwise, in a recipe and in a model saved with it."""
    keras = builders.keras_of(kind)
    model, x = widths.model(keras, name)
    axes = widths.AXES[name]
    qat = widths.calibrated(model, x, "explicit", 6)
    (host,) = builders.hosts(qat)
    assert [q.channel_axes for q in host.kernel_quantizers] == axes
    config = copy.deepcopy(host.get_config())
    for quantizer in config["kernel_quantizers"]:
        quantizer["config"]["channel_axes"] = [-1]
    again = type(host).from_config(config)
    assert [q.channel_axes for q in again.kernel_quantizers] == axes
    expected = np.asarray(qat(x, training=False))
    for quantizer in host.kernel_quantizers:
        quantizer.channel_axes = (-1,)  # as earlier versions saved it
    qat.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    (host,) = builders.hosts(loaded)
    assert [q.channel_axes for q in host.kernel_quantizers] == axes
    assert np.array_equal(np.asarray(loaded(x, training=False)), expected)
    assert widths.decibels(expected, rewriter.fold(loaded)(x)) >= 55


@both
def test_a_twin_keeps_its_widths(kind, tmp_path):
    keras = builders.keras_of(kind)
    model, x = widths.model(keras, "DepthwiseConv2D")
    twin = rewriter.fold(widths.calibrated(model, x, "explicit", 4))
    twin.save(tmp_path / "twin.keras")
    again = keras.models.load_model(tmp_path / "twin.keras")
    assert np.array_equal(np.asarray(again(x)), np.asarray(twin(x)))
    (layer,) = (n for n in again.layers if getattr(n, "kernel", None) is not None)
    assert layer.operator.kernel_storage_bits == 4
    assert layer.operator.kernel_grid == grid.kernel(4, (-2, -1))


# Refusals


@both
def test_a_transposed_convolution_of_four_bits_is_refused(kind):
    model, x = widths.model(builders.keras_of(kind), "Conv2DTranspose")
    qat = widths.calibrated(model, x, "explicit", 4)
    assert np.isfinite(np.asarray(qat(x, training=False))).all()
    message = "Layer 'host': TRANSPOSE_CONV takes kernels of 5 to 8 bits. Received: one of 4 bits"
    with pytest.raises(ExportError, match=message):
        rewriter.fold(qat)


@pytest.mark.parametrize(
    ("quantizer", "option"),
    [
        (RangeQuantizer(4), "num_bits=4"),
        (RangeQuantizer(12), "num_bits=12"),
        (last_value(**{**LAST, "num_bits": 16}), "symmetric=False"),
        (last_value(num_bits=16, symmetric=True, narrow_range=False), "narrow_range=False"),
        (last_value(num_bits=4), "num_bits=4"),
        (last_value(**{**LAST, "narrow_range": True}), "narrow_range=True"),
    ],
)
def test_activations_of_other_grids_train_and_are_refused(quantizer, option):
    model, x = widths.model(builders.keras_of(KERASES[0]), "Dense")
    qat = builders.calibrated(model, x, Recipe(activation_quantizer=quantizer))
    assert np.isfinite(np.asarray(qat(x, training=True))).all()
    with pytest.raises(ExportError, match=f"{type(quantizer).__name__} of '.*' has {option}"):
        rewriter.fold(qat)


def test_a_fixed_range_of_another_width_is_refused():
    keras = builders.keras_of(KERASES[0])
    image = keras.Input((4,))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(image))
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    qat = builders.calibrated(model, x)
    (host,) = builders.hosts(qat)
    host.before_activation.quantizer = FixedQuantizer(-8.0, 8.0, 4)
    with pytest.raises(ExportError, match="FixedQuantizer of .* has num_bits=4"):
        rewriter.fold(qat)


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (last_value(**{**KERNEL, "num_bits": 16}), "has a kernel of 16 bits"),
        (last_value(num_bits=4), "symmetric, narrow-range grid of 4 bits"),
        (FixedPoint(4, 8), "narrow-range grid of 4 bits"),
    ],
)
def test_kernels_of_other_grids_are_refused(quantizer, message):
    model, x = widths.model(builders.keras_of(KERASES[0]), "Dense")
    qat = builders.calibrated(model, x, Recipe(kernel_quantizer=quantizer))
    qat(x[:1], training=True)
    with pytest.raises(ExportError, match=f"'host'.*{message}"):
        rewriter.fold(qat)


# The demo


@pytest.mark.slow
def test_the_demo_at_four_bits_keeps_its_accuracy(tmp_path, capsys):
    """By the commands: a recipe in JSON, calibrated, trained on, exported and verified."""
    data, whole = demo.digits(), rewriter.load_model(demo.MODEL)
    (tmp_path / "four.json").write_text(widths.recipe("explicit", 4).to_json())
    np.savez(tmp_path / "train.npz", x=data.x_train[: demo.CALIBRATION_SAMPLES])
    np.savez(tmp_path / "test.npz", x=data.x_test, y=data.y_test)
    qat_path, file = tmp_path / "qat.keras", tmp_path / "four.tflite"
    recipe = ["--recipe", tmp_path / "four.json", "--calibrate", tmp_path / "train.npz"]
    commands.output_of(capsys, "convert", demo.MODEL, "-o", qat_path, *recipe)
    keras = builders.keras_of("tf_keras")
    qat = keras.models.load_model(qat_path)
    keras.utils.set_random_seed(0)
    qat.compile(
        keras.optimizers.SGD(0.0005, momentum=0.9), keras.losses.SparseCategoricalCrossentropy()
    )
    qat.fit(data.x_train, data.y_train, epochs=3, batch_size=32, verbose=0)
    trained = tmp_path / "trained.keras"
    qat.save(trained)
    commands.output_of(capsys, "export", trained, "-o", file)
    options = ["--data", tmp_path / "test.npz", "--array", "x", "--labels", "y", "--json"]
    # From input to output; the softmax in steps of 1/256 is by itself at 49 dB.
    text = commands.output_of(capsys, "verify", trained, file, *options, "--min-snr", "45")
    found = json.loads(text)
    assert min(found["accuracy"].values()) >= demo._accuracy(whole, data) - 0.01, found
    hosts = [t for t in found["training"]["tensors"] if t["name"] != "digit"]  # a softmax
    assert all(t["step_snr_db"] is None or t["step_snr_db"] >= 55 for t in hosts), hosts


@pytest.mark.parametrize("factor", [0.5, 2.0**-3, 2.0**-9, 0.75, 1.0, 3.0])
def test_halves_are_rounded_as_gemmlowp_does(factor):
    """Its first rounding is a truncated quotient, which takes halves up, negative ones too."""
    x = np.concatenate([np.arange(-3000, 3001), [2**20 + 1, -(2**20) - 1]])
    expected = integer_fixed_point.multiply(x, *integer_fixed_point.quantize_multiplier(factor))
    for found in (
        integer_fixed_point.multiply_tensor(x.astype(np.int32), factor),
        integer_fixed_point.multiply_by(
            x.astype(np.int32), *integer_fixed_point.quantize_multiplier(factor)
        ),
    ):
        np.testing.assert_array_equal(found, expected)
