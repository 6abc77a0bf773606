"""Programs become files that compute them, to the bit of every constant and scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import litert_programs as programs
from litert_builder import CONV, Builder, grid
from litert_files import edited, store, written
from litert_random_programs import random_program
from rewriter.checking import interpreter, reading
from rewriter.checking.compare import compare_program
from rewriter.checking.differences import differences
from rewriter.errors import ExportError
from rewriter.litert import writer


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
    content, _ = written(program)
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
    content, mapping = written(program, float_io=float_io)
    report = compare_program(program, content, mapping, programs.samples(program))
    assert report.differences == ()
    assert report.skipped == {}
    for agreement in (*report.operator_by_operator, *report.end_to_end):
        assert agreement.identical == 1, agreement
    assert reading.census(content).integer_only
    file = reading.read(content)
    border = [file.tensors[i] for i in (*file.inputs, *file.outputs)]
    assert {t.dtype for t in border} == {"FLOAT32" if float_io else "INT8"}
    kinds = [op.kind for op in file.operators]
    unread = {"passthrough": 2 * ["x"], "unused_input": ["ignored"]}.get(name, [])
    ends = ["DEQUANTIZE"] * len(set(program.outputs)) if float_io else []
    starts = ["QUANTIZE"] * (len(program.inputs) - len([n for n in unread if n == "ignored"]))
    assert kinds == [
        *(starts if float_io else []), *(step.operator.kind for step in program.steps), *ends
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs(seed):
    program = random_program(seed)
    content, mapping = written(program)
    report = compare_program(program, content, mapping, programs.samples(program, 3))
    assert report.differences == () and report.skipped == {}
    assert reading.census(content).integer_only
    kinds = [op.kind for op in reading.read(content).operators]
    assert kinds == [step.operator.kind for step in program.steps]
    for agreement in (*report.operator_by_operator, *report.end_to_end):
        assert agreement.identical == 1, agreement


@pytest.mark.parametrize("quantization", [None, grid(0.02, 3)])
def test_float_layers_are_kept_only_if_allowed(quantization):
    program = programs.with_float_layers(quantization)
    with pytest.raises(ExportError, match=r"layer_elu.*allow float"):
        written(program)
    content, mapping = written(program, allow_float=True)
    report = compare_program(program, content, mapping, programs.samples(program))
    units = {a.name: a.unit for a in report.operator_by_operator}
    assert (units["sine:out"], units["grid:out"], units["conv:out"]) == ("relative", "step", "step")
    assert "elu:out" not in units  # within an island, whose inside is the converter's
    for agreement in report.operator_by_operator:
        assert agreement.identical == 1, agreement
    assert not reading.census(content).integer_only
    dtypes = [
        t.dtype for t in map(reading.read(content).tensors.__getitem__, mapping.indexes.values())
    ]
    assert dtypes.count("INT8") == sum(
        program.tensors[name].quantization is not None for name in mapping.indexes
    )


def test_names_and_order_of_inputs_and_outputs():
    program = programs.residual()
    content, mapping = written(program)
    file = reading.read(content)
    assert [file.tensors[i].name for i in file.inputs] == list(program.input_names)
    assert [file.tensors[i].name for i in file.outputs] == list(program.output_names)
    assert [n for n, _ in file.signature[0]] == list(program.input_names)
    assert [n for n, _ in file.signature[1]] == list(program.output_names)
    assert mapping.names["stem/conv:out"] == "stem/conv:out"
    assert len({t.name for t in file.tensors}) == len(file.tensors)
    runner = Interpreter(model_content=content).get_signature_runner()
    arrays = [
        interpreter.quantize(x[:1], program.tensors[n].quantization)
        for n, x in zip(program.inputs, programs.samples(program), strict=True)
    ]
    found = runner(**dict(zip(program.input_names, arrays, strict=True)))
    expected = interpreter.run(content, arrays)
    for name, array in zip(program.output_names, expected, strict=True):
        np.testing.assert_array_equal(found[name], array)


FAULTS = {
    "kernel transposed": lambda model, op: _restored(model, op, 1, lambda w: w.swapaxes(1, 2)),
    "channels reordered": lambda model, op: _restored(model, op, 1, lambda w: w[::-1]),
    "one weight off by a step": lambda model, op: _restored(model, op, 1, _first_off),
    "bias reordered": lambda model, op: _restored(model, op, 2, lambda bias: bias[::-1]),
    "one bias off by a step": lambda model, op: _restored(model, op, 2, _first_off),
    "kernel's scale off by a bit": lambda model, op: _rescaled(model, op.inputs[1]),
    "bias's scale off by a bit": lambda model, op: _rescaled(model, op.inputs[2]),
    "scale off by a bit": lambda model, op: _rescaled(model, op.outputs[0]),
    "zero point off by one": lambda model, op: _moved(model, op.outputs[0]),
}


def _restored(model, op, place, change):
    values = reading.stored(model, op.inputs[place])
    store(model, op.inputs[place], np.ascontiguousarray(change(values)))


def _first_off(values):
    return values - (np.arange(values.size).reshape(values.shape) == 0).astype(values.dtype)


def _rescaled(model, index):
    grid = model.subgraphs[0].tensors[index].quantization
    grid.scale = np.nextafter(np.asarray(grid.scale, np.float32), np.float32(1))


def _moved(model, index):
    grid = model.subgraphs[0].tensors[index].quantization
    grid.zeroPoint = np.asarray(grid.zeroPoint) + 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_file_is_noticed(fault):
    program = programs.residual()
    content, mapping = written(program)
    assert list(differences(program, content, mapping)) == []
    wrong = edited(content, mapping, "stem/conv:out", FAULTS[fault])
    (found,) = differences(program, wrong, mapping)
    assert "stem/conv" in found


@pytest.mark.parametrize("kind", ["ADD", "MUL", "PRELU"])
def test_a_fault_in_a_constant_operand_is_noticed(kind):
    b = Builder()
    x = b.input("x", (4, 4, 3), grid(0.02, 3))
    attributes = {
        "constant": [0.5, -0.25, 1.0],
        "constant_quantization": {"scale": 0.01, "zero_point": 0 if kind == "PRELU" else 3},
    }
    program = b.program([b.step("op", kind, [x], (4, 4, 3), grid(0.03), attributes=attributes)])
    content, mapping = written(program)
    assert list(differences(program, content, mapping)) == []
    for fault in (
        lambda model, op: _restored(model, op, 1, _first_off),
        lambda model, op: _rescaled(model, op.inputs[1]),
        lambda model, op: _moved(model, op.inputs[1]),
    ):
        (found,) = differences(program, edited(content, mapping, "op:out", fault), mapping)
        assert "layer_op" in found and "constant" in found


def test_a_file_of_another_program_is_noticed():
    """The file is right, the program has another operator, or other weights."""
    program = programs.residual()
    content, mapping = written(program)
    changes = {"kind": "DEPTHWISE_CONV_2D"}, {"bias": None}, {"bias": np.zeros(8, np.int32)}
    noticed = []
    for change in changes:
        operator = dataclasses.replace(program.steps[0].operator, **change)
        first = dataclasses.replace(program.steps[0], operator=operator)
        other = dataclasses.replace(program, steps=(first, *program.steps[1:]))
        noticed.append(len(list(differences(other, content, mapping))))
    assert noticed == [1, 0, 1]


def test_output_types_are_the_grids():
    program = programs.residual()
    for float_io, wanted in ((False, np.int8), (True, np.float32)):
        runner = Interpreter(model_content=writer.write(program, float_io=float_io))
        details = [*runner.get_input_details(), *runner.get_output_details()]
        assert {detail["dtype"] for detail in details} == {wanted}
    floats = programs.with_float_layers(None)
    runner = Interpreter(model_content=writer.write(floats, allow_float=True))
    assert [d["dtype"] for d in runner.get_output_details()] == [np.int8, np.float32]


def test_float_inputs_and_outputs_change_nothing_between():
    program = programs.residual()
    inputs = programs.samples(program)
    plain = interpreter.run(writer.write(program), inputs)
    floats = interpreter.run(writer.write(program, float_io=True), inputs)
    for name, a, b in zip(program.outputs, plain, floats, strict=True):
        grid = program.tensors[name].quantization
        np.testing.assert_array_equal(interpreter.dequantize(a, grid), b)


def test_unknown_sizes_are_refused():
    b = Builder()
    x = b.input("x", (None, 8, 3), grid(0.02))
    y = b.linear("conv", "CONV_2D", x, (1, 1, 3, 4), (None, 8, 4), CONV)
    with pytest.raises(ExportError, match=r"keras_x.*fixed"):
        written(b.program([y]))
