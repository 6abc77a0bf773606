"""Sizes of inputs that a model leaves open, fixed when it is rewritten or exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError, UnsupportedModelError
from rewriter_command import main

IMAGES = np.random.default_rng(0).normal(size=(16, 10, 12, 3)).astype(np.float32)


def open_model(flavour: str) -> Any:
    """Fully convolutional, with a size that is worked out from the image's: the padding's."""
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(3)
    inputs = keras.Input((None, None, 3), name="image")
    x = layers.ReLU()(
        layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, name="conv")(inputs))
    )
    x = layers.Cropping2D(1)(x)
    x = layers.UpSampling2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(x), name="open")


def check(qat: Any, original: Any, path: Path, data: np.ndarray = IMAGES, **options: Any) -> None:
    rewriter.export_tflite(qat, path, **options)
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    assert tuple(given["shape"][1:]) == data.shape[1:]
    result = rewriter.verify(qat, path, data, progress=False)
    assert result.comparison.worst.identical == 1.0
    assert result.parts_at is None
    assert result.snr is not None and result.snr > 20
    wanted = np.asarray(original(data))
    noise = np.asarray(qat(data)) - wanted
    assert 10 * np.log10(np.sum(wanted**2) / np.sum(noise**2)) > 20


@both
def test_fixed_when_rewritten(flavour: str, tmp_path: Path) -> None:
    model = open_model(flavour)
    weights = [np.array(w) for w in model.get_weights()]
    nodes = [len(rewriter_calls(layer)) for layer in model.layers]
    qat = rewriter.rewrite(model, input_shape=(10, 12, 3))
    assert tuple(qat.inputs[0].shape) == (None, 10, 12, 3)
    np.testing.assert_allclose(np.asarray(qat(IMAGES)), np.asarray(model(IMAGES)), atol=1e-5)
    rewriter.calibrate(qat, IMAGES, progress=False)
    check(qat, model, tmp_path / "m.tflite")
    # The user's model is as it was, its layers are called in no other place.
    assert tuple(model.inputs[0].shape) == (None, None, None, 3)
    assert [len(rewriter_calls(layer)) for layer in model.layers] == nodes
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert qat.get_layer("conv") is not model.get_layer("conv")


def rewriter_calls(layer: Any) -> list[Any]:
    """The places of a layer, as Keras counts them."""
    return list(layer._inbound_nodes)


@both
def test_fixed_when_exported(flavour: str, tmp_path: Path) -> None:
    """Rewritten with open sizes, trained, and given sizes for each file."""
    model = open_model(flavour)
    qat = rewriter.rewrite(model, calibration_data=IMAGES)
    with pytest.raises(ExportError, match="no fixed size|unknown size"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    before = np.asarray(qat(IMAGES))
    check(qat, model, tmp_path / "m.tflite", input_shape=(10, 12, 3))
    check(qat, model, tmp_path / "n.tflite", IMAGES[:, :9], input_shape={"image": (9, 12, 3)})
    np.testing.assert_array_equal(np.asarray(qat(IMAGES)), before)
    twin = rewriter.fold(qat, input_shape=(10, 12, 3))
    assert np.abs(np.asarray(twin(IMAGES)) - before).max() < 0.1 * np.abs(before).max()


@both
def test_a_model_around_it_fixes_them_too(flavour: str, tmp_path: Path) -> None:
    """``Model(i, q(i))``, as people do it, before rewriting and after."""
    keras = KERASES[flavour]
    model = open_model(flavour)
    inputs = keras.Input((10, 12, 3), name="fixed")
    qat = rewriter.rewrite(keras.Model(inputs, model(inputs)), calibration_data=IMAGES)
    check(qat, model, tmp_path / "m.tflite")
    qat = rewriter.rewrite(model, calibration_data=IMAGES)
    inputs = keras.Input((10, 12, 3), name="fixed")
    check(keras.Model(inputs, qat(inputs)), model, tmp_path / "n.tflite")


@both
def test_several_inputs(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    layers = keras.layers
    inputs = [keras.Input((None, 3), name="a"), keras.Input((4,), name="b")]
    x = layers.BatchNormalization()(layers.Conv1D(4, 3)(inputs[0]))
    x = layers.Concatenate()([layers.GlobalMaxPooling1D()(x), inputs[1]])
    model = keras.Model(inputs, layers.Dense(3)(x))
    rng = np.random.default_rng(1)
    data = [rng.normal(size=(8, 7, 3)).astype("f"), rng.normal(size=(8, 4)).astype("f")]
    for shape in ({"a": (7, 3)}, [(7, 3), (4,)]):
        qat = rewriter.rewrite(model, input_shape=shape, calibration_data=data)
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
        result = rewriter.verify(qat, tmp_path / "m.tflite", data, progress=False)
        assert result.comparison.worst.identical == 1.0


WRONG = {
    "another_size": ((10, 12, 4), r"'image' of 'open' has the shape \(None, None, 3\)"),
    "another_rank": ((10, 12), r"Received: \(10, 12\)"),
    "still_open": ((10, None, 3), "fixes the sizes that are None"),
    "nothing": ((10, 0, 3), "fixes the sizes that are None"),
    "another_name": ({"picture": (10, 12, 3)}, r"the input 'picture', which 'open' does not have"),
    "too_many": ([(10, 12, 3)] * 2, "the shapes of 2 inputs, 'open' has 1"),
}


@both
@pytest.mark.parametrize("case", WRONG)
def test_sizes_that_do_not_fit(flavour: str, case: str) -> None:
    shape, message = WRONG[case]
    with pytest.raises(UnsupportedModelError, match=message):
        rewriter.rewrite(open_model(flavour), input_shape=shape)


def test_on_the_command_line(tmp_path: Path) -> None:
    model = open_model("keras")
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", IMAGES)
    for fixed in ("convert", "export"):
        sizes = ["--input-shape", "10,12,3"]
        first, second = (sizes if fixed == name else [] for name in ("convert", "export"))
        qat, file = str(tmp_path / f"{fixed}.keras"), str(tmp_path / f"{fixed}.tflite")
        data = str(tmp_path / "x.npy")
        assert (
            main(["convert", str(tmp_path / "m.keras"), "-o", qat, "--calibrate", data, *first])
            == 0
        )
        assert main(["export", qat, "-o", file, *second]) == 0
        assert main(["verify", qat, file, "--data", data, "--min-identical", "1"]) == 0
