"""Inputs of equidistant levels: no level is half-way between two integers, and the line of C."""

from __future__ import annotations

import re

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, keras_of
from rewriter.checking import interpreter
from rewriter.lowering.lower import lower
from rewriter.quantization import levels

PIXELS = np.arange(256)
SCALINGS = {
    "[-1, 1]": PIXELS / 127.5 - 1,
    "[0, 1]": PIXELS / 255,
    "[0, 255]": PIXELS.astype(float),
    "[-0.5, 0.5]": PIXELS / 255 - 0.5,
    "mean and deviation": (PIXELS / 255 - 0.485) / 0.229,
    "mean only": PIXELS - 123.68,
    "int8": PIXELS - 128.0,
    "deviation of half": (PIXELS / 255 - 0.5) / 0.25,
}


def found(values):
    finder = levels.LevelFinder()
    for part in np.array_split(np.random.default_rng(0).permutation(values), 3):
        finder.look(part.astype(np.float32))
    return finder.levels()


def evaluated(line, pixels):
    """The line of C by Python's rules, which are the same for what stands in it."""
    expression = re.fullmatch(r"q = (.*);(  //.*)?", line)[1]
    assert re.fullmatch(r"[pixel0-9 +\-*()>=]*", expression), line
    return np.array([eval(expression, {}, {"pixel": int(pixel)}) for pixel in pixels])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_no_level_is_on_a_tie(scaling):
    values = SCALINGS[scaling]
    at = found(values)
    assert at.count == 256
    np.testing.assert_allclose(at.values, values, atol=1e-5 * np.ptp(values))
    place = levels.placed(at, -128, 127)
    positions = values / place.scale
    distance = np.abs(positions - np.floor(positions) - 0.5)
    assert distance.min() > 0.0015
    # All integers are inside, at most one pair of levels shares one.
    integers = np.round(positions).astype(int) + place.zero_point
    assert integers.min() >= -128 and integers.max() <= 127
    assert len(set(integers)) >= 255
    line = levels.in_c(at, place.scale, place.zero_point, -128, 127)
    np.testing.assert_array_equal(evaluated(line, PIXELS), integers)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", KERASES)
def test_the_line_makes_the_inputs_of_the_file(name, scaling, tmp_path):
    keras = builders.fresh(keras_of(name))
    layers = keras.layers
    image = keras.Input((16, 16, 1), name="image")
    model = keras.Model(image, layers.BatchNormalization()(layers.Conv2D(2, 3)(image)))
    values = SCALINGS[scaling].astype(np.float32)
    rng = np.random.default_rng(1)
    pixels = np.stack([rng.permutation(256).reshape(16, 16, 1) for _ in range(4)])
    qat = rewriter.rewrite(model, calibration_data=values[pixels])
    path = tmp_path / "model.tflite"
    report = rewriter.export_tflite(qat, path)
    quantization = lower(qat).tensors["image"].quantization
    expected = interpreter.quantize(values[pixels], quantization)
    np.testing.assert_array_equal(
        evaluated(report.input_lines["image"], pixels.ravel()).reshape(pixels.shape), expected
    )
    assert report.input_lines["image"] in str(report)
    # Multiplied by the inverse, or in double precision: the same integers.
    scale, zero_point = quantization.scale, quantization.zero_point
    for way in (
        np.float32(1 / scale) * values[pixels],
        values[pixels].astype(np.float64) / scale,
        SCALINGS[scaling][pixels] / scale,
    ):
        np.testing.assert_array_equal(np.round(way) + zero_point, expected)


def test_the_range_stays_when_the_model_is_trained_saved_and_calibrated_again(tmp_path):
    keras = builders.fresh(keras_of("keras"))
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    model = keras.Model(image, layers.BatchNormalization()(layers.Conv2D(1, 8)(image)))
    rng = np.random.default_rng(0)
    x = SCALINGS["[-1, 1]"].astype(np.float32)[rng.integers(256, size=(64, 8, 8, 1))]
    qat = rewriter.rewrite(model, calibration_data=x)
    before = lower(qat).tensors["image"].quantization
    qat.compile("sgd", "mse")
    qat.fit(0.5 * x, np.zeros((64, 1, 1, 1)), verbose=0)
    assert lower(qat).tensors["image"].quantization == before
    qat.save(tmp_path / "qat.keras")
    again = keras.models.load_model(tmp_path / "qat.keras")
    line = rewriter.export_tflite(qat, tmp_path / "a.tflite").input_lines
    assert rewriter.export_tflite(again, tmp_path / "b.tflite").input_lines == line != {}
    rewriter.calibrate(again, rng.normal(size=x.shape).astype(np.float32), progress=False)
    assert rewriter.export_tflite(again, tmp_path / "c.tflite").input_lines == {}


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=2000),
        np.arange(300.0),  # more than 256
        np.array([0.0, 1.0, 2.5, 4.0]),
        np.array([0.0, 1.0]),
        np.zeros(10),
    ],
    ids=["any", "many", "uneven", "two", "one"],
)
def test_others_have_none(values):
    assert found(values) is None


def test_levels_that_were_not_seen_are_known_to_be_there():
    at = found(SCALINGS["[0, 1]"][5:250])
    assert at.first == 0 and at.count == 250
