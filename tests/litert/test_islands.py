"""Layers without an integer form between convolutions: refused by name, or spliced in as float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import builders
import island_models
import rewriter
from no_integers import ACTIVATION, sine
from rewriter.errors import ExportError

KERASES = pytest.mark.parametrize("name", builders.KERASES)


def prepared(keras: Any, build: Any, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A calibrated network around what ``build`` makes, and data for it."""
    builders.fresh(keras, seed)
    data = builders.normal(8, *island_models.SIZE, 3, seed=seed)
    model = builders.randomise_all(island_models.network(keras, build), seed)
    builders.fit_statistics(model, data)
    return builders.calibrated(model, data), data


def check(qat: Any, data: Any, path: Any, **options: Any) -> Any:
    """Export, and compare file and twin operator by operator; the verification."""
    report = rewriter.export_tflite(qat, path, allow_float=True, **options)
    assert report.float_tensors
    found = rewriter.verify(qat, path, data, progress=False)
    comparison = found.comparison
    assert not comparison.differences and not comparison.skipped and not comparison.missing
    for tensor in comparison.operator_by_operator:
        if tensor.unit == "step":
            assert tensor.identical == 1.0, tensor
        else:
            assert tensor.maximum <= 1e-5, tensor
    assert found.parts_at is None, found
    return found


@pytest.mark.slow
@KERASES
@pytest.mark.parametrize("case", island_models.CASES)
def test_a_file_with_islands_is_its_twin(name, case, tmp_path):
    keras = builders.keras_of(name)
    build, layers = island_models.CASES[case]
    qat, data = prepared(keras, build)
    with pytest.raises(ExportError, match="has no integer form") as refused:
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    for layer in layers:
        assert layer in str(refused.value)
    found = check(qat, data, tmp_path / "m.tflite")
    assert {t.layer for t in found.comparison.operator_by_operator if t.unit != "step"}


def interpreted(path: Any, data: Any, batch: int) -> list[np.ndarray]:
    """The outputs of a file for ``data``, ``batch`` samples at a time."""
    interpreter = Interpreter(str(path))
    (given,) = interpreter.get_input_details()
    if given["shape"][0] != batch:
        interpreter.resize_tensor_input(given["index"], [batch, *given["shape"][1:]])
    interpreter.allocate_tensors()
    scale, zero_point = given["quantization"]
    if scale:
        steps = np.rint(data * (np.float32(1) / np.float32(scale)))
        data = (np.clip(steps + zero_point, -128, 127)).astype(np.int8)
    rows = []
    for start in range(0, len(data), batch):
        interpreter.set_tensor(given["index"], data[start : start + batch])
        interpreter.invoke()
        details = interpreter.get_output_details()
        rows.append([interpreter.get_tensor(detail["index"]) for detail in details])
    return [np.concatenate(arrays) for arrays in zip(*rows, strict=True)]


@pytest.mark.slow
@KERASES
@pytest.mark.parametrize(
    "case",
    [
        "odd",
        "two_outputs",
        "two_windows",
        "attention",
        "multi_head",
        "unchanged",
        "constant",
        "turned",
    ],
)
def test_every_batch_size_gives_the_same_values(name, case, tmp_path):
    qat, data = prepared(builders.keras_of(name), island_models.CASES[case][0])
    found = {}
    for size in (1, 4, None):
        path = tmp_path / f"{size}.tflite"
        check(qat, data, path, batch_size=size)
        found[size] = interpreted(path, data, size or 1)[0]
    for batch in (4, 8):
        found[f"open {batch}"] = interpreted(tmp_path / "None.tflite", data, batch)[0]
    found["open 7"] = interpreted(tmp_path / "None.tflite", data[:7], 7)[0]
    for key, values in found.items():
        assert np.array_equal(values, found[1][: len(values)]), key


@KERASES
def test_recurrent_layers_take_a_fixed_batch_or_are_unrolled(name, tmp_path):
    keras = builders.keras_of(name)

    def unrolled(k, x):
        x = k.layers.Reshape((6, 32))(x)
        return k.layers.Reshape((6, 4, 2))(
            k.layers.LSTM(8, "log_softmax", return_sequences=True, unroll=True, name="unrolled")(x)
        )

    qat, data = prepared(keras, island_models.gru)
    check(qat, data, tmp_path / "4.tflite", batch_size=4)
    with pytest.raises(ExportError, match=r"Layer 'gru': .* fixed batch_size, or unroll=True"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True, batch_size=None)
    qat, data = prepared(keras, unrolled)
    check(qat, data, tmp_path / "open.tflite", batch_size=None)
    one, seven = (interpreted(tmp_path / "open.tflite", data[:7], n)[0] for n in (1, 7))
    assert np.array_equal(one, seven)


