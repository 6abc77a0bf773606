"""Programs become files that compute them, to the bit of every constant and scale."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf
from rewriter.litert.convert import convert_program

import litert_programs as programs
from litert_builder import CONV, Builder, grid
from litert_random_programs import random_program
from rewriter.checking import interpreter
from rewriter.checking.compare import compare_program
from rewriter.errors import ExportError
from rewriter.litert import border, checks, emit, emit_program, flatbuffer, matching


def conv_in_float64(program, image):
    """A single convolution from its definition: real numbers, rounded once at the end."""
    operator = program.steps[0].operator
    source, output = operator.inputs[0], operator.output
    q = np.clip(np.rint(image / np.float32(source.scale)) + source.zero_point, -128, 127)
    real = source.scale * (q - source.zero_point)
    kernel = operator.kernel * operator.kernel_scale.astype(np.float64)
    y = tf.nn.conv2d(tf.constant(real, tf.float64), tf.constant(kernel), 1, "SAME").numpy()
    y += operator.bias * source.scale * operator.kernel_scale.astype(np.float64)
    return np.clip(np.rint(y / output.scale) + output.zero_point, -128, 127)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_a_convolution_is_what_its_definition_says(per_tensor):
    program = programs.single_conv(per_tensor)
    content, _ = convert_program(program)
    inputs = programs.samples(program, 40)
    (found,) = interpreter.run(content, inputs)
    expected = conv_in_float64(program, inputs[0])
    assert expected.std() > 20
    assert np.mean(found == expected) >= 0.999
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("float_io", [False, True])
@pytest.mark.parametrize("name", programs.INTEGER_PROGRAMS)
def test_file_computes_the_program(name, float_io):
    program = programs.INTEGER_PROGRAMS[name]()
    content, mapping = convert_program(program, float_io=float_io)
    report = compare_program(program, content, mapping, programs.samples(program))
    assert report.differences == ()
    assert report.skipped == {}
    for agreement in report.operator_by_operator:
        assert agreement.identical >= 0.999, agreement
    assert flatbuffer.census(content).integer_only
    file = flatbuffer.read(content)
    border = [file.tensors[i] for i in (*file.inputs, *file.outputs)]
    passed_through = name == "passthrough"
    assert {t.dtype for t in border} == {"FLOAT32" if float_io else "INT8"} or passed_through
    by_names = matching.mapping_from_names(program, file)
    assert dict(by_names.indexes) == dict(mapping.indexes)


def without_metadata(content):
    """The file as data; that of the converter about itself left out."""
    model = flatbuffer.unpack(content)
    for entry in model.metadata:
        if flatbuffer.text(entry.name) == "CONVERSION_METADATA":
            model.buffers[entry.buffer].data = None
    return flatbuffer.pack(model)


@pytest.mark.parametrize("name", programs.INTEGER_PROGRAMS)
def test_the_way_into_the_converter_makes_no_difference(name, monkeypatch):
    program = programs.INTEGER_PROGRAMS[name]()
    content, _ = convert_program(program)
    monkeypatch.setattr(emit_program, "graph_converter", emit_program.function_converter)
    usual, _ = convert_program(program)
    assert content != usual
    assert without_metadata(content) == without_metadata(usual)


# Those in front once came out with float operators, or with operators moved or merged.
@pytest.mark.parametrize("seed", [9, 18, 20, 58, 0, 1, 2, 3])
def test_random_graphs(seed):
    program = random_program(seed)
    content, mapping = convert_program(program)
    report = compare_program(program, content, mapping, programs.samples(program, 3))
    assert report.differences == () and report.skipped == {}
    assert flatbuffer.census(content).integer_only
    assert len(report.operator_by_operator) >= len(program.steps) - 2
    for agreement in report.operator_by_operator:
        assert agreement.identical >= 0.999, agreement


@pytest.mark.parametrize("quantization", [None, grid(0.02, 3)])
def test_float_layers_are_kept_only_if_allowed(quantization):
    program = programs.with_float_layers(quantization)
    with pytest.raises(ExportError, match=r"layer_elu.*allow float"):
        convert_program(program)
    content, mapping = convert_program(program, allow_float=True)
    report = compare_program(program, content, mapping, programs.samples(program))
    units = {a.name: a.unit for a in report.operator_by_operator}
    assert units["elu:out"] == "relative" and units["conv:out"] == "step"
    for agreement in report.operator_by_operator:
        assert agreement.identical >= 0.99 and agreement.within_one == 1, agreement
    assert not flatbuffer.census(content).integer_only
    dtypes = [
        t.dtype for t in map(flatbuffer.read(content).tensors.__getitem__, mapping.indexes.values())
    ]
    assert dtypes.count("INT8") == sum(
        program.tensors[name].quantization is not None for name in mapping.indexes
    )


def test_the_border_is_stripped_only_where_asked():
    program = programs.residual()
    content, _ = convert_program(program, float_io=True)
    inputs, outputs = (
        [program.tensors[name].quantization for name in names]
        for names in (program.inputs, program.outputs)
    )
    for kept_in, kept_out in ((True, True), (True, False), (False, True), (False, False)):
        model = flatbuffer.unpack(content)
        border.strip(
            model,
            [None if kept_in else each for each in inputs],
            [None if kept_out else each for each in outputs],
        )
        file = flatbuffer.view(model)
        assert {file.tensors[i].floating for i in file.inputs} == {kept_in}
        assert {file.tensors[i].floating for i in file.outputs} == {kept_out}


def test_names_and_order_of_inputs_and_outputs():
    program = programs.residual()
    content, mapping = convert_program(program)
    file = flatbuffer.read(content)
    assert [file.tensors[i].name for i in file.inputs] == list(program.input_names)
    assert [file.tensors[i].name for i in file.outputs] == list(program.output_names)
    assert [n for n, _ in file.signature[0]] == list(program.input_names)
    assert [n for n, _ in file.signature[1]] == list(program.output_names)
    assert mapping.names["stem/conv:out"] == "stem/conv:out"
    assert len({t.name for t in file.tensors}) == len(file.tensors)
    runner = interpreter.Interpreter(model_content=content).get_signature_runner()
    arrays = [
        interpreter.quantize(x[:1], program.tensors[n].quantization)
        for n, x in zip(program.inputs, programs.samples(program), strict=True)
    ]
    found = runner(**dict(zip(program.input_names, arrays, strict=True)))
    expected = interpreter.run(content, arrays)
    for name, array in zip(program.output_names, expected, strict=True):
        np.testing.assert_array_equal(found[name], array)


def test_swapped_outputs_are_noticed():
    program = programs.residual()
    content, mapping = convert_program(program)
    file = flatbuffer.read(content)
    swapped = dataclasses.replace(file, outputs=(file.outputs[1], file.outputs[0], file.outputs[2]))
    with pytest.raises(ExportError, match="'probabilities'"):
        checks.check_outputs(program, swapped, dict(mapping.indexes))


def faulty(change):
    """``emit`` with a fault in the convolution's operator."""

    def emit_faulty(operator, *x):
        if operator.kind == "CONV_2D":
            operator = dataclasses.replace(operator, **change(operator))
        return emit.emit(operator, *x)

    return emit_faulty


