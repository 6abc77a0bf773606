"""No file runs code, or does anything but become a model, unless it is trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
import tf_keras

import rewriter
from commands import error_of
from edited_files import ANYTHING, MODULE, code, edited, module, plain, victim
from hostile_files import SAMPLES, loading, of_tf_keras, ran
from rewriter import keras_compat
from rewriter.errors import LoadError, RecipeError
from rewriter.keras_compat import pure_functions, symbols, trust
from rewriter.reading.load import load_model


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that exists once code ran."""
    monkeypatch.syspath_prepend(str(tmp_path))
    epsilon = keras.config.epsilon()
    yield tmp_path / "OWNED"
    sys.modules.pop(MODULE, None)
    keras.config.set_epsilon(epsilon)


@pytest.mark.parametrize("kind", [kind for kind in SAMPLES if "rewritten" not in kind])
def test_samples_are_hostile(kind: str, tmp_path: Path, marker: Path) -> None:
    """Keras runs what is in them (what is rewritten are our own layers, which no longer do)."""
    path = SAMPLES[kind](tmp_path, marker)
    assert not ran(marker)
    k = keras if kind.startswith("keras") else tf_keras
    # Some fail then, which is too late.
    try:
        k.models.load_model(str(path), compile=False, safe_mode=False)
    except Exception as error:
        assert error
    assert ran(marker)


# What is hostile there is in the description of the layers, which is then not used.
LIFTED = ("tf_keras SavedModel, byte code", "tf_keras SavedModel, io.write_file")


