"""Bias correction: what quantization moves the means by is taken back, in the file too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, both
from rewriter.errors import CalibrationError, RecipeError
from rewriter.keras_compat import flavour_of

RNG = np.random.default_rng(0)
X = RNG.normal(0.5, 1, size=(96, 8, 8, 3)).astype(np.float32)


def model(flavour: str) -> Any:
    """Every place of a bias: a normalization, one without beta, a bias, none; two kernels."""
    keras = KERASES[flavour]
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization(center=False)(layers.DepthwiseConv2D(3, name="depth")(x))
    x = layers.SeparableConv2D(8, 3, activation="relu", name="separable")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    shared = layers.Dense(8, use_bias=False, activation="relu", name="shared")
    x = layers.Reshape((2, 4))(shared(shared(x)))
    x = layers.EinsumDense("abc,cde->abde", (2, 2, 3), bias_axes="e", name="einsum")(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(x)))


def rewritten(flavour: str, bits: int = 4, made: Any = None, **fields: Any) -> Any:
    rules = [{"kernel_bits": bits}]
    recipe = rewriter.Recipe(layers=rules, bias_correction=True, end_bits=bits, **fields)
    return rewriter.rewrite(model(flavour) if made is None else made, recipe)


def hosts(qat: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in qat.layers if hasattr(layer, "host")}


def corrections(qat: Any) -> dict[str, np.ndarray]:
    return {name: np.array(layer.correction) for name, layer in hosts(qat).items()}


def on_grid(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """The affine grid of 8 bits on a range that contains 0."""
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def on_kernel_grid(w: np.ndarray, bits: int) -> np.ndarray:
    scale = np.abs(w).max(0) / (2 ** (bits - 1) - 1)
    return np.round(w / scale) * scale


@both
@pytest.mark.parametrize("batch_size", [32, 96])
def test_the_values_are_those_of_a_numpy_oracle(flavour: str, batch_size: int) -> None:
    """Two layers, of which the second has its input from the first, corrected.

    Kernels of 5 bits are stored in 8, so that their biases are not coarse.
    """
    keras = KERASES[flavour]
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(7, activation="relu", name="dense")(inputs)
    made = keras.Model(inputs, keras.layers.Dense(5, name="head")(x))
    qat = rewritten(flavour, 5, made, calibration="minmax")
    x = np.random.default_rng(1).normal(1, 1, (96, 6)).astype(np.float32)
    rewriter.calibrate(qat, x, batch_size=batch_size, progress=False)

    weights = [np.array(w, np.float64) for w in made.get_weights()]
    hidden = np.maximum(x @ weights[0] + weights[1], 0)
    given = on_grid(x, min(x.min(), 0), x.max())
    expected: dict[str, Any] = {"dense": [], "head": []}
    for rows in (slice(i, i + batch_size) for i in range(0, 96, batch_size)):
        y = given[rows] @ on_kernel_grid(weights[0], 5) + weights[1]
        first = (x[rows] @ weights[0] + weights[1] - y).mean(0)
        h = on_grid(np.maximum(y + first, 0), 0, hidden.max())
        expected["dense"].append(first)
        second = hidden[rows] @ weights[2] - h @ on_kernel_grid(weights[2], 5)
        expected["head"].append(second.mean(0))
    for name, found in corrections(qat).items():
        # Values within a float32 of a tie fall on either side of it.
        np.testing.assert_allclose(found, np.mean(expected[name], 0), atol=2e-4)
        assert np.abs(found).max() > 0.005


@both
def test_a_planted_bias_is_corrected(flavour: str) -> None:
    """Weights that all round upwards, on inputs of one sign: all means move by the same."""
    keras = KERASES[flavour]
    inputs = keras.Input((20,))
    made = keras.Model(inputs, keras.layers.Dense(3, use_bias=False, name="head")(inputs))
    kernel = np.full((20, 3), 2.6 / 7, np.float32)
    kernel[0] = 1.0  # the step is 1/7, and 2.6 steps become 3
    made.set_weights([kernel])
    x = np.ones((64, 20), np.float32) + np.random.default_rng(0).random((64, 20), np.float32)
    plain = rewriter.rewrite(made, rewriter.Recipe(layers=[{"match": "head", "kernel_bits": 4}]))
    qat = rewritten(flavour, 4, made)
    for each in (plain, qat):
        rewriter.calibrate(each, x, progress=False)
    wanted = made.predict(x, verbose=0)
    moved = 0.4 / 7 * x[:, 1:].sum(1).mean()
    off = np.mean(plain.predict(x, verbose=0) - wanted, 0)
    assert off.min() > 0.5 * moved  # some outputs leave their range
    np.testing.assert_allclose(corrections(qat)["head"], -moved, rtol=0.02)
    left = np.mean(qat.predict(x, verbose=0) - wanted, 0)
    assert np.abs(left).max() < 0.02 * moved


@both
def test_float_is_as_before(flavour: str) -> None:
    """In phase float the corrected model computes what it did, to the bit."""
    qat = rewritten(flavour)
    before = qat.predict(X, verbose=0)
    rewriter.calibrate(qat, X, progress=False)
    assert all(np.abs(found).max() > 1e-4 for found in corrections(qat).values())
    rewriter.set_phase(qat, "float")
    np.testing.assert_array_equal(qat.predict(X, verbose=0), before)


@both
@pytest.mark.parametrize("ranges", ["observed", "lsq"])
def test_means_are_restored_from_saved_model_to_file(
    flavour: str, ranges: str, tmp_path: Path
) -> None:
    made = model(flavour)
    wanted = made.predict(X, verbose=0).mean(0)
    plain = rewritten(flavour, made=made, ranges=ranges)
    rewriter.calibrate(plain, X, progress=False, for_training=False)
    own = corrections(plain)
    off = np.abs(plain.predict(X, verbose=0).mean(0) - wanted).max()
    for layer in hosts(plain).values():
        layer.correction.assign(np.zeros(layer.correction.shape, np.float32))
    # What is left is of grids: learned scales of 8 bits start coarser.
    share = {"observed": 0.1, "lsq": 0.3}[ranges]
    assert off < share * np.abs(plain.predict(X, verbose=0).mean(0) - wanted).max()
    rewriter.calibrate(plain, X, progress=False, for_training=False)
    for name, found in corrections(plain).items():  # as the first time
        np.testing.assert_allclose(found, own[name], atol=1e-5)

    plain.save(tmp_path / "qat.keras")
    qat = rewriter.load_model(tmp_path / "qat.keras")
    for name, found in corrections(qat).items():
        np.testing.assert_array_equal(found, corrections(plain)[name])
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X[:16], progress=False).comparison
    assert not found.differences and not found.skipped and found.worst.identical == 1
    frozen = rewriter.freeze(qat).predict(X[:16], verbose=0)
    np.testing.assert_allclose(frozen, qat.predict(X[:16], verbose=0), atol=0.05)


@both
def test_training_goes_on_from_it(flavour: str) -> None:
    qat = rewritten(flavour)
    rewriter.calibrate(qat, X, progress=False)
    own = corrections(qat)
    qat.compile(flavour_of(qat).keras.optimizers.SGD(0.01), "mse")
    losses = qat.fit(X, np.zeros((96, 4)), epochs=2, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for name, found in corrections(qat).items():
        np.testing.assert_array_equal(found, own[name])


def test_data_that_can_be_read_once_are_refused() -> None:
    qat = rewritten("tf_keras")
    with pytest.raises(CalibrationError, match="function that makes the generator"):
        rewriter.calibrate(qat, (X[i : i + 8] for i in range(0, 96, 8)), progress=False)
    rewriter.calibrate(qat, lambda: (X[i : i + 8] for i in range(0, 96, 8)), progress=False)
    before = corrections(qat)
    left = [X[:32]]

    def once() -> Any:
        while left:
            yield left.pop()

    with pytest.raises(CalibrationError, match="when read a second time"):
        rewriter.calibrate(qat, once, progress=False)
    assert rewriter.get_phase(qat) == "quantize"
    for name, found in corrections(qat).items():
        np.testing.assert_array_equal(found, before[name])


def test_the_field_of_the_recipe() -> None:
    recipe = rewriter.Recipe(bias_correction=True)
    assert rewriter.Recipe.from_json(recipe.to_json()) == recipe
    assert "bias_correction" not in rewriter.Recipe().to_dict()
    with pytest.raises(RecipeError, match="bias_correction must be true or false"):
        rewriter.Recipe(bias_correction="yes")
