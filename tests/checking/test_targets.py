"""Targets: for each rule a file that breaks it, and files that break none."""

from __future__ import annotations

import json

import pytest

import builders
import commands
import rewriter
import rewriter_command
import rewriter_options
from builders import keras_of
from rewriter import Recipe
from rewriter.checking import targets
from rewriter.errors import ExportError, VerificationError
from rewriter.litert import flatbuffer

PER_TENSOR_DENSE = Recipe(layers=[{"kind": "Dense", "per_tensor": True}])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """By what is special in them; the model has convolutions and a Dense layer."""
    folder = tmp_path_factory.mktemp("files")
    keras = builders.fresh(keras_of("keras"))
    model = builders.trained_residual(keras)
    made = {}

    def make(name, recipe=None, **options):
        qat = rewriter.rewrite(model, recipe, calibration_data=builders.residual_data())
        made[name] = folder / f"{name}.tflite"
        rewriter.export_tflite(qat, made[name], **options)

    make("int8")
    make("per-tensor dense", PER_TENSOR_DENSE)
    layers = keras.layers
    stack = [layers.Conv2D(6, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()]
    mild = keras.Sequential([keras.Input((12, 12, 3)), *stack, layers.Dense(5)])
    mild = rewriter.rewrite(mild, "int8-per-tensor", calibration_data=builders.residual_data())
    made["per-tensor"] = folder / "per-tensor.tflite"
    rewriter.export_tflite(mild, made["per-tensor"])
    image = keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
    norm = keras.Model(image, layers.LayerNormalization(name="norm")(x))
    norm = rewriter.rewrite(norm, calibration_data=builders.normal(8, 6, 6, 3))
    made["16 bits"] = folder / "16 bits.tflite"
    rewriter.export_tflite(norm, made["16 bits"])
    peak = keras.Model(image, layers.GlobalMaxPooling2D(name="peak")(layers.Conv2D(4, 3)(image)))
    peak = rewriter.rewrite(peak, "int16x8", calibration_data=builders.normal(8, 6, 6, 3))
    made["int16x8"] = folder / "int16x8.tflite"
    rewriter.export_tflite(peak, made["int16x8"])
    make("int4", "w4a8-small")
    make("float border", PER_TENSOR_DENSE, float_io=True)
    make("any batch", PER_TENSOR_DENSE, batch_size=None)
    make("four samples", PER_TENSOR_DENSE, batch_size=4)
    return made


BROKEN = {
    ("int8", "edgetpu"): ("FULLY_CONNECTED", "5 scales, one is safe", "per_tensor"),
    ("int8", "ethos-u"): ("FULLY_CONNECTED", "5 scales", "per_tensor"),
    ("int8", "tflite-micro"): ("FULLY_CONNECTED", "5 scales", "per_tensor"),
    ("int8", "nnapi"): ("FULLY_CONNECTED", "5 scales", "per_tensor"),
    ("per-tensor dense", "stm32mp2"): ("CONV_2D", "8 scales", "int8-per-tensor"),
    ("int4", "stm32n6"): ("DEPTHWISE_CONV_2D", "is INT4, 8 bits are taken", "int8"),
    ("float border", "edgetpu"): ("DEQUANTIZE", "computed in float", "--float-io"),
    ("16 bits", "edgetpu"): ("RSQRT", "INT16, taken are INT8, UINT8", "LayerNormalization"),
    ("16 bits", "ethos-u"): ("BATCH_MATMUL", "INT16, taken are INT8", "LayerNormalization"),
    ("int16x8", "edgetpu"): ("CONV_2D", "INT16, taken are INT8, UINT8", 'recipe "int8"'),
    ("int16x8", "tflite-micro"): ("REDUCE_MAX", "INT16, taken are INT8", 'recipe "int8"'),
    ("any batch", "ethos-u"): ("", "size may change", "--batch 1"),
    ("four samples", "ethos-u"): ("", "takes 4 samples", "--batch 1"),
}


@pytest.mark.parametrize("case", BROKEN, ids="-".join)
def test_what_breaks_a_rule(files, case):
    name, target = case
    operator, reason, remedy = BROKEN[case]
    found = rewriter.check(files[name], target)
    assert any(
        f.operator == operator and reason in f.reason and remedy in f.remedy for f in found.findings
    ), str(found)
    assert reason in str(found)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_what_breaks_none(files, target):
    name = "per-tensor" if target == "stm32mp2" else "per-tensor dense"
    found = rewriter.check(files[name], target)
    assert not found.findings, str(found)
    assert "nothing in it is against the rules" in str(found)


def rules(target):
    """The rules that a row has: the file that breaks each, and what is said of it."""
    row = targets.TARGETS[target]
    if set(row.narrow) < {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}:
        yield "int4", "8 bits are taken"
    if "FULLY_CONNECTED" not in row.channels:
        yield "int8", "one is safe"
    if "CONV_2D" not in row.channels:
        yield "per-tensor dense", "one is safe"
    if "INT16" not in row.activations or "BATCH_MATMUL" in row.eight:
        yield "16 bits", "INT16, taken are"
    if "INT16" not in row.activations or "REDUCE_MAX" in row.eight:
        yield "int16x8", "INT16, taken are"
    if "UINT8" not in row.activations:
        yield "uint8", "UINT8, taken are"
    if not row.floating:
        yield "float border", "computed in float"
    if row.static:
        yield "any batch", "size may change"
    if row.batch:
        yield "four samples", "one is taken"
    if row.rank is not None:
        yield "many axes", f"axes, {row.rank} are taken"
    for kind, version in row.versions.items():
        yield f"new {kind}", f"known up to {version}"


@pytest.fixture(scope="module")
def edited(files):
    """Files that we do not write ourselves: another's type, rank and versions put into one of ours."""
    content = files["per-tensor dense"].read_bytes()
    made = dict(files)

    def save(name, model):
        made[name] = files["int8"].with_name(f"{name}.tflite")
        made[name].write_bytes(flatbuffer.pack(model))

    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    last = graph.operators[-1].outputs[0]
    graph.tensors[last].type = flatbuffer.schema.TensorType.UINT8
    save("uint8", model)
    model = flatbuffer.unpack(content)
    tensor = model.subgraphs[0].tensors[last]
    tensor.shape = [1, 1, 1, 1, *tensor.shape]
    save("many axes", model)
    for kind in ("CONV_2D", "TRANSPOSE_CONV", "QUANTIZE"):
        model = flatbuffer.unpack(content)
        for code in model.operatorCodes:
            code.version = 99
        # A convolution, which has as many operands as the others.
        code = model.operatorCodes[model.subgraphs[0].operators[0].opcodeIndex]
        code.builtinCode = getattr(flatbuffer.schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = code.builtinCode
        save(f"new {kind}", model)
    return made


@pytest.mark.parametrize("target", targets.TARGETS)
def test_each_rule_has_a_file_that_breaks_it(edited, target):
    broken = list(rules(target))
    for name, reason in broken:
        found = rewriter.check(edited[name], target)
        assert any(reason in finding.reason for finding in found.findings), (name, str(found))
    assert broken or target == "xnnpack"


@pytest.mark.parametrize("target", ["xnnpack", "ethos-u", "hexagon", "neutron"])
def test_activations_of_16_bits_are_taken(files, target):
    found = rewriter.check(files["int16x8"], target)
    assert not found.findings, str(found)


def test_versions_and_ranks(files):
    from rewriter.checking import reading

    file = reading.read(files["per-tensor dense"].read_bytes())
    strict = targets.Target("", versions={"CONV_2D": 0}, rank=3)
    found = list(targets.find(file, strict))
    assert (
        {"version" in f.reason for f in found}
        == {"axes" in f.reason for f in found}
        == {True, False}
    )


def test_one_scale_computes_what_several_equal_ones_do(files, tmp_path):
    """A Dense layer's kernel has one scale in the file; the twin has it for each channel."""
    keras = builders.fresh(keras_of("tf_keras"))
    qat = rewriter.rewrite(builders.trained_residual(keras), PER_TENSOR_DENSE)
    x = builders.residual_data()
    rewriter.calibrate(qat, x, progress=False)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    for kernels in ("xnnpack", "reference"):
        found = rewriter.verify(qat, tmp_path / "m.tflite", x, kernels=kernels, progress=False)
        assert not found.comparison.differences and not found.comparison.skipped
        worst = found.comparison.worst
        assert kernels == "reference" or worst is None or worst.identical == 1


def test_export_refuses_by_layer(tmp_path):
    keras = builders.fresh(keras_of("tf_keras"))
    model = builders.trained_residual(keras)
    for recipe in (None, PER_TENSOR_DENSE):
        qat = rewriter.rewrite(model, recipe, calibration_data=builders.residual_data())
        if recipe is None:
            with pytest.raises(
                ExportError, match=r"edgetpu would not run the file: FULLY_CONNECTED"
            ):
                rewriter.export_tflite(qat, tmp_path / "m.tflite", target="edgetpu")
            assert not list(tmp_path.iterdir())
        else:
            rewriter.export_tflite(qat, tmp_path / "m.tflite", target="edgetpu")
    with pytest.raises(ExportError, match="no target 'abacus'"):
        rewriter.export_tflite(qat, tmp_path / "n.tflite", target="abacus")


def test_bad_arguments(files, tmp_path):
    with pytest.raises(VerificationError, match="no target 'abacus'. There are: xnnpack"):
        rewriter.check(files["int8"], "abacus")
    (tmp_path / "m.tflite").write_bytes(b"not a file of LiteRT")
    with pytest.raises(VerificationError, match="TFL3"):
        rewriter.check(tmp_path / "m.tflite", "xnnpack")


def test_the_command(files, capsys):
    assert tuple(targets.TARGETS) == rewriter_options.TARGETS
    said = commands.output_of(capsys, "check", files["per-tensor dense"], "--target", "edgetpu")
    assert "nothing in it is against" in said
    arguments = ["check", str(files["int8"]), "--target", "edgetpu", "--json"]
    assert rewriter_command.main(arguments) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["findings"][0]["operator"] == "FULLY_CONNECTED"
    assert "edgetpu would not run it" in shown.err


# The targets' own tools, where they are installed


def test_vela_places_all_on_the_npu(files, tmp_path):
    pytest.importorskip("ethosu.vela", reason="needs ethos-u-vela")
    import subprocess
    import sys

    options = ["--accelerator-config", "ethos-u55-128", "--output-dir", str(tmp_path)]
    start = "import sys; from ethosu.vela.vela import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", start, str(files["per-tensor dense"]), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CPU operators = 0" in done.stdout


def test_tflite_micro_computes_the_same(files):
    module = "tflite_micro.python.tflite_micro.runtime"
    micro = pytest.importorskip(module, reason="needs tflite-micro")
    import numpy as np

    from rewriter.checking import interpreter

    content = files["per-tensor dense"].read_bytes()
    runtime = micro.Interpreter.from_bytes(content)
    x = builders.residual_data()[:8]
    runner = interpreter.Runner(content, kernels="reference", isolated=True)
    expected = runner.run([x]).outputs[0]
    stored = interpreter.quantize(x, runner.quantization(runner.file.inputs[0]))
    for sample, wanted in zip(stored, expected, strict=True):
        runtime.set_input(sample[None], 0)
        runtime.invoke()
        assert np.abs(runtime.get_output(0)[0].astype(int) - wanted).max() <= 1
