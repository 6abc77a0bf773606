"""Comparisons find what is wrong, and where."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import litert_programs as programs
from litert_files import edited, store, written
from rewriter.checking import compare, evaluation, reading
from rewriter.checking.compare import compare_program
from rewriter.errors import VerificationError


@pytest.fixture(scope="module")
def residual():
    program = programs.residual()
    content, mapping = written(program)
    return program, content, mapping


def transpose_kernel(model, op):
    kernel = reading.stored(model, op.inputs[1])
    store(model, op.inputs[1], np.ascontiguousarray(kernel.swapaxes(1, 2)))


def move_bias(steps):
    def change(model, op):
        bias = reading.stored(model, op.inputs[2])
        scales = model.subgraphs[0].tensors[op.inputs[2]].quantization.scale
        wide = 0.05 / scales if steps is None else steps
        store(model, op.inputs[2], (bias + wide).astype(np.int32))

    return change


def move_zero_point(model, op):
    model.subgraphs[0].tensors[op.outputs[0]].quantization.zeroPoint = np.array([11], np.int64)


def test_a_right_file_agrees(residual):
    program, content, mapping = residual
    calls = []
    report = compare_program(
        program,
        content,
        mapping,
        programs.samples(program, 7),
        batch=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i + 1, 7) for i in range(7)]
    assert report.samples == 7
    assert [a.name for a in report.operator_by_operator] == [s.output for s in program.steps]
    assert report.operator_by_operator[0].elements == 7 * 8 * 8 * 8
    assert report.operator_by_operator[0].layer == "layer_stem/conv"
    for agreement in (*report.operator_by_operator, *report.end_to_end):
        assert agreement.identical >= 0.999 and agreement.maximum <= 1
    assert set(report.top1) == set(program.output_names)
    assert report.top1["probabilities"] == 1
    assert json.loads(json.dumps(report.to_dict()))["kernels"] == "xnnpack"
    assert "block/depthwise:out" in str(report) and "top-1" in str(report)


@pytest.mark.parametrize(
    "change, visible",
    [
        (transpose_kernel, True),
        (move_bias(1), False),
        (move_bias(None), True),
        (move_zero_point, True),
    ],
    ids=["transposed kernel", "bias by one", "bias by half a step of the output", "zero point"],
)
def test_seeded_faults_are_found(residual, change, visible):
    program, content, mapping = residual
    wrong = edited(content, mapping, "stem/conv:out", change)
    report = compare_program(program, wrong, None, programs.samples(program, 10))
    assert len(report.differences) == 1 and "stem/conv" in report.differences[0]
    assert "different in the file" in str(report)
    by_name = {a.name: a.identical for a in report.operator_by_operator}
    assert (by_name["stem/conv:out"] < 0.999) == visible
    # The operators behind the fault are right, given their inputs; the end result is not.
    # (A wrong zero point is also wrong for those that read the tensor.)
    if change is not move_zero_point:
        assert min(share for name, share in by_name.items() if name != "stem/conv:out") >= 0.999
    if visible:
        whole = {a.name: a.identical for a in report.end_to_end}
        assert whole["block/add:out"] < 0.999


def test_every_tensor_is_kept_until_its_last_use(residual):
    program, _, _ = residual
    last = evaluation.last_reads(program)
    gone: set[str] = set()
    for step, done in zip(program.steps, last, strict=True):
        assert not gone & {*step.inputs, step.output}
        assert not gone & done
        gone |= done
    assert gone == {*program.tensors} - {*program.outputs}


def test_large_tensors_are_compared_a_few_samples_at_a_time(residual, monkeypatch):
    program, content, mapping = residual
    inputs = programs.samples(program, 7)
    assert evaluation.at_once(program, 16) == 16
    expected = compare_program(program, content, mapping, inputs).to_dict()
    elements = sum(np.prod([n or 1 for n in t.shape[1:]]) for t in program.tensors.values())
    monkeypatch.setattr(evaluation, "_MOST", 4 * elements * 3 + 1)
    assert evaluation.at_once(program, 16) == 3
    assert evaluation.at_once(program, 2) == 2
    assert compare_program(program, content, mapping, inputs).to_dict() == expected
    monkeypatch.setattr(evaluation, "_MOST", 1)
    assert evaluation.at_once(program, 16) == 1


@pytest.mark.parametrize(
    "off, said",
    [(5e-7, None), (1.3e-6, "in float: f is 1.3e-06"), (2e-5, "WARNING: in float: f is 2.0e-05")],
)
def test_what_is_said_of_float_layers(residual, off, said):
    """Sums of float32 in another order are not an error; what is more than that is."""
    program, content, mapping = residual
    report = compare_program(program, content, mapping, programs.samples(program, 2))
    agreement = compare.TensorAgreement("f", "layer", 9, float(off <= 1e-6), 1.0, off, "relative")
    text = str(dataclasses.replace(report, operator_by_operator=(agreement,)))
    if said is None:
        assert "in float" not in text
    else:
        assert said in text and ("in another order are" in text) == (off < 1e-5)


def test_other_kernels_differ_by_one_step_at_most(residual):
    program, content, mapping = residual
    for kernels in ("builtin", "reference"):
        report = compare_program(
            program, content, mapping, programs.samples(program, 10), kernels=kernels
        )
        assert report.kernels == kernels
        assert all(a.within_one == 1 for a in report.operator_by_operator)


def test_a_wrong_program_is_found(residual):
    """The other way round: the file is right, the program is not."""
    program, content, mapping = residual
    steps = list(program.steps)
    place = next(i for i, s in enumerate(steps) if s.name == "block/add")
    operator = dataclasses.replace(steps[place].operator, activation="relu")
    steps[place] = dataclasses.replace(steps[place], operator=operator)
    wrong = dataclasses.replace(program, steps=tuple(steps))
    report = compare_program(wrong, content, mapping, programs.samples(program, 5))
    assert report.worst.name == "block/add:out" and report.worst.identical < 0.9


def test_what_cannot_be_computed_is_said(residual, monkeypatch):
    program, content, mapping = residual
    steps = list(program.steps)
    steps[3] = dataclasses.replace(
        steps[3], operator=dataclasses.replace(steps[3].operator, kind="NO_SUCH_OPERATOR")
    )
    wrong = dataclasses.replace(program, steps=tuple(steps))
    report = compare_program(wrong, content, mapping, programs.samples(program, 2))
    assert list(report.skipped) == [steps[3].output]
    assert steps[3].layer in report.skipped[steps[3].output]
    assert "not computed" in str(report)


def test_nothing_to_compare(residual):
    program, content, mapping = residual
    with pytest.raises(VerificationError, match="no samples"):
        compare_program(program, content, mapping, [a[:0] for a in programs.samples(program)])
    other = programs.single_conv()
    with pytest.raises(ValueError, match="not of this model"):
        compare_program(other, content, None, programs.samples(other))


def test_a_tensor_in_another_order_is_not_compared(residual):
    """As many elements, other axes: it says so, and goes on with the program's own values."""
    program, content, _ = residual
    name = program.steps[1].output
    tensor = program.tensors[name]
    _, height, width, channels = tensor.shape
    turned = dataclasses.replace(tensor, shape=(None, height // 2, 2 * width, channels))
    wrong = dataclasses.replace(program, tensors={**program.tensors, name: turned})
    report = compare_program(wrong, content, None, programs.samples(program, 3))
    assert len(report.differences) == 1
    assert f"tensor '{name}': shape" in report.differences[0]
    assert name not in {a.name for a in report.operator_by_operator}
    assert report.worst.identical >= 0.999


def test_an_input_of_another_shape_is_another_models(residual):
    program, content, _ = residual
    name = program.inputs[0]
    tensor = dataclasses.replace(program.tensors[name], shape=(None, 3))
    wrong = dataclasses.replace(program, tensors={**program.tensors, name: tensor})
    with pytest.raises(VerificationError, match="not of this model"):
        compare_program(wrong, content, None, programs.samples(program, 2))


@pytest.mark.parametrize(
    ("ours", "there", "same"),
    [
        ((None, 3, 4), (1, 3, 4), True),
        ((None, 3, 4), (5, 3, 4), True),  # rows of a sample
        ((None, 4), (1, 1, 1, 4), True),
        ((None, 12, 16), (12, 1, 16), True),
        ((None, 24, 6), (1, 2, 3, 4, 6), True),
        ((None,), (), True),
        ((None, 3, 4), (1, 4, 3), False),
        ((None, 2, 3, 4), (1, 3, 2, 4), False),
        ((None, 3, 4), (1, 2, 6), False),
        ((None, 3, 4), (1, 3, 5), False),
        ((None, None, 4), (1, 3, 4), False),
    ],
)
def test_which_shapes_hold_the_same_elements(ours, there, same):
    assert compare._same_elements(ours, there) == same
