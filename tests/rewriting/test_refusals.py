"""What LiteRT would refuse, or read otherwise than it is meant, is refused by the export."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import litert_files
import litert_programs as programs
import rewriter
from litert_builder import CONV, Builder, grid, replace_operator
from rewriter import export as export_module
from rewriter.errors import ExportError
from rewriter.lowering.lower import Lowered
from rewriter.program import Operator, Quantization
from rewriter.reading.graph import Graph


@pytest.fixture
def export(tmp_path, monkeypatch):
    """``export_tflite`` of a program, whatever model it is of."""

    def export(program, **options):
        lowered = Lowered(program, Graph(None, "model", [], [], [], ()), {})
        monkeypatch.setattr(export_module, "lower_with_sources", lambda model: lowered)
        path = tmp_path / "model.tflite"
        path.write_bytes(b"as_iTFL3")
        try:
            rewriter.export_tflite(None, path, **options)
        except ExportError:
            assert path.read_bytes() == b"as_iTFL3"
            assert list(tmp_path.iterdir()) == [path]
            raise
        return path.read_bytes()

    return export


def replaced(name, **changes):
    """:func:`programs.residual` with another operator in a step."""
    program = programs.residual()
    steps = list(program.steps)
    place = next(i for i, step in enumerate(steps) if step.name == name)
    operator = dataclasses.replace(steps[place].operator, **changes)
    steps[place] = dataclasses.replace(steps[place], operator=operator)
    tensors = dict(program.tensors)
    if "output" in changes:
        output = steps[place].output
        tensors[output] = dataclasses.replace(tensors[output], quantization=changes["output"])
    return dataclasses.replace(program, steps=tuple(steps), tensors=tensors)


def operator_of(name):
    return next(step.operator for step in programs.residual().steps if step.name == name)


def kernel(name, change):
    return replaced(name, kernel=change(np.asarray(operator_of(name).kernel)))


def grids():
    """A concatenation whose inputs and output are on three grids."""
    b = Builder()
    x = b.input("x", (4, 4, 3), grid(0.02, 3))
    y = b.input("y", (4, 4, 3), grid(0.03, 3))
    done = b.step("wrong", "CONCATENATION", [x, y], (4, 4, 6), grid(0.02, 3), "none", {"axis": 3})
    return b.program([done])


def scaled(scale):
    """An output scale in mid-graph that is no scale."""
    return replaced("block/project", output=Quantization(scale, 0))


def kernel_scale(value):
    scale = np.array(operator_of("stem/conv").kernel_scale)
    scale[2] = value
    return replaced("stem/conv", kernel_scale=scale)


def stepped(kind, shape, attributes):
    b = Builder()
    x = b.input("x", (4, 4, 6), grid(0.02, 3))
    return b.program([b.step("wrong", kind, [x], shape, grid(0.02, 3), "none", attributes)])


def unequal():
    b = Builder()
    x, y = (b.input(name, (4, 4, n), grid(0.02, 3)) for name, n in (("x", 5), ("y", 4)))
    return b.program([b.step("wrong", "ADD", [x, y], (4, 4, 5), grid(0.03))])


def four_bits():
    from rewriter.grid import kernel as kernel_grid

    program = programs.single_conv()
    operator = dataclasses.replace(program.steps[0].operator, kernel_grid=kernel_grid(4, (-1,)))
    return dataclasses.replace(
        program, steps=(dataclasses.replace(program.steps[0], operator=operator),)
    )


def without_step():
    program = programs.residual()
    return dataclasses.replace(program, steps=program.steps[1:])


CASES = {
    "kernel of other channels": (
        lambda: kernel("block/project", lambda w: np.concatenate([w, w[:, :, :3]], axis=2)),
        "layer_block/project",
    ),
    "dense kernel of other inputs": (
        lambda: kernel("dense", lambda w: np.concatenate([w, w[:5]])),
        "layer_dense|The model",  # XNNPACK, which refuses it, has no numbers for operators
    ),
    "depthwise kernel of other channels": (
        lambda: replaced(
            "block/depthwise",
            kernel=operator_of("block/depthwise").kernel[:, :, :6],
            kernel_scale=operator_of("block/depthwise").kernel_scale[:6],
            bias=operator_of("block/depthwise").bias[:6],
        ),
        "layer_block/depthwise",
    ),
    "kernel of another rank": (lambda: kernel("dense", lambda w: w[None]), "layer_dense.*rank"),
    "no kernel": (lambda: replaced("dense", kernel=None), "layer_dense.*kernel"),
    "bias of another length": (
        lambda: replaced("dense", bias=np.zeros(3, np.int32)),
        "layer_dense.*biases",
    ),
    "scales of another length": (
        lambda: replaced("dense", kernel_scale=np.ones(3, np.float32)),
        "layer_dense.*scales",
    ),
    "grids that must agree": (grids, "layer_wrong.*one scale"),
    "a grid that LiteRT prescribes": (
        lambda: replaced("softmax", output=Quantization(1 / 128, -128)),
        "layer_softmax.*must be on",
    ),
    "a tensor on another grid than its step's": (
        lambda: dataclasses.replace(
            programs.residual(),
            tensors={
                **programs.residual().tensors,
                "dense:out": dataclasses.replace(
                    programs.residual().tensors["dense:out"], quantization=grid(0.5)
                ),
            },
        ),
        "layer_dense.*its tensor on",
    ),
    "scale 0": (lambda: scaled(0.0), "layer_block/project.*not positive"),
    "scale NaN": (lambda: scaled(float("nan")), "layer_block/project.*not positive"),
    "scale infinite": (lambda: scaled(float("inf")), "layer_block/project.*not positive"),
    "negative scale": (lambda: scaled(-0.5), "layer_block/project.*not positive"),
    "kernel scale 0": (lambda: kernel_scale(0), "layer_stem/conv.*not positive"),
    "kernel scale NaN": (lambda: kernel_scale(np.nan), "layer_stem/conv.*not positive"),
    "zero point out of range": (
        lambda: replaced("block/project", output=Quantization(0.5, 200)),
        "layer_block/project.*zero point",
    ),
    "axis of a concatenation": (
        lambda: stepped("CONCATENATION", (4, 4, 6), {"axis": 7}),
        "layer_wrong",
    ),
    "axis of a maximum": (
        lambda: stepped("REDUCE_MAX", (4, 6), {"axes": [5], "keepdims": False}),
        "layer_wrong",
    ),
    "order of axes": (lambda: stepped("TRANSPOSE", (4, 4, 6), {"perm": [0, 1, 2, 9]}), "layer_wro"),
    "too few paddings": (
        lambda: stepped("PAD", (4, 4, 6), {"paddings": [[0, 0], [1, 1]]}),
        "layer_wrong",
    ),
    "shape that does not follow": (
        lambda: stepped("TRANSPOSE", (4, 4, 6), {"perm": [0, 3, 1, 2]}),
        "layer_wrong",
    ),
    "window larger than the image": (
        lambda: stepped(
            "MAX_POOL_2D",
            (1, 1, 6),
            {"pool_size": [9, 9], "strides": [1, 1], "padding": "VALID"},
        ),
        "layer_wrong",
    ),
    "operands that do not fit": (unequal, "layer_wrong"),
    "unknown operator": (lambda: stepped("CUMSUM", (4, 4, 6), {}), "layer_wrong.*no such op"),
    "unknown activation": (
        lambda: replaced("block/add", activation="softplus"),
        "layer_block/add.*softplus",
    ),
    "float tensor": (
        lambda: replaced("block/add", inputs=(None, grid(0.02))),
        "layer_block/add.*quantized",
    ),
    "activations of two widths": (
        lambda: replaced("block/project", output=Quantization(0.01, 0, 16)),
        "layer_block/project.*one width",
    ),
    "too wide for four bits": (four_bits, "layer_conv.*bits"),
    "a step before what it reads": (without_step, "layer_.*reads tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_layer_is_named_and_no_file_is_left(case, export):
    build, message = CASES[case]
    with pytest.raises(ExportError, match=f"(?s){message}"):
        export(build())


def test_what_is_right_is_exported(export):
    for build in programs.INTEGER_PROGRAMS.values():
        assert export(build())[4:8] == b"TFL3"
        export(build(), float_io=True, batch_size=None)


@pytest.mark.parametrize("kernels", ["builtin", "xnnpack"])
def test_a_refusal_of_litert_names_the_layer(kernels, export, monkeypatch):
    """Whatever LiteRT says, at its first loading or its second."""
    from rewriter.checking import trial

    whole, calls = trial.Interpreter, []

    class Refusing(whole):
        def allocate_tensors(self):
            calls.append(1)
            if len(calls) == ["builtin", "xnnpack"].index(kernels) + 1:
                raise RuntimeError("no such thing. Node number 2 (CONV_2D) failed to prepare.")
            super().allocate_tensors()

    monkeypatch.setattr(trial, "Interpreter", Refusing)
    with pytest.raises(ExportError, match="Layer 'layer_block/project': LiteRT refuses.*no such"):
        export(programs.residual())
    calls[:] = [1, 1]
    assert export(programs.residual())[4:8] == b"TFL3"


def test_a_refusal_without_a_number_is_the_models(export, monkeypatch):
    from rewriter.checking import trial

    def refuse(*args, **kwargs):
        raise ValueError("Model provided has model identifier '\\0\\0\\0\\0'")

    monkeypatch.setattr(trial, "Interpreter", refuse)
    with pytest.raises(ExportError, match="The model: LiteRT refuses"):
        export(programs.residual())


def test_an_output_is_named_by_its_layer(export):
    """Its tensor carries Keras's name for the output in the file."""
    b = Builder()
    x = b.input("x", (4, 4, 3), grid(0.02, 3))
    y = b.linear("conv", "CONV_2D", x, (1, 1, 3, 4), (4, 4, 4), CONV)
    replace_operator(b, -1, kernel=np.zeros((1, 1, 5, 4), np.int8))
    with pytest.raises(ExportError, match="layer_conv"):
        export(b.program([y], ["scores"]))


def test_unfit_operators_do_not_end_the_process():
    """LiteRT is not run on what is refused before."""
    operator = Operator("MUL", (Quantization(0.1, 0),) * 2, Quantization(0.0, 0))
    with pytest.raises(ExportError, match="layer_only"):
        litert_files.written(litert_files.one_operator(operator, [(4,), (4,)], (4,)))