@KERASES
@pytest.mark.parametrize("case", ["lstm", "bidirectional"])
def test_a_state_starts_anew_with_every_sample(name, case, tmp_path):
    qat, data = prepared(builders.keras_of(name), island_models.CASES[case][0])
    rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    forth, back = (interpreted(tmp_path / "m.tflite", d, 1)[0] for d in (data, data[::-1]))
    assert np.array_equal(forth, back[::-1])
    assert len(np.unique(forth, axis=0)) > 1


@pytest.mark.slow
@KERASES
@pytest.mark.parametrize("case", ["two_islands", "two_outputs", "shared_layer", "two_windows"])
def test_the_twin_is_a_model_that_computes_what_the_file_does(name, case, tmp_path):
    qat, data = prepared(builders.keras_of(name), island_models.CASES[case][0])
    check(qat, data, tmp_path / "m.tflite", float_io=True)
    ours = np.asarray(rewriter.fold(qat)(data))
    np.testing.assert_allclose(interpreted(tmp_path / "m.tflite", data, 1)[0], ours, rtol=1e-5)


@KERASES
@pytest.mark.parametrize("float_io", [False, True])
def test_a_layer_at_the_border_of_the_model(name, float_io, tmp_path):
    """It reads an input; its outputs are outputs, and so is what another one returns."""
    keras = builders.fresh(builders.keras_of(name))
    image = keras.Input((*island_models.SIZE, 3), name="image")
    shape = (*island_models.SIZE, 3)
    x = island_models.layer_of(keras, sine, name="at_the_start")(image)
    x = builders.conv_bn_relu(keras.layers, x, "conv", 3)
    several = [lambda t, i=i: sine(t * i) for i in range(12)]
    ends = island_models.layer_of(
        keras, lambda t: [f(t) for f in several], [shape] * 12, name="at_the_end"
    )(x)
    same = island_models.layer_of(keras, tf.identity, name="same")(ends[5])
    model = builders.randomise_all(keras.Model(image, [*ends, same, x]), 0)
    data = builders.normal(8, *shape)
    qat = builders.calibrated(model, data)
    found = check(qat, data, tmp_path / "m.tflite", float_io=float_io)
    assert len(found.training.outputs) == 14
    twin = [np.asarray(t) for t in rewriter.fold(qat)(data)]
    for ours, theirs in zip(twin[:13], interpreted(tmp_path / "m.tflite", data, 1), strict=False):
        if theirs.dtype == np.float32:
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


@KERASES
def test_layers_of_integers(name, tmp_path):
    """Words of a sentence: an input of integers that is moved, and read by an Embedding."""
    keras = builders.fresh(builders.keras_of(name))
    words = keras.Input((12,), dtype="int32", name="words")
    moved = keras.layers.Reshape((3, 4))(words)
    more = island_models.layer_of(keras, lambda t: t * 3 % 50, name="more")(moved)
    a = keras.layers.Embedding(50, 8, name="embedding")(moved)
    b = keras.layers.Embedding(50, 8, name="other")(more)
    x = keras.layers.Add()([a, b])
    x = builders.conv_bn_relu(keras.layers, x, "conv")
    x = keras.layers.Dense(4, name="scores")(keras.layers.GlobalAveragePooling2D()(x))
    data = np.random.default_rng(0).integers(0, 50, (8, 12)).astype(np.int32)
    qat = builders.calibrated(builders.randomise_all(keras.Model(words, x), 0), data)
    for size in (1, 4, None):
        check(qat, data, tmp_path / "m.tflite", batch_size=size)


def test_a_normalization_behind_a_layer_in_float(tmp_path):
    """One by itself, which reads what no integer operator has made.

    In Keras 3: tf_keras's own SpectralNormalization cannot be called beside Keras 3.
    """
    keras = builders.fresh(builders.keras_of("keras"))
    image = keras.Input((*island_models.SIZE, 3), name="image")
    inner = keras.layers.Conv2D(island_models.CHANNELS, 3, padding="same")
    x = keras.layers.SpectralNormalization(inner, name="spectral")(image)
    x = keras.layers.BatchNormalization(name="alone")(x)
    x = builders.conv_bn_relu(keras.layers, x, "after", 4)
    model = builders.randomise_all(keras.Model(image, x), 0)
    data = builders.normal(8, *island_models.SIZE, 3)
    builders.fit_statistics(model, data)
    check(builders.calibrated(model, data), data, tmp_path / "m.tflite")


@pytest.mark.wide
@KERASES
@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16", "float64"])
def test_layers_of_other_precisions(name, policy, tmp_path):
    keras = builders.fresh(builders.keras_of(name))
    image = keras.Input((*island_models.SIZE, 3), name="image", dtype="float32")
    x = builders.conv_bn_relu(keras.layers, image, "before", island_models.CHANNELS)
    y = keras.layers.GroupNormalization(2, name="groups", dtype=policy)(x)
    y = keras.layers.Activation("selu", name="selu", dtype=policy)(y)
    y = keras.layers.Activation("linear", dtype="float32")(y)
    x = builders.conv_bn_relu(keras.layers, y, "after", 5)
    data = builders.normal(8, *island_models.SIZE, 3)
    qat = builders.calibrated(builders.randomise_all(keras.Model(image, x), 0), data)
    check(qat, data, tmp_path / "m.tflite")


