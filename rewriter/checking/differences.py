"""How a file differs from the program that it is said to hold: scales, zero points, constants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rewriter.checking import reading
from rewriter.checking.mapping import FileMapping
from rewriter.litert import flatbuffer
from rewriter.litert.file_model import FileOperator
from rewriter.litert.integer_elementwise import constant
from rewriter.litert.rows import ROWS
from rewriter.program import Operator, Program


def differences(program: Program, content: bytes, mapping: FileMapping) -> Iterator[str]:
    """Constants, scales and zero points of a file that are not the program's, to the bit."""
    model, file = flatbuffer.unpack(content), reading.read(content)
    producers = file.producers()
    for name, index in mapping.indexes.items():
        wanted, tensor = program.tensors[name].quantization, file.tensors[index]
        if wanted is None or wanted.whole:
            continue
        scale, zero_point = np.float32(wanted.scale), wanted.zero_point
        if tensor.scale.tolist() != [scale] or tensor.zero_point.tolist() != [zero_point]:
            yield (
                f"tensor '{name}': scale {tensor.scale.tolist()} and zero point "
                f"{tensor.zero_point.tolist()} in the file, {scale} and {zero_point} expected"
            )
    for step in program.steps:
        op = producers.get(mapping.indexes.get(step.output, -1))
        if op is None or step.operator.kind not in ROWS:
            continue
        reasons = [f"the file has {op.kind} in the place of {step.operator.kind}"]
        if op.kind == step.operator.kind:
            reasons = list(_constant_differences(model, op, step.operator))
        for reason in reasons:
            yield f"layer '{step.layer}', step '{step.name}': {reason}"


def _constant_differences(model: Any, op: FileOperator, operator: Operator) -> Iterator[str]:
    layout = ROWS[op.kind].layout
    if layout is not None:
        scale = np.asarray(operator.kernel_scale, np.float32)
        kernel = layout.to_file(np.asarray(operator.kernel))
        if not _holds(model, op, 1, kernel, scale):
            yield "the kernel or its scales differ"
        source = operator.inputs[0]
        if operator.bias is not None and source is not None:
            step = np.float32(source.scale) * scale
            if not _holds(model, op, layout.bias, operator.bias, step):
                yield "the bias or its scales differ"
    if "table" in operator.attributes and operator.output is not None:
        grid, table = operator.output, np.asarray(operator.attributes["table"])
        if not _holds(model, op, 0, table, np.asarray([grid.scale], np.float32)):
            yield "the table or its scale differs"
    if "constant" in operator.attributes:
        values, grid = constant(operator)
        places = [i for i, index in enumerate(op.inputs) if _stored(model, index)]
        if len(places) != 1:
            yield "the operator has no constant operand"
            return
        if grid.whole:
            if not np.array_equal(reading.stored(model, op.inputs[places[0]]), values):
                yield "the constant differs"
            return
        tensor = model.subgraphs[0].tensors[op.inputs[places[0]]]
        zero_point = int(tensor.quantization.zeroPoint[0])
        scale = np.asarray([grid.scale], np.float32)
        same = _holds(model, op, places[0], np.atleast_1d(values), scale)
        if not same or zero_point != grid.zero_point:
            yield "the constant or its scale differs"


def _stored(model: Any, index: int) -> bool:
    """Whether a tensor is a constant."""
    if index < 0:
        return False
    data = model.buffers[model.subgraphs[0].tensors[index].buffer].data
    return data is not None and len(data) > 0


def _holds(model: Any, op: FileOperator, place: int, values: np.ndarray, scale: np.ndarray) -> bool:
    """Whether an input of an operator is a constant of these integers and scales."""
    index = op.inputs[place] if place < len(op.inputs) else -1
    if not _stored(model, index):
        return False
    found = model.subgraphs[0].tensors[index].quantization
    return (
        np.array_equal(reading.stored(model, index), values)
        and found is not None
        and _same_scales(np.asarray(found.scale, np.float32), np.asarray(scale, np.float32))
    )


def _same_scales(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether scales are equal to the bit; one may stand for several that are."""
    if len(found) == 1 and len(expected) > 1:
        found = np.broadcast_to(found, expected.shape)
    return np.array_equal(found, expected)
