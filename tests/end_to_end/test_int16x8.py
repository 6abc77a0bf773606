"""The recipe ``int16x8``, the whole way: activations of 16 bits, kernels of 8, biases of 64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import litert_files
import real_models
import rewriter
import rewriter_command
from checks import KERASES, both, randomise
from rewriter import Recipe
from rewriter.checking import interpreter, reading
from rewriter.errors import ExportError, RecipeError
from rewriter.litert import flatbuffer, integer_wide_tables
from rewriter.lowering import folding
from rewriter.lowering.lower import lower
from rewriter.program import Quantization
from rewriter.quantization.quantizers import RangeQuantizer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 16, 16, 3)).astype(np.float32)


def snr(signal: np.ndarray, found: np.ndarray) -> float:
    signal = signal.astype(np.float64)
    return float(10 * np.log10((signal**2).sum() / ((signal - found) ** 2).sum()))


def many_layers(keras: Any) -> Any:
    """Convolutions of all kinds, every activation with a table, moves, pools and products."""
    k = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = k.BatchNormalization()(k.Conv2D(8, 3, padding="same", use_bias=False)(image))
    x = k.ReLU(6.0)(x)
    y = k.BatchNormalization()(k.DepthwiseConv2D(3, padding="same")(x))
    y = k.LeakyReLU(name="leaky")(y)
    x = k.Add()([x, k.Conv2D(8, 1, activation="swish")(y)])
    x = k.Concatenate()([k.AveragePooling2D(2)(x), k.MaxPooling2D(2)(x)])
    x = k.SeparableConv2D(8, 3, activation="tanh")(x)
    x = k.Conv2DTranspose(6, 3, strides=2, padding="same", activation="relu")(x)
    x = k.ZeroPadding2D()(k.UpSampling2D(interpolation="bilinear")(x))
    x = k.Multiply()([x, k.Conv2D(6, 1, activation="sigmoid")(x)])
    x = k.Conv2D(5, 3, strides=2)(k.PReLU(shared_axes=[1, 2], name="prelu")(x))
    x = k.Activation("hard_sigmoid")(x)
    x = k.Dense(12, activation="gelu")(k.GlobalAveragePooling2D()(x))
    return keras.Model(image, k.Dense(10, activation="softmax")(x))


def made(model: Any, recipe: Any, x: Any = X) -> Any:
    qat = rewriter.rewrite(model, recipe)
    return rewriter.calibrate(qat, x, progress=False)


def verified(qat: Any, x: Any, folder: Path, **options: Any) -> Any:
    """Exports, and demands that file and twin are equal in every element of every tensor."""
    path = folder / "m.tflite"
    rewriter.export_tflite(qat, path, **options)
    found = rewriter.verify(qat, path, x, progress=False)
    assert found.comparison.operator_by_operator
    for row in (*found.comparison.operator_by_operator, *found.comparison.end_to_end):
        assert row.identical == 1.0, str(found)
    assert not found.comparison.skipped and not found.comparison.differences
    assert found.parts_at is None, str(found)
    return found


@both
def test_the_whole_way(flavour: str, tmp_path: Path) -> None:
    model = many_layers(KERASES[flavour])
    randomise(model, np.random.default_rng(1), [X])
    wanted = np.asarray(model(X))
    errors = {}
    for recipe in ("int8", "int16x8"):
        qat = made(model, recipe)
        errors[recipe] = snr(np.asarray(qat(X, training=False)), np.asarray(rewriter.fold(qat)(X)))
    found = verified(qat, X, tmp_path)
    assert found.snr > 60 and errors["int16x8"] > max(60, errors["int8"] + 20), errors
    assert snr(wanted, np.asarray(rewriter.fold(qat)(X))) > 30  # kernels of 8 bits are left

    content = (tmp_path / "m.tflite").read_bytes()
    file = reading.read(content)
    types = {tensor.dtype for tensor in file.tensors if tensor.quantized and not tensor.constant}
    assert types == {"INT16"}
    for op in file.operators:
        if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            kernel, bias = (file.tensors[op.inputs[place]] for place in (1, 2))
            assert (kernel.dtype, bias.dtype) == ("INT8", "INT64")
    for tensor in file.tensors:
        if tensor.dtype == "INT16" and tensor.quantized:
            assert set(tensor.zero_point.tolist()) == {0}
    assert {"PRELU", "HARD_SWISH"}.isdisjoint(op.kind for op in file.operators)


@both
def test_float_borders(flavour: str, tmp_path: Path) -> None:
    qat = made(many_layers(KERASES[flavour]), "int16x8")
    path = tmp_path / "f.tflite"
    rewriter.export_tflite(qat, path, float_io=True)
    (found,) = interpreter.run(path.read_bytes(), [X])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(rewriter.fold(qat)(X)))
    with pytest.raises(ExportError, match="has 16 bits.*float32"):
        rewriter.export_tflite(qat, path, input_type="uint8")


@both
def test_bytes_as_inputs(flavour: str, tmp_path: Path) -> None:
    """A uint8 input stays one: QUANTIZE brings it to 16 bits inside of the file, exactly."""
    keras = KERASES[flavour]
    image = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, -1)(image)
    model = keras.Model(image, keras.layers.Conv2D(4, 3, activation="relu")(x))
    data = RNG.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    qat = made(model, "int16x8", data)
    verified(qat, data, tmp_path)
    file = reading.read((tmp_path / "m.tflite").read_bytes())
    assert file.tensors[file.inputs[0]].dtype == "UINT8"
    assert file.tensors[file.outputs[0]].dtype == "INT16"
    assert snr(np.asarray(model(data)), np.asarray(rewriter.fold(qat)(data))) > 40


@both
def test_attention_and_normalizations(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    k = keras.layers
    tokens = keras.Input((6, 8), name="tokens")
    x = k.MultiHeadAttention(2, 4)(tokens, tokens)
    x = k.LayerNormalization()(k.Add()([x, tokens]))
    model = keras.Model(tokens, k.Dense(4)(x))
    data = RNG.normal(size=(32, 6, 8)).astype(np.float32)
    qat = made(model, "int16x8", data)
    verified(qat, data, tmp_path)
    assert snr(np.asarray(model(data)), np.asarray(rewriter.fold(qat)(data))) > 35


@pytest.mark.parametrize("epsilon", [1e-12, 1e-3])
@pytest.mark.parametrize("size", [0.01, 100.0])
def test_normalizations_of_few_elements(epsilon: float, size: float, tmp_path: Path) -> None:
    keras = KERASES["keras"]
    rows = keras.Input((5, 3), name="rows")
    model = keras.Model(rows, keras.layers.LayerNormalization(epsilon=epsilon)(rows))
    data = (size * RNG.normal(size=(32, 5, 3))).astype(np.float32)
    qat = made(model, "int16x8", data)
    verified(qat, data, tmp_path)
    assert snr(np.asarray(model(data)), np.asarray(rewriter.fold(qat)(data))) > 40


@both
def test_trained_saved_and_loaded(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    k = keras.layers
    stack = [k.Conv2D(6, 3), k.BatchNormalization(), k.ReLU(), k.Flatten(), k.Dense(4)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    x = RNG.normal(size=(64, 8, 8, 3)).astype(np.float32)
    y = RNG.integers(0, 4, 64)
    qat = made(model, "int16x8", x)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(keras.optimizers.SGD(0.05), loss)
    history = qat.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    verified(qat, x, tmp_path)
    qat.save(tmp_path / "m.keras")
    loaded = rewriter.load_model(tmp_path / "m.keras")
    rewriter.export_tflite(loaded, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "m.tflite").read_bytes()


def test_hard_swish_of_two_operators(tmp_path: Path) -> None:
    keras = KERASES["keras"]
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3)(image)
    model = keras.Model(image, keras.layers.Activation("hard_silu")(x))
    data = 3 * RNG.normal(size=(16, 6, 6, 3)).astype(np.float32)
    qat = made(model, "int16x8", data)
    verified(qat, data, tmp_path)
    assert [step.operator.kind for step in lower(qat).steps] == [
        "CONV_2D", "DEPTHWISE_CONV_2D", "MUL",
    ]  # fmt: skip


# What is refused


def _model(layer: Any, size: int = 7) -> Any:
    keras = KERASES["keras"]
    image = keras.Input((size, size, 4))
    x = keras.layers.Conv2D(4, 1, name="before")(image)
    return keras.Model(image, keras.layers.Conv2D(2, 1, name="after")(layer(keras.layers)(x)))


REFUSED = {
    "elu": (lambda k: k.ELU(name="mine"), "'mine'.*ELU.*has none.*LeakyReLU"),
    "exp": (lambda k: k.Activation("exponential", name="mine"), "'mine'.*EXP.*has none.*int8"),
    "bilinear": (
        lambda k: k.Resizing(10, 10, name="mine"),
        "'mine' resizes 7 pixels to 10 in 16 bits.*nearest",
    ),
}


def test_sums_that_overflow() -> None:
    """LiteRT would add them up in an int32, and twin and file would agree on the wrong mean."""
    keras = KERASES["keras"]
    image = keras.Input((256, 256, 1))
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="mine")(image))
    data = RNG.normal(size=(2, 256, 256, 1)).astype(np.float32)
    with pytest.raises(ExportError, match="'mine.* adds up 65,536 values of 16 bits.*overflow"):
        lower(made(model, "int16x8", data))
    lower(made(model, "int8", data))


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_litert_has_not(name: str, tmp_path: Path) -> None:
    layer, message = REFUSED[name]
    data = RNG.normal(size=(8, 7, 7, 4)).astype(np.float32)
    qat = made(_model(layer), "int16x8", data)
    assert np.isfinite(np.asarray(qat(data, training=True))).all()
    with pytest.raises(ExportError, match=message):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())
    qat = made(_model(layer), "int8", data)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_bits": 12}, "activation_bits must be 8 or 16. Received: 12"),
        ({"activation_bits": True}, "activation_bits must be 8 or 16"),
        ({"activation_quantizer": RangeQuantizer()}, "activation_quantizer exclude each other"),
        ({"ranges": "lsq"}, "learned ranges exclude each other"),
        ({"layers": [{"match": "x*", "ranges": "tqt"}]}, "learned ranges exclude each other"),
        ({"layers": [{"kind": "Dense", "kernel_bits": 4}]}, "kernels of 4 bits exclude"),
    ],
)
def test_recipes_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**{"activation_bits": 16, **fields})


def test_the_recipe_as_json() -> None:
    recipe = Recipe.named("int16x8")
    assert recipe.to_dict()["activation_bits"] == 16
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert "activation_bits" not in Recipe().to_dict()  # an earlier version reads it, too


def test_a_quantizer_of_16_bits_is_the_same(tmp_path: Path) -> None:
    data = RNG.normal(size=(8, 7, 7, 4)).astype(np.float32)
    model = _model(lambda k: k.Activation("sigmoid"))
    contents = []
    for recipe in ("int16x8", Recipe(activation_quantizer=RangeQuantizer(16))):
        rewriter.export_tflite(made(model, recipe, data), tmp_path / "m.tflite")
        contents.append((tmp_path / "m.tflite").read_bytes())
    assert contents[0] == contents[1]


def test_grids_are_symmetric() -> None:
    wide = rewriter.grid.activation(16)
    for low, high, reach in ((-1.0, 3.0, 3.0), (-5.0, 1.0, 5.0), (0.0, 2.0, 2.0)):
        found = folding.activation_quantization(low, high, wide)
        assert found == Quantization(float(np.float32(reach) / np.float32(32767)), 0, 16)
    assert folding.activation_quantization(0.0, 0.0, wide) == Quantization(1.0, 0, 16)


def test_a_bias_beyond_32_bits(tmp_path: Path) -> None:
    """A step of 16 bits is so fine that a bias has more steps than an int32."""
    keras = KERASES["keras"]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    data = 1e-6 * RNG.normal(size=(16, 4)).astype(np.float32)
    model.layers[-1].set_weights([1e-3 * np.ones((4, 3), np.float32), np.float32([1, -2, 3])])
    qat = made(model, "int16x8", data)
    bias = lower(qat).steps[0].operator.bias
    assert bias.dtype == np.int64 and np.abs(bias).max() > 2**33
    verified(qat, data, tmp_path)
    np.testing.assert_allclose(np.asarray(rewriter.fold(qat)(data)), np.asarray(model(data)), 1e-4)


# Faults


def test_a_fault_in_the_file_is_seen(tmp_path: Path) -> None:
    """One bias, changed in its upper 32 bits: what an int32 bias would not even have."""
    data = RNG.normal(size=(8, 7, 7, 4)).astype(np.float32)
    qat = made(_model(lambda k: k.Activation("tanh")), "int16x8", data)
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path)
    content = path.read_bytes()
    file, model = reading.read(content), flatbuffer.unpack(content)
    bias = file.operators[0].inputs[2]
    stored = model.buffers[model.subgraphs[0].tensors[bias].buffer].data
    values = np.frombuffer(np.asarray(stored, np.uint8).tobytes(), np.int64).copy()
    values[1] += 2**32
    litert_files.store(model, bias, values)
    path.write_bytes(flatbuffer.pack(model))
    found = rewriter.verify(qat, path, data, progress=False)
    assert found.comparison.worst.identical < 1
    assert found.comparison.differences


def test_a_fault_in_the_twin_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A place of LiteRT's table of the sigmoid that is off by one."""
    data = 2 * RNG.normal(size=(16, 7, 7, 4)).astype(np.float32)
    qat = made(_model(lambda k: k.Activation("sigmoid")), "int16x8", data)
    verified(qat, data, tmp_path)
    table = integer_wide_tables.sigmoid_table()
    table[5:40] += 2
    monkeypatch.setattr(integer_wide_tables, "sigmoid_table", lambda: table)
    found = rewriter.verify(qat, tmp_path / "m.tflite", data, progress=False)
    assert found.comparison.worst.identical < 1