@pytest.mark.parametrize(
    "change",
    {
        "kernel transposed": lambda o: {"kernel": o.kernel.swapaxes(0, 1)},
        "channels reordered": lambda o: {"kernel": o.kernel[..., ::-1]},
        "one weight off by a step": lambda o: {
            "kernel": o.kernel - (np.arange(o.kernel.size).reshape(o.kernel.shape) == 0)
        },
        "bias reordered": lambda o: {"bias": o.bias[::-1]},
        "zero point off by one": lambda o: {
            "output": dataclasses.replace(o.output, zero_point=o.output.zero_point + 1)
        },
        "scale off by 0.1 %": lambda o: {
            "output": grid(o.output.scale * 1.001, o.output.zero_point)
        },
    }.values(),
)
def test_a_converter_that_changes_something_is_noticed(monkeypatch, change):
    monkeypatch.setattr(emit_program, "emit", faulty(change))
    with pytest.raises(ExportError, match="layer_conv"):
        convert_program(programs.single_conv())


def test_unmeant_float_names_the_layer(monkeypatch):
    def emit_faulty(operator, *x):
        return (
            tf.nn.softplus(emit.emit(operator, *x))
            if operator.kind == "MEAN"
            else emit.emit(operator, *x)
        )

    monkeypatch.setattr(emit_program, "emit", emit_faulty)
    with pytest.raises(ExportError, match=r"layer_(mean|dense)"):
        convert_program(programs.residual())


@pytest.mark.parametrize("conversions", [True, False])
def test_what_is_left_in_float_is_refused(conversions):
    program = programs.with_float_layers(grid(0.02, 3))
    file = flatbuffer.read(convert_program(program, allow_float=True)[0])
    kept = [op for op in file.operators if conversions or op.kind not in checks.CONVERSIONS]
    file = dataclasses.replace(file, operators=tuple(kept))
    matcher = types.SimpleNamespace(nearest=lambda index: program.steps[0])
    what = "operator in mid-graph" if conversions else "floating-point tensor"
    with pytest.raises(ExportError, match=f"^Layer '{program.steps[0].layer}'.*{what}"):
        checks.check_integer(program, file, matcher, {})


def test_converter_errors_are_chained_and_quiet(monkeypatch, capfd):
    def emit_faulty(operator, *x):
        return tf.sinh(emit.emit(operator, *x))  # no such operator in LiteRT

    monkeypatch.setattr(emit_program, "emit", emit_faulty)
    with pytest.raises(ExportError, match=r"(?s)layer_conv.*Sinh") as caught:
        convert_program(programs.single_conv())
    assert caught.value.__cause__ is not None
    monkeypatch.undo()
    convert_program(programs.single_conv())
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize("floats", [False, True])
def test_a_node_that_does_not_fit_names_its_own_layer(floats):
    # It is found out by the converter, or layers later, where a tensor is needed.
    program = programs.with_float_layers(grid(0.02, 3)) if floats else programs.residual()
    position = next(i for i, step in enumerate(program.steps) if step.operator.kernel is not None)
    step = program.steps[position]
    kernel = np.concatenate([step.operator.kernel] * 3, axis=2)
    wrong = dataclasses.replace(step, operator=dataclasses.replace(step.operator, kernel=kernel))
    steps = (*program.steps[:position], wrong, *program.steps[position + 1 :])
    what = "could not be emitted" if floats else "the TensorFlow Lite converter failed"
    with pytest.raises(
        ExportError, match=f"^Layer '{step.layer}'.*{what}: Depth of input"
    ) as caught:
        convert_program(dataclasses.replace(program, steps=steps), allow_float=floats)
    assert "loc(" not in str(caught.value)


def test_unknown_sizes_are_refused():
    b = Builder()
    x = b.input("x", (None, 8, 3), grid(0.02))
    y = b.linear("conv", "CONV_2D", x, (1, 1, 3, 4), (None, 8, 4), CONV)
    with pytest.raises(ExportError, match=r"keras_x.*fixed"):
        convert_program(b.program([y]))
