"""The order of a program's steps, and its islands: for random programs."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import builders
from rewriter.checking.compare import compare_program
from rewriter.litert import partition, writer
from rewriter.program import Operator, Program, Quantization, Step, Tensor

GRID, COARSE = Quantization(0.1, 0), Quantization(0.13, -5)


def _float(*values: tf.Tensor) -> tf.Tensor:
    return tf.sin(tf.add_n([value * (i + 1.0) for i, value in enumerate(values)]))


@st.composite
def programs(draw: Any) -> Program:
    """Steps on what was made before them, in any order of kinds."""
    tensors, steps = {"x": Tensor("x", (None, 6), GRID)}, []
    for index in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["FLOAT", "FLOAT", "QUANTIZE", "ADD"]))
        known = sorted(n for n, t in tensors.items() if kind != "ADD" or t.quantization)
        least, most = {"FLOAT": (1, 3), "QUANTIZE": (1, 1), "ADD": (2, 2)}[kind]
        inputs = draw(st.lists(st.sampled_from(known), min_size=least, max_size=most))
        grids = tuple(tensors[n].quantization for n in inputs)
        grid = None if kind == "FLOAT" else draw(st.sampled_from([GRID, COARSE]))
        operator = Operator(kind, grids, grid, function=_float if kind == "FLOAT" else None)
        name = f"t{index}"
        tensors[name] = Tensor(name, (None, 6), grid)
        steps.append(Step(name, name, operator, tuple(inputs), name))
    made = [step.output for step in steps]
    outputs = tuple(draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True)))
    return Program(("x",), outputs, tensors, tuple(steps), ("x",), outputs)


@hypothesis.given(programs())
@hypothesis.settings(max_examples=500, deadline=None)
@pytest.mark.slow
def test_islands_are_in_an_order_of_execution(program):
    known, seen = set(program.inputs), []
    islands = []
    for part in partition.schedule(program):
        single = isinstance(part, Step)
        assert known.issuperset(part.inputs)
        assert not (single and part.operator.kind == "FLOAT")
        members = [part] if single else part.steps
        seen += [step.name for step in members]
        if single:
            known.add(part.output)
            continue
        islands.append(part)
        inside = set(part.inputs)
        for step in part.steps:
            assert step.operator.kind == "FLOAT" and inside.issuperset(step.inputs)
            inside.add(step.output)
        known.update(part.outputs)  # nothing else is to be had of an island
    assert sorted(seen) == sorted(step.name for step in program.steps)
    assert known.issuperset(program.outputs)
    hidden = {step.output for part in islands for step in part.steps} - known
    assert partition.inside(program) == hidden


@hypothesis.given(programs(), st.sampled_from([1, 3, None]))
@hypothesis.settings(max_examples=25, deadline=None)
@pytest.mark.slow
def test_random_programs_are_their_files(program, size):
    content = writer.write(program, allow_float=True, batch_size=size)
    found = compare_program(program, content, None, [builders.normal(7, 6)])
    assert not found.differences and not found.skipped and not found.missing
    for tensor in found.operator_by_operator:
        exact = tensor.unit == "step"
        assert tensor.identical == 1.0 if exact else tensor.maximum <= 1e-5, tensor
