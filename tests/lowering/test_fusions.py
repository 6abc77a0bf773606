"""Programs with fewer steps compute the same integers; steps that do something stay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import builders
import litert_programs as programs
import rewriter
from litert_builder import CONV, Builder, grid, replace_operator
from litert_random_programs import random_program
from rewriter.checking import interpreter, reading
from rewriter.litert import writer
from rewriter.lowering import fusions
from rewriter.lowering.lower import lower

Q = grid(0.02, 3)


def fused(program):
    """The program after the fusions."""
    steps, tensors, outputs = fusions.fuse(program.steps, program.tensors, program.outputs)
    return dataclasses.replace(program, steps=tuple(steps), tensors=tensors, outputs=tuple(outputs))


def kinds(program):
    return [step.operator.kind for step in program.steps]


def check(program, expected=None, float_io=False):
    """The file of the fused program has these operators, and the integers of the other file."""
    short = fused(program)
    if expected is not None:
        assert kinds(short) == expected
    made = {*short.inputs, *(step.output for step in short.steps)}
    assert made == set(short.tensors)
    inputs = programs.samples(program, 5)
    contents = [writer.write(p, float_io=float_io) for p in (program, short)]
    if not float_io:
        assert [op.kind for op in reading.read(contents[1]).operators] == kinds(short)
    for kernels in ("xnnpack", "builtin"):
        long, less = (interpreter.run(c, inputs, kernels=kernels) for c in contents)
        assert max(len(np.unique(a)) for a in long) > 5
        for a, b in zip(long, less, strict=True):
            np.testing.assert_array_equal(a, b)
    return short


def padded(size, window, strides, pads, dilations=(1, 1), kind="CONV_2D", between=None):
    """A PAD and a VALID convolution."""
    b = Builder()
    x = b.input("x", (*size, 4), Q)
    (top, bottom), (left, right) = pads
    sizes = (size[0] + top + bottom, size[1] + left + right)
    attributes = {"paddings": [[0, 0], [top, bottom], [left, right], [0, 0]]}
    y = b.step("pad", "PAD", [x], (*sizes, 4), Q, "none", attributes)
    options = {"strides": list(strides), "padding": "VALID", "dilations": list(dilations)}
    result = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(sizes, window, dilations, strides, strict=True)
    ]
    shape = (*window, 4, 1) if kind == "DEPTHWISE_CONV_2D" else (*window, 4, 5)
    channels = 4 if kind == "DEPTHWISE_CONV_2D" else 5
    y = b.linear("conv", kind, y, shape, (*result, channels), options)
    return b.program([y] if between is None else [y, "pad:out"])


SAME_ZEROS = [
    ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
    ((8, 8), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),  # TensorFlow's SAME at an even size
    ((9, 7), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((8, 9), (5, 2), (1, 1), ((2, 2), (0, 1)), (1, 1)),
    ((9, 9), (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)),
    ((8, 7), (7, 3), (2, 2), ((2, 3), (1, 1)), (1, 1)),
]
OTHER_ZEROS = [
    ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),  # PyTorch's, at an even size
    ((8, 8), (3, 3), (1, 1), ((2, 0), (1, 1)), (1, 1)),
    ((8, 8), (3, 3), (1, 1), ((1, 1), (0, 0)), (1, 1)),
    ((8, 8), (3, 3), (1, 1), ((2, 2), (2, 2)), (1, 1)),
    ((9, 7), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1)),
]


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
@pytest.mark.parametrize("case", SAME_ZEROS)
def test_a_pad_with_the_zeros_of_same_goes(case, kind):
    if kind == "DEPTHWISE_CONV_2D" and case[4] != (1, 1) and case[2] != (1, 1):
        pytest.skip("no such convolution")
    short = check(padded(*case, kind=kind), [kind])
    assert short.steps[0].operator.attributes["padding"] == "SAME"
    assert short.steps[0].inputs == ("x",)


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
@pytest.mark.parametrize("case", OTHER_ZEROS)
def test_a_pad_with_other_zeros_stays(case, kind):
    check(padded(*case, kind=kind), ["PAD", kind])


def test_a_pad_that_others_read_stays_for_them():
    check(padded(*SAME_ZEROS[0], between=True), ["PAD", "CONV_2D"])


def test_a_pad_before_same_stays():
    program = padded(*SAME_ZEROS[0])
    step = program.steps[1]
    attributes = {**step.operator.attributes, "padding": "SAME"}
    operator = dataclasses.replace(step.operator, attributes=attributes)
    tensors = dict(program.tensors)
    tensors["conv:out"] = dataclasses.replace(tensors["conv:out"], shape=(None, 10, 10, 5))
    steps = (program.steps[0], dataclasses.replace(step, operator=operator))
    check(dataclasses.replace(program, steps=steps, tensors=tensors), ["PAD", "CONV_2D"])


def reshaped(b, name, source, shape):
    quantization = b.tensors[source].quantization
    return b.step(name, "RESHAPE", [source], shape, quantization, "none", {"shape": list(shape)})


def test_a_product_reads_any_shape():
    b = Builder()
    x = b.input("x", (3, 4, 5), Q)
    y = reshaped(b, "flat", x, (60,))
    check(b.program([b.linear("dense", "FULLY_CONNECTED", y, (60, 7), (7,))]), ["FULLY_CONNECTED"])


def test_a_flattening_that_others_read_stays_for_them():
    b = Builder()
    x = b.input("x", (3, 4, 5), Q)
    y = reshaped(b, "flat", x, (60,))
    dense = b.linear("dense", "FULLY_CONNECTED", y, (60, 7), (7,))
    check(b.program([dense, y]), ["RESHAPE", "FULLY_CONNECTED"])


def test_a_product_over_the_last_axis_keeps_its_reshape():
    b = Builder()
    x = b.input("x", (3, 4, 5), Q)
    y = reshaped(b, "rows", x, (12, 5))
    kept = {"keep_num_dims": True}
    dense = b.linear("dense", "FULLY_CONNECTED", y, (5, 7), (12, 7), kept)
    check(b.program([dense]), ["RESHAPE", "FULLY_CONNECTED"])


def test_rows_that_come_back_are_kept():
    """RESHAPE to rows, product, RESHAPE back: one operator."""
    b = Builder()
    x = b.input("x", (3, 4, 5), Q)
    y = reshaped(b, "rows", x, (5,))
    y = b.linear("dense", "FULLY_CONNECTED", y, (5, 7), (7,))
    y = reshaped(b, "back", y, (3, 4, 7))
    short = check(b.program([y]), ["FULLY_CONNECTED"])
    assert short.steps[0].operator.attributes["keep_num_dims"]


def test_rows_that_come_back_otherwise_are_reshaped():
    b = Builder()
    x = b.input("x", (3, 4, 5), Q)
    y = reshaped(b, "rows", x, (5,))
    y = b.linear("dense", "FULLY_CONNECTED", y, (5, 7), (7,))
    y = reshaped(b, "back", y, (4, 3, 7))
    assert "RESHAPE" in kinds(check(b.program([y])))


def test_a_reshape_after_a_reshape():
    b = Builder()
    x = b.input("x", (3, 4, 5), Q)
    y = reshaped(b, "one", x, (12, 5))
    y = reshaped(b, "two", y, (5, 12))
    y = reshaped(b, "three", y, (4, 15))
    assert check(b.program([y]), ["RESHAPE"]).steps[0].inputs == ("x",)


def test_a_reshape_back_is_nothing():
    b = Builder()
    x = b.input("x", (3, 4, 4), Q)
    y = b.linear("conv", "CONV_2D", x, (1, 1, 4, 4), (3, 4, 4), CONV)
    y = reshaped(b, "one", y, (48,))
    y = reshaped(b, "two", y, (3, 4, 4))
    check(
        b.program([b.linear("last", "CONV_2D", y, (1, 1, 4, 4), (3, 4, 4), CONV)]), ["CONV_2D"] * 2
    )


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("PAD", {"paddings": [[0, 0]] * 4}),
        ("TRANSPOSE", {"perm": [0, 1, 2, 3]}),
        ("RESHAPE", {"shape": [4, 4, 6]}),
    ],
)
def test_steps_that_change_nothing_go(kind, attributes):
    b = Builder()
    x = b.input("x", (4, 4, 6), Q)
    y = b.step("nothing", kind, [x], (4, 4, 6), Q, "none", attributes)
    y = b.linear("conv", "CONV_2D", y, (1, 1, 6, 6), (4, 4, 6), CONV)
    y = b.step("end", kind, [y], (4, 4, 6), b.tensors[y].quantization, "none", attributes)
    short = check(b.program([y]), ["CONV_2D"])
    assert short.outputs == ("conv:out",)


@pytest.mark.parametrize("kind", ["MEAN", "REDUCE_MAX"])
def test_a_reduction_of_single_elements_is_a_reshape(kind):
    b = Builder()
    x = b.input("x", (1, 1, 16), Q)
    attributes = {"axes": [1, 2], "keepdims": False}
    check(b.program([b.step("pool", kind, [x], (16,), Q, "none", attributes)]), ["RESHAPE"])


def test_a_reduction_to_another_grid_or_of_several_elements_stays():
    b = Builder()
    x, y = b.input("x", (1, 1, 16), Q), b.input("y", (2, 1, 16), Q)
    attributes = {"axes": [1, 2], "keepdims": False}
    one = b.step("one", "MEAN", [x], (16,), grid(0.013, 3), "none", attributes)
    two = b.step("two", "MEAN", [y], (16,), Q, "none", attributes)
    check(b.program([one, two]), ["MEAN", "MEAN"])


def twice(change=None):
    """A convolution and a copy of it, which ``change`` makes another."""
    b = Builder()
    x, other = b.input("x", (4, 4, 6), Q), b.input("other", (4, 4, 6), Q)
    first = b.linear("first", "CONV_2D", x, (1, 1, 6, 6), (4, 4, 6), CONV)
    step = dataclasses.replace(b.steps[0], name="second", output="second:out")
    b.steps.append(step)
    b.tensors["second:out"] = dataclasses.replace(b.tensors[first], name="second:out")
    if change is not None:
        change(b, step.operator)
    sums = grid(b.tensors[first].quantization.scale * 2, 3)
    total = b.step("sum", "ADD", [first, "second:out"], (4, 4, 6), sums)
    last = b.step("sum_other", "ADD", [total, other], (4, 4, 6), grid(sums.scale * 1.5))
    return b.program([last, first, "second:out"])


def test_what_is_computed_twice_is_computed_once():
    short = check(twice(), ["CONV_2D", "ADD", "ADD"])
    assert short.steps[1].inputs == ("first:out", "first:out")
    assert short.outputs[1:] == ("first:out", "first:out")
    content = writer.write(short)
    file = reading.read(content)
    assert file.outputs[1] == file.outputs[2]
    assert [name for name, _ in file.signature[1]] == ["head_0", "head_1", "head_2"]
    check(twice(), ["CONV_2D", "ADD", "ADD"], float_io=True)


def copied(array, place):
    array = np.array(array)
    array.flat[place] += 1
    return array


@pytest.mark.parametrize(
    "change",
    {
        "one weight": lambda b, o: replace_operator(b, 1, kernel=copied(o.kernel, 7)),
        "one bias": lambda b, o: replace_operator(b, 1, bias=copied(o.bias, 3)),
        "one scale": lambda b, o: replace_operator(
            b, 1, kernel_scale=np.nextafter(o.kernel_scale, np.float32(1))
        ),
        "activation": lambda b, o: replace_operator(b, 1, activation="relu"),
    }.values(),
)
def test_what_differs_is_computed_twice(change):
    check(twice(change), ["CONV_2D", "CONV_2D", "ADD", "ADD"])


def test_equal_constants_in_arrays_of_their_own():
    def change(b, o):
        replace_operator(b, 1, kernel=np.array(o.kernel), bias=np.array(o.bias))

    check(twice(change), ["CONV_2D", "ADD", "ADD"])


def test_chains_that_are_equal_become_one():
    b = Builder()
    x = b.input("x", (4, 4, 6), Q)
    ends = []
    for name in "ab":
        y = b.step(f"{name}1", "RELU", [x], (4, 4, 6), grid(0.01, -128))
        y = b.step(f"{name}2", "TRANSPOSE", [y], (6, 4, 4), grid(0.01, -128), "none",
                   {"perm": [0, 3, 1, 2]})  # fmt: skip
        ends.append(y)
    different = b.step("c2", "TRANSPOSE", ["a1:out"], (4, 6, 4), grid(0.01, -128), "none",
                       {"perm": [0, 2, 3, 1]})  # fmt: skip
    short = check(b.program([*ends, different]), ["RELU", "TRANSPOSE", "TRANSPOSE"])
    assert short.outputs[0] == short.outputs[1] != short.outputs[2]


@pytest.mark.parametrize("seed", range(8))
def test_random_programs(seed):
    program = random_program(seed)
    assert len(check(program).steps) <= len(program.steps)


@pytest.mark.parametrize("name", programs.INTEGER_PROGRAMS)
def test_programs(name):
    check(programs.INTEGER_PROGRAMS[name]())


@pytest.mark.parametrize("flavour", builders.KERASES)
def test_outputs_of_a_model_that_are_equal_keep_their_names(flavour, tmp_path):
    k = builders.fresh(builders.keras_of(flavour))
    image = k.Input((8, 8, 3), name="image")
    shared = k.layers.Conv2D(4, 3, name="conv")
    y, z = shared(image), shared(image)
    model = k.Model(image, [k.layers.Flatten(name="one")(y), k.layers.Flatten(name="two")(z)])
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    qat = builders.calibrated(model, data)
    assert kinds(lower(qat)) == ["CONV_2D", "RESHAPE"]
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    file = reading.read((tmp_path / "m.tflite").read_bytes())
    assert len({name for name, _ in file.signature[1]}) == 2
    found = rewriter.verify(qat, tmp_path / "m.tflite", data, progress=False).comparison
    assert min(a.identical for a in found.end_to_end) == 1.0
    assert len(found.top1) == 2