@KERASES
def test_masks_are_refused(name, tmp_path):
    keras = builders.fresh(builders.keras_of(name))

    def attention(x):
        return keras.layers.MultiHeadAttention(1, 4, name="heeds")(query=x, value=x)

    for layer in (keras.layers.LSTM(4, return_sequences=True, name="heeds"), attention):
        words = keras.Input((6,), dtype="int32", name="words")
        x = keras.layers.Embedding(9, 4, mask_zero=True, name="embedding")(words)
        model = keras.Model(words, keras.layers.Dense(3)(layer(x)))
        data = np.random.default_rng(0).integers(0, 9, (8, 6)).astype(np.int32)
        qat = builders.calibrated(model, data)
        with pytest.raises(ExportError, match="'heeds' works under a mask"):
            rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)


@KERASES
def test_errors_of_the_converter_name_the_layers(name, tmp_path):
    keras = builders.keras_of(name)

    def build(k, x):
        x = island_models.layer_of(k, sine, name="fine")(x)
        return island_models.layer_of(
            k, lambda t: tf.math.igamma(1 + t * t, t * t), name="not_in_litert"
        )(x)

    qat, _ = prepared(keras, build)
    said = r"Layers 'fine', 'not_in_litert': LiteRT has no operator for tf.Igamma, .*without that"
    with pytest.raises(ExportError, match=said):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    assert not list(tmp_path.iterdir())


@KERASES
def test_a_table_of_words_is_named_and_not_what_its_input_is(name, tmp_path):
    keras = builders.keras_of(name)
    words = keras.Input((3,), dtype="string", name="words")
    x = keras.layers.StringLookup(vocabulary=["a", "b"], name="lookup")(words)
    x = keras.layers.Flatten()(keras.layers.Embedding(3, 4)(x))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(x))
    qat = rewriter.rewrite(keras.Model(words, x))
    rewriter.calibrate(qat, tf.constant([["a", "b", "c"]] * 8), progress=False)
    with pytest.raises(ExportError, match=r"'lookup': LiteRT has no operator for tf.LookupTable"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)


@KERASES
def test_a_layer_that_returns_its_variable(name, tmp_path):
    """One row for all samples, which is no tensor before somebody asks for it."""
    keras = builders.fresh(builders.keras_of(name))
    layers = keras.layers

    class Own(layers.Layer):
        def build(self, shape):
            self.own = self.add_weight(name="own", shape=(1, 6, 8), initializer="ones")

        def call(self, x):
            return tf.convert_to_tensor(self.own) if name == "keras" else self.own

        def compute_output_shape(self, shape):
            return (1, 6, 8)

    inputs = keras.Input((6, 8))
    x = layers.Dense(8, name="dense")(inputs)
    x = layers.Add(name="add")([x, Own(name="own")(x)])
    qat = rewriter.rewrite(keras.Model(inputs, layers.Dense(3, name="head")(x)))
    data = builders.normal(16, 6, 8)
    rewriter.calibrate(qat, data, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    found = rewriter.verify(qat, tmp_path / "m.tflite", data, progress=False).comparison
    assert "own" in {tensor.layer for tensor in found.operator_by_operator}
    assert all(t.identical == 1.0 for t in found.operator_by_operator if t.unit == "step")


def _spectral(k, x):
    if k.__name__ == "tf_keras":  # whose own cannot be built beside Keras 3
        return k.layers.UnitNormalization()(k.layers.Activation(ACTIVATION, name="shares")(x))
    x = k.layers.SpectralNormalization(k.layers.Conv2D(8, 3, padding="same"), name="spectral")(x)
    return k.layers.BatchNormalization()(x)


def _depth_to_space(k, x):
    x = k.layers.BatchNormalization()(k.layers.Activation(ACTIVATION, name="shares")(x))
    return k.layers.Lambda(lambda t: tf.nn.depth_to_space(t, 2), output_shape=(12, 8, 2))(x)


def _unit_of_zeros(k, x):
    x = k.layers.ReLU()(k.layers.Activation(ACTIVATION, name="shares")(x * 0.0))
    return k.layers.UnitNormalization()(x)


@KERASES
@pytest.mark.parametrize("build", [_spectral, _depth_to_space, _unit_of_zeros])
def test_integers_after_an_island(name, build, tmp_path):
    """What the file computes of its outputs is what the twin does, normalizations of zeros too."""
    qat, data = prepared(builders.keras_of(name), build)
    check(qat, data, tmp_path / "m.tflite")
    assert np.isfinite(interpreted(tmp_path / "m.tflite", data, 1)[0]).all()