@pytest.mark.parametrize("kind", SAMPLES)
def test_samples_are_refused(
    kind: str, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SAMPLES[kind](tmp_path, marker)
    if kind in LIFTED:
        with pytest.warns(UserWarning, match="lifted from the graph"):
            load_model(path)
    else:
        with pytest.raises(LoadError) as caught:
            load_model(path)
        assert path.name in str(caught.value)
        assert path.name in error_of(capsys, "inspect", path)
    assert not ran(marker)


def test_a_trusted_file_may_hold_code(tmp_path: Path, marker: Path) -> None:
    path = SAMPLES["tf_keras SavedModel, a resource"](tmp_path, marker)
    load_model(path, allow_lambda=True)
    assert ran(marker)


# Names that no sample above stands for

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a class of any module": (
        {"module": "subprocess", "class_name": "Popen", "config": {}, "registered_name": None},
        "unknown class 'Popen' of the module 'subprocess'",
    ),
    "a name that hides the module": (
        {"module": MODULE, "class_name": "Zeros", "config": {}, "registered_name": "Anything"},
        "unknown class 'Zeros'",
    ),
    "a second name": (
        {"module": "tf_keras.src.constraints", "class_name": "NoClass", "config": {},
         "registered_name": "deserialize_keras_object"},
        "no class that a file may name|unknown class",
    ),
    "a value that is a class": (
        {"module": MODULE, "class_name": "TensorShape", "config": {}, "registered_name": None},
        "unknown class 'TensorShape', which stood in the package.*If you trust it",
    ),
    "a module like Keras": (
        {"module": "keras_of_mine", "class_name": "Zeros", "config": {}, "registered_name": None},
        "unknown class",
    ),
    "a public function as a class": (
        {"module": "keras.utils", "class_name": "get_file", "config": {}, "registered_name": None},
        "no class that a file may name|unknown class",
    ),
    "a function of Keras": (
        {"module": "keras.saving", "class_name": "function", "config": "load_model",
         "registered_name": "load_model"},
        "the function 'load_model' of the module 'keras.saving'",
    ),
    "a function by its second name": (
        {"module": "builtins", "class_name": "function", "config": "relu",
         "registered_name": "get_file"},
        "the function 'relu'",
    ),
    "byte code": ({"class_name": "__lambda__", "config": {"value": "x"}}, "Python code"),
    "a type": (
        {"class_name": "__typespec__", "spec_name": "Popen", "module": "subprocess",
         "registered_name": None, "config": []},
        "unknown type 'Popen'",
    ),
    "an array": ({"class_name": "__numpy__", "config": {"value": [""], "dtype": "S999999999"}},
                 "unknown dtype"),
    "a class without a name": ({"class_name": ["Zeros"], "config": {}}, "name of a class"),
    "an operation": (
        {"class_name": "TensorFlowOpLayer", "config": {"name": "x", "node_def": {
            "op": "WriteFile", "name": "x"}}},
        "WriteFile|TensorFlowOpLayer",
    ),
    "a member": ({"class_name": "InstanceMethod", "config": {"name": "x", "attr_name": "__class__"}},
                 "'__class__'|InstanceMethod"),
    "a vocabulary elsewhere": (
        {"class_name": "StringLookup", "config": {"name": "x", "vocabulary": "/etc/passwd"}},
        "/etc/passwd",
    ),
    "an output shape": (
        {"class_name": "Lambda", "config": {"name": "x", "function": "relu",
         "function_type": "function", "output_shape": code(Path("x")),
         "output_shape_type": "lambda"}},
        "Python code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("flavour", keras_compat.usable(), ids=lambda f: f.name)
def test_names_are_refused(flavour: Any, kind: str) -> None:
    """Wherever they stand, and whatever is around them."""
    entry, message = REFUSED[kind]
    around = {
        "config": {"layers": [{"class_name": "Dense", "config": {"kernel_initializer": entry}}]},
        "inside": {"inbound_nodes": [{"args": [[entry]], "kwargs": {}}], "compile_config": None},
    }
    for config in (entry, [entry], *around.values()):
        with pytest.raises(LoadError, match=message):
            trust.check(config, flavour, "a test")


def test_models_inside_are_compiled() -> None:
    """The file's own losses and metrics are not made; those of a model in it are."""
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": []}}
    compiled = {**model, "compile_config": {"loss": ANYTHING}}
    trust.check(compiled, keras_compat.TF_KERAS, "a test")
    outer = {**model, "config": {"name": "m", "layers": [compiled]}}
    with pytest.raises(LoadError, match="'Anything'"):
        trust.check(outer, keras_compat.TF_KERAS, "a test")


def test_a_saved_layer_is_not_called_on_constants() -> None:
    """What a SavedModel has of an unknown class is a function, which would be computed."""
    call: list[Any] = ["_CONSTANT_VALUE", -1, [[1.0]], {}]
    for mask, refused in (({}, True), ({"mask": ["image", 0, 0]}, False)):
        call[3] = mask
        layer = {
            "class_name": "Mine",
            "config": {"name": "mine", "units": 1},
            "inbound_nodes": [[call]],
        }
        layers = [{**layer, "class_name": "Dense"}]
        node = {"class_name": "Functional", "config": {"name": "m", "layers": layers}}
        if refused:
            with pytest.raises(LoadError, match="'mine'.*on constants only"):
                trust.check([node], keras_compat.TF_KERAS, "a test", revived=True)
        else:
            trust.check([node], keras_compat.TF_KERAS, "a test", revived=True)


def test_what_has_rows_is_allowed() -> None:
    for name in symbols.TENSORFLOW:
        operation = name.removeprefix("raw.")
        if operation != name:
            assert operation in pure_functions.OPERATIONS
        else:
            assert pure_functions.of_symbol(name) is not None, name


NOT_PURE = """io.read_file io.write_file io.gfile.remove py_function numpy_function print
    compat.v1.py_func load_library load_op_library raw_ops.WriteFile debugging.enable_dump_debug_info
    saved_model.load function import_graph_def summary.create_file_writer train.load_checkpoint
    random.set_seed keras.utils.get_file keras.models.load_model keras.backend.clear_session
    keras.backend.function map_fn vectorized_map compat.v1.gfile.Open""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", NOT_PURE)
def test_other_functions_are_not(name: str) -> None:
    assert pure_functions.of_symbol(name) is None


# Recipes

LAMBDA = {"function": code(Path("x")), "function_type": "lambda",
          "output_shape": None, "output_shape_type": "raw"}  # fmt: skip


def recipes(folder: Path, marker: Path) -> dict[str, dict[str, Any]]:
    evil = of_tf_keras("io.write_file", ".h5")(folder, marker)
    demo = {"class": "rewriter.cli.main", "config": {"argv": ["demo", "--output", str(marker)]}}
    inner = {"class_name": "Lambda", "config": LAMBDA}
    wrapped = {"name": "w", "layer": inner}
    initializer = {"class_name": "deserialize_keras_object", "config": {"config": ANYTHING}}
    dense = {"name": "d", "units": 1, "kernel_constraint": initializer}
    return {
        "a function": {"kernel_quantizer": loading(evil)},
        "another": {"activation_quantizer": demo},
        "a function of a pipeline": {"batch_norm_pipeline": {"gamma": {"quantizer": demo}}},
        "a function of TFMOT": {"kernel_quantizer": {
            "class": "tensorflow_model_optimization.python.core.quantization.keras.quantize."
                     "quantize_apply", "config": {}}},
        "a module of TFMOT's modules": {"kernel_quantizer": {
            "class": "tensorflow_model_optimization.python.core.quantization.keras.quantizers."
                     "tf.io.write_file", "config": {"filename": str(marker), "contents": "x"}}},
        "no configuration": {"kernel_quantizer": {
            "class": "rewriter.quantizers.PerTensorQuantizer", "config": [1]}},
        "a layer with code": {"batch_norm_pipeline": {"gamma": {"layer": "tf_keras", **inner}}},
        "one that is wrapped": {"batch_norm_pipeline": {"gamma": {
            "layer": "tf_keras", "class_name": "TimeDistributed", "config": wrapped}}},
        "a layer's constraint": {"batch_norm_pipeline": {"gamma": {
            "layer": "tf_keras", "class_name": "Dense", "config": dense}}},
        "no layer": {"batch_norm_pipeline": {"gamma": {
            "layer": "keras", "class_name": "deserialize", "config": {}}}},
        "a function with effects": {"batch_norm_pipeline": {"gamma": {
            "function": "tensorflow.load_library"}}},
        "a function that makes objects": {"batch_norm_pipeline": {"gamma": {
            "function": "tf_keras.activations.deserialize"}}},
        "a private one": {"batch_norm_pipeline": {"gamma": {"function": "tensorflow.print"}}},
    }  # fmt: skip


def test_hostile_recipes(tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module(tmp_path, marker)
    model = plain(tf_keras, tmp_path / "plain.keras")
    for name, values in recipes(tmp_path, marker).items():
        with pytest.raises(RecipeError):
            rewriter.Recipe.from_dict(values)
        (tmp_path / "r.json").write_text(json.dumps(values))
        line = error_of(
            capsys, "convert", model, "-o", tmp_path / "q", "--recipe", tmp_path / "r.json"
        )
        assert line and not ran(marker), name


def test_a_recipe_nested_too_deeply() -> None:
    with pytest.raises(RecipeError, match="not valid JSON"):
        rewriter.Recipe.from_json("[" * 100_000)


# Why a rewritten model cannot be loaded


def test_the_error_of_a_rewritten_model_is_said(tmp_path: Path) -> None:
    for k in (tf_keras, keras):
        image = k.layers.Input((3,))
        model = k.Model(image, k.layers.Dense(3, name="victim")(image))
        path = tmp_path / f"{k.__name__}.keras"
        rewriter.rewrite(model).save(path)
        edited(path, lambda config: victim(config)["config"].update(distributed_by="nobody"))
        with pytest.raises(LoadError, match="distributed_by") as caught:
            load_model(path)
        assert "unknown class" not in str(caught.value)
