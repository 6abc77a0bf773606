"""Edits of a converted file: operators, scales, and no leftovers."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rewriter.litert import file_model, flatbuffer, stand_ins
from rewriter.litert.flatbuffer import FileTensor
from rewriter.program import Program, Quantization


@dataclasses.dataclass(frozen=True)
class Disguise:
    """A LEAKY_RELU that stands for an activation.

    The converter moves a RELU across a fake-quant into the convolution before it, and the tensor
    between them is lost. A LEAKY_RELU it leaves alone; it is turned back afterwards.

    Attributes:
      slope: of the LEAKY_RELU that stands for it; no layer's own.
      version: of the operator in the schema, for int8.
    """

    slope: float
    version: int


DISGUISES = {
    "RELU": Disguise(0.618034, 2),
    "RELU6": Disguise(0.5772157, 2),
    "RELU_N1_TO_1": Disguise(0.3183099, 1),
}

# Barriers have slopes from here on, in steps of 2**-16.
_BARRIER = 0.28125

# Largest relative distance of the converter's activation scale from the program's that can be
# rounding: the range ends are float32 (2**-24 each), and scale = (max - min) / 255.
_SCALE_TOLERANCE = 4e-6


def same_quantization(scale: float, zero_point: int, wanted: Quantization) -> bool:
    """Whether the file's numbers are the wanted ones, but for the converter's rounding."""
    return zero_point == wanted.zero_point and abs(scale - wanted.scale) <= (
        _SCALE_TOLERANCE * wanted.scale
    )


def barrier_slopes(program: Program) -> dict[int, float]:
    """Steps before whose first input a barrier is needed, and the slope of its LEAKY_RELU.

    The converter computes equal operators on equal inputs once, in float if they differ in their
    fused activation or their output's quantization; it moves TRANSPOSE and RESHAPE behind
    elementwise operators, and cancels a TRANSPOSE with the next one. It does not see through a
    LEAKY_RELU.
    """
    seen: dict[tuple[Any, ...], set[tuple[Any, ...]]] = collections.defaultdict(set)
    kinds = {step.output: step.operator.kind for step in program.steps}
    origin = {name: name for name in program.tensors}  # of what is but reshaped
    found: list[int] = []
    for position, step in enumerate(program.steps):
        operator = step.operator
        if operator.kind == "RESHAPE":
            origin[step.output] = origin[step.inputs[0]]
        if not step.inputs or operator.kind == "FLOAT":
            continue
        kernel = b"" if operator.kernel is None else np.asarray(operator.kernel).tobytes()
        attributes = json.dumps(operator.attributes, sort_keys=True, default=str)
        sources = tuple(sorted(origin[name] for name in step.inputs))
        key = (operator.kind, sources, hash(kernel), attributes)
        variant = (operator.output, operator.activation)
        repeated = bool(seen[key] - {variant})
        seen[key].add(variant)
        if repeated or any(kinds.get(name) == "TRANSPOSE" for name in step.inputs[:1]):
            found.append(position)
    return {
        position: float(np.float32(_BARRIER + number * 2.0**-16))
        for number, position in enumerate(found)
    }


def set_scales(
    model: Any, program: Program, indexes: Mapping[str, int], tensors: Iterable[FileTensor]
) -> None:
    """Set every activation's scale to the program's scale that the converter meant by it.

    Also those of tensors between two operators of one step, so that operators which must have
    one scale on both sides do. ``tensors``: as they came from the converter.
    """
    known: dict[int, list[Quantization]] = collections.defaultdict(list)
    for quantization in {t.quantization for t in program.tensors.values()}:
        if quantization is not None:
            known[quantization.zero_point].append(quantization)
    meant = {index: program.tensors[name].quantization for name, index in indexes.items()}
    for tensor in tensors:
        if tensor.constant or not tensor.quantized or len(tensor.scale) != 1:
            continue
        zero_point, scale = int(tensor.zero_point[0]), float(tensor.scale[0])
        near = meant.get(tensor.index) or min(
            known[zero_point], key=lambda q: abs(q.scale - scale), default=None
        )
        if near is not None and same_quantization(scale, zero_point, near):
            stored = model.subgraphs[0].tensors[tensor.index].quantization
            stored.scale = np.asarray([near.scale], np.float32)


def restore_disguised(model: Any, barriers: Mapping[int, float]) -> None:
    """Turn LEAKY_RELU operators that stand for others into those; they have odd slopes.

    Barriers (:func:`barrier_slopes`) are taken out: who reads their output gets their input.

    Any DEQUANTIZE -> QUANTIZE, which would go through float, becomes one QUANTIZE as well.
    """
    schema, graph, seen = flatbuffer.schema, model.subgraphs[0], flatbuffer.wiring(model)
    producers = seen.producers()
    slopes = {kind: disguise.slope for kind, disguise in DISGUISES.items()} | stand_ins.SLOPES
    by_slope = {float(np.float32(slope)): kind for kind, slope in slopes.items()}
    transparent = set(barriers.values())
    bypassed: dict[int, int] = {}
    for op, view in zip(graph.operators, seen.operators, strict=True):
        source = producers.get(view.inputs[0]) if view.kind == "QUANTIZE" else None
        if source is not None and source.kind == "DEQUANTIZE":
            op.inputs = np.asarray(source.inputs, np.int32)
        slope = op.builtinOptions.alpha if view.kind == "LEAKY_RELU" else None
        if slope in transparent:
            bypassed[view.outputs[0]] = view.inputs[0]
        op.inputs = np.asarray([bypassed.get(int(i), int(i)) for i in op.inputs], np.int32)
        kind = None if slope is None else by_slope.get(slope)
        if kind in DISGUISES:
            op.opcodeIndex = _operator_code(model, kind, DISGUISES[kind].version)
            op.builtinOptionsType = schema.BuiltinOptions.NONE
            op.builtinOptions = None
        elif kind is not None:
            stand_ins.restore(model, op, kind, schema)
    drop_unused(model)


def restore_dequantize(model: Any) -> None:
    """Put back the DEQUANTIZE that the converter loses before a float FULLY_CONNECTED.

    It leaves an operator that reads integers where its kernel wants floats, and LiteRT refuses
    the file.
    """
    graph, seen = model.subgraphs[0], flatbuffer.wiring(model)
    floats: dict[int, int] = {}
    operators = []

    def dtype(index: int) -> str:
        return file_model.TYPES[graph.tensors[index].type]

    for op, view in zip(graph.operators, seen.operators, strict=True):
        wrong = (
            view.kind == "FULLY_CONNECTED"
            and dtype(view.inputs[0]).startswith("INT")
            and dtype(view.inputs[1]).startswith("FLOAT")
            and dtype(view.outputs[0]).startswith("FLOAT")
        )
        if wrong:
            source = view.inputs[0]
            if source not in floats:
                operators.append(_dequantize(model, source))
                floats[source] = int(operators[-1].outputs[0])
            op.inputs = np.asarray([floats[source], *view.inputs[1:]], np.int32)
        operators.append(op)
    graph.operators = operators


def _dequantize(model: Any, index: int) -> Any:
    """A new DEQUANTIZE operator of a tensor, with a new tensor for its output."""
    schema, graph = flatbuffer.schema, model.subgraphs[0]
    source = graph.tensors[index]
    model.buffers.append(schema.BufferT())
    graph.tensors.append(
        schema.TensorT(
            shape=source.shape,
            type=schema.TensorType.FLOAT32,
            buffer=len(model.buffers) - 1,
            name=f"{flatbuffer.text(source.name)}/float",
            hasRank=True,
        )
    )
    return schema.OperatorT(
        opcodeIndex=_operator_code(model, "DEQUANTIZE", 2),
        inputs=np.asarray([index], np.int32),
        outputs=np.asarray([len(graph.tensors) - 1], np.int32),
    )


def _operator_code(model: Any, kind: str, version: int) -> int:
    """The index of an operator code of the file, which is added if need be."""
    number = int(getattr(flatbuffer.schema.BuiltinOperator, kind))
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version == version:
            return index
    model.operatorCodes.append(
        flatbuffer.schema.OperatorCodeT(
            deprecatedBuiltinCode=min(number, 127), builtinCode=number, version=version
        )
    )
    return len(model.operatorCodes) - 1


def drop_unused(model: Any) -> None:
    """Remove operators whose results nobody reads, and the tensors and buffers left over."""
    graph = model.subgraphs[0]
    live = {int(t) for t in graph.outputs}
    kept = []
    for op in reversed(graph.operators):
        effects = not live.isdisjoint(int(o) for o in op.outputs) or len(op.outputs) == 0
        if effects:
            kept.append(op)
            live.update(int(t) for t in op.inputs if t >= 0)
    graph.operators = kept[::-1]
    live.update(int(t) for t in graph.inputs)
    live.update(int(o) for op in kept for o in op.outputs)
    for op in kept:
        live.update(int(t) for t in (op.intermediates if op.intermediates is not None else ()))
    new = {old: i for i, old in enumerate(sorted(live))}

    def renumber(indexes: Any) -> np.ndarray:
        return np.asarray([new.get(int(t), -1) for t in indexes], np.int32)

    graph.tensors = [graph.tensors[old] for old in sorted(live)]
    graph.inputs, graph.outputs = renumber(graph.inputs), renumber(graph.outputs)
    for op in kept:
        op.inputs, op.outputs = renumber(op.inputs), renumber(op.outputs)
        if op.intermediates is not None:
            op.intermediates = renumber(op.intermediates)
    _drop_unused_buffers(model)


def _drop_unused_buffers(model: Any) -> None:
    """Keep buffer 0 (empty by convention) and what tensors and metadata point at."""
    holders = [t for graph in model.subgraphs for t in graph.tensors]
    holders += list(model.metadata or [])
    used = sorted({0, *(h.buffer for h in holders)})
    new = {old: i for i, old in enumerate(used)}
    model.buffers = [model.buffers[old] for old in used]
    for holder in holders:
        holder.buffer = new[holder.buffer]
