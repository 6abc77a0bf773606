"""Rules for single layers, named recipes, and what becomes of them in the file."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import rewriter
import rewriter_command
import rewriter_options
from builders import KERASES, keras_of
from rewriter import LayerRule, Recipe
from rewriter.errors import RecipeError
from rewriter.quantization.quantizers import CALIBRATIONS, PerTensorQuantizer
from rewriter.rewriting.layer_rules import NAMED

# name: kind of kernel, as the model below has them
KERNELS = {
    "first": "3x3",
    "deep": "depthwise",
    "point": "1x1",
    "separable": "separable",
    "wide": "3x3",
    "hidden": "dense",
    "last": "dense",
}


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


def model(keras):
    layers = keras.layers
    x = image = keras.Input((12, 12, 3), name="image")
    for name, layer in (
        ("first", layers.Conv2D(8, 3, name="first")),
        ("deep", layers.DepthwiseConv2D(3, name="deep")),
        ("point", layers.Conv2D(8, 1, name="point")),
        ("separable", layers.SeparableConv2D(8, 3, name="separable")),
        ("wide", layers.Conv2D(8, 3, name="wide")),
    ):
        x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(layer(x)))
    x = layers.Flatten()(x)
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return builders.randomise_all(keras.Model(image, layers.Dense(4, name="last")(x)), 0)


def bits(qat):
    """The widths of the kernels of each layer, and whether they have one scale."""
    return {
        layer.name: [
            (q.num_bits, isinstance(q, PerTensorQuantizer)) for q in layer.kernel_quantizers
        ]
        for layer in qat.layers
        if hasattr(layer, "kernel_quantizers")
    }


def widths(qat):
    return {name: [width for width, _ in found] for name, found in bits(qat).items()}


EIGHT = {name: [8, 8] if name == "separable" else [8] for name in KERNELS}

CASES = {
    "int8": (Recipe.named("int8"), {}),
    "w4a8": (Recipe.named("w4a8"), {"point": [4], "separable": [8, 4], "hidden": [4]}),
    "w4a8-small": (
        Recipe.named("w4a8-small"),
        {"deep": [4], "point": [4], "separable": [4, 4], "wide": [4], "hidden": [4]},
    ),
    "w2-dense": (Recipe.named("w2-dense"), {"hidden": [2]}),
    "by name": (Recipe(layers=[{"match": "last", "kernel_bits": 4}]), {"last": [4]}),
    "by the name of its norm": (
        Recipe(layers=[{"match": "wide_bn", "kernel_bits": 3}]),
        {"wide": [3]},
    ),
    "the first counts": (
        Recipe(
            layers=[{"match": "wide", "kernel_bits": 6}, {"match": ["w*", "d*"], "kernel_bits": 5}]
        ),
        {"wide": [6], "deep": [5]},
    ),
    "ends too": (
        Recipe(layers=[{"kind": ["Conv2D", "Dense"], "kernel_bits": 4}], end_bits=4),
        {"first": [4], "point": [4], "wide": [4], "hidden": [4], "last": [4]},
    ),
    "beside a quantizer": (
        Recipe(
            kernel_quantizer=rewriter.PerChannelQuantizer(num_bits=7),
            layers=[LayerRule("deep", kernel_bits=4)],
        ),
        {name: [7] * len(value) for name, value in EIGHT.items()} | {"deep": [4]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_widths(keras, case, tmp_path):
    recipe, different = CASES[case]
    again = Recipe.from_json(recipe.to_json())
    assert again.to_dict() == recipe.to_dict()
    qat = rewriter.rewrite(model(keras), again)
    assert widths(qat) == EIGHT | different
    x = builders.normal(24, 12, 12, 3)
    rewriter.calibrate(qat, x, progress=False)
    file = tmp_path / "model.tflite"
    rewriter.export_tflite(qat, file)
    found = rewriter.verify(qat, file, x, progress=False)
    assert found.comparison.worst is None or found.comparison.worst.identical == 1.0
    assert found.training.fault is None


def test_a_row_of_pixels_is_not_pointwise(keras):
    layers = keras.layers
    stack = [
        layers.Conv2D(3, size, name=f"k{number}")
        for number, size in enumerate([1, (1, 3), (3, 1), (1, 1), 1])
    ]
    qat = rewriter.rewrite(keras.Sequential([keras.Input((8, 8, 3)), *stack]), "w4a8")
    assert list(widths(qat).values()) == [[8], [8], [8], [4], [8]]  # the first and last: ends


def test_one_scale_for_a_kernel(keras):
    qat = rewriter.rewrite(model(keras), "int8-per-tensor")
    assert {pair for found in bits(qat).values() for pair in found} == {(8, True)}
    one = rewriter.rewrite(model(keras), Recipe(layers=[{"match": "hidden", "per_tensor": True}]))
    assert [name for name, found in bits(one).items() if (8, True) in found] == ["hidden"]


def test_smaller_files(tmp_path):
    keras = builders.fresh(keras_of("keras"))
    sizes = {}
    for name in ("int8", "w4a8", "w4a8-small"):
        qat = rewriter.rewrite(model(keras), name)
        rewriter.calibrate(qat, builders.normal(8, 12, 12, 3), progress=False)
        sizes[name] = rewriter.export_tflite(qat, tmp_path / f"{name}.tflite").bytes
    assert sizes["w4a8-small"] < sizes["w4a8"] < sizes["int8"]


BAD = {
    "no list": ({"match": "a"}, "list of rules"),
    "unknown field": ([{"bits": 4}], "unknown field 'bits'"),
    "width": ([{"kernel_bits": 9}], "kernel_bits must be in 2..8. Received: 9"),
    "kind": ([{"kind": "Conv4D"}], "kind must be of .*Received: 'Conv4D'"),
    "match": ([{"match": 3}], "match must be text"),
    "per tensor": ([{"per_tensor": "yes"}], "per_tensor must be true or false"),
    "calibration": ([{"calibration": "max"}], "calibration must be one of"),
    "rule": (["deep"], "a rule is a JSON object"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rules(case):
    rules, message = BAD[case]
    with pytest.raises(RecipeError, match=message):
        Recipe(layers=rules)


def test_a_rule_about_no_layer(keras):
    with pytest.raises(RecipeError, match="no layer of the model is called 'blok_\\*'"):
        rewriter.rewrite(model(keras), Recipe(layers=[{"match": "blok_*", "kernel_bits": 4}]))


def test_an_unknown_name(keras):
    with pytest.raises(RecipeError, match="no recipe called 'w3'. There are: int8, "):
        rewriter.rewrite(model(keras), "w3")


def test_a_width_that_a_file_does_not_take(keras, tmp_path):
    layers = keras.layers
    built = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2DTranspose(4, 3, name="up"),
            layers.BatchNormalization(),
        ]
    )
    qat = rewriter.rewrite(built, Recipe(layers=[{"match": "up", "kernel_bits": 4}]))
    rewriter.calibrate(qat, builders.normal(8, 6, 6, 3), progress=False)
    with pytest.raises(rewriter.RewriterError, match="up.*TRANSPOSE_CONV"):
        rewriter.export_tflite(qat, tmp_path / "up.tflite")


def test_the_command_line_knows_the_same_names():
    assert tuple(NAMED) == rewriter_options.RECIPES
    assert CALIBRATIONS == rewriter_options.CALIBRATIONS


def test_the_command_line(tmp_path, capsys):
    keras = builders.fresh(keras_of("keras"))
    model(keras).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=builders.normal(8, 12, 12, 3))
    arguments = ["convert", tmp_path / "model.keras", "-o", tmp_path / "qat.keras"]
    options = ["--recipe", "w4a8", "--calibrate", tmp_path / "data.npz", "--method", "percentile"]
    assert rewriter_command.main([str(a) for a in [*arguments, *options]]) == 0
    qat = keras.models.load_model(tmp_path / "qat.keras")
    assert widths(qat)["point"] == [4]
    assert rewriter_command.main([str(a) for a in [*arguments, "--recipe", "w5a8"]]) == 1
    assert "no recipe called 'w5a8'. There are: int8" in capsys.readouterr().err