def test_another_rule_than_in_training_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """File and twin agree; the trained model has no ReLU there."""
    data = RNG.normal(size=(16, 7, 7, 4)).astype(np.float32)
    qat = made(_model(lambda k: k.Conv2D(3, 3, name="last")), "int16x8", data)
    original = folding.bias_grid
    monkeypatch.setattr(folding, "bias_grid", lambda *a, **k: original(*a, **k) + 2**22)
    path = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, path)
    found = rewriter.verify(qat, path, data, progress=False)
    assert found.comparison.worst.identical == 1
    assert found.parts_at is not None


# Real


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = RNG.normal(size=(16, 7, 7, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=data)
    _model(lambda k: k.Activation("sigmoid")).save(tmp_path / "m.keras")

    def call(*words: Any) -> None:
        assert rewriter_command.main([str(word) for word in words]) == 0

    call(
        "convert", tmp_path / "m.keras", "-o", tmp_path / "q.keras", "--recipe", "int16x8",
        "--calibrate", tmp_path / "x.npz",
    )  # fmt: skip
    call("export", tmp_path / "q.keras", "-o", tmp_path / "q.tflite")
    capsys.readouterr()
    call(
        "verify", tmp_path / "q.keras", tmp_path / "q.tflite", "--data", tmp_path / "x.npz",
        "--min-snr", "60",
    )  # fmt: skip
    assert "100.000" in capsys.readouterr().out
    (found,) = interpreter.run((tmp_path / "q.tflite").read_bytes(), [data])
    assert found.dtype == np.int16


@pytest.mark.slow
def test_keyword_spotting(shared: Path, tmp_path: Path) -> None:
    real = real_models.MODELS["kws01"]
    model = rewriter.load_model(shared / "models" / real.path)
    x, y = real_models.kws_test(shared)
    accuracy, noise = {}, {}
    for recipe in ("int8", "int16x8"):
        qat = made(model, recipe, real.data(shared, 128))
        found = verified(qat, x[::10], tmp_path)
        noise[recipe] = found.snr
        (outputs,) = interpreter.run((tmp_path / "m.tflite").read_bytes(), [x])
        accuracy[recipe] = float(np.mean(outputs.argmax(-1) == y))
    assert noise["int16x8"] > noise["int8"] + 30, noise
    assert accuracy["int16x8"] >= 0.91, accuracy
