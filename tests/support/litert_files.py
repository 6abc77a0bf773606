"""Programs as files, for the tests of the LiteRT export."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from rewriter.checking import reading
from rewriter.checking.mapping import FileMapping, mapping_from_names
from rewriter.litert import flatbuffer, writer
from rewriter.litert.file_model import FileOperator
from rewriter.program import Operator, Program, Quantization, Step, Tensor

RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


def written(program: Program, **options: Any) -> tuple[bytes, FileMapping]:
    """The file of a program, and where the program's tensors are in it."""
    content = writer.write(program, **options)
    return content, mapping_from_names(program, reading.read(content))


def one_operator(
    operator: Operator, shapes: list[tuple[int, ...]], result: tuple[int, ...]
) -> Program:
    """A program of one operator; shapes without the batch."""
    names = [f"x{place}" for place in range(len(shapes))]
    pairs = zip(names, shapes, operator.inputs, strict=True)
    tensors = {name: Tensor(name, (None, *shape), grid) for name, shape, grid in pairs}
    tensors["y"] = Tensor("y", (None, *result), operator.output)
    step = Step("only", "layer_only", operator, tuple(names), "y")
    return Program(tuple(names), ("y",), tensors, (step,), tuple(names), ("y",))


def edited(
    content: bytes, mapping: FileMapping, name: str, change: Callable[[Any, FileOperator], None]
) -> bytes:
    """The file after ``change(model, operator)`` on the operator that writes tensor ``name``."""
    model = flatbuffer.unpack(content)
    change(model, reading.read(content).producers()[mapping.indexes[name]])
    return flatbuffer.pack(model)


def store(model: Any, index: int, values: np.ndarray) -> None:
    """Give a constant of an unpacked file other values."""
    tensor = model.subgraphs[0].tensors[index]
    model.buffers[tensor.buffer].data = np.frombuffer(values.tobytes(), np.uint8)


def versions(content: bytes) -> list[tuple[str, int]]:
    """Kind and version of every operator of the main graph, in order."""
    model = flatbuffer.unpack(content)
    return [
        (flatbuffer.kind_of(model, op), model.operatorCodes[op.opcodeIndex].version)
        for op in model.subgraphs[0].operators
    ]


def run_batch(
    content: bytes, arrays: list[np.ndarray], kernels: str = "xnnpack"
) -> list[np.ndarray]:
    """The raw outputs, all samples at once: the inputs are resized where the file has another batch.

    Arrays of the file's own types, in the order of its inputs.
    """
    interpreter: Any = Interpreter(
        model_content=content, experimental_op_resolver_type=RESOLVERS[kernels]
    )
    details = interpreter.get_input_details()
    for detail, array in zip(details, arrays, strict=True):
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], array.shape, strict=True)
    interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]).copy() for d in interpreter.get_output_details()]


def stored_inputs(program: Program, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Real inputs as the file takes them: on their grids where the program's inputs have one."""
    from rewriter.checking.interpreter import quantize

    grids: list[Quantization | None] = [program.tensors[n].quantization for n in program.inputs]
    pairs = zip(arrays, grids, strict=True)
    return [np.asarray(a, np.float32) if q is None else quantize(a, q) for a, q in pairs]
