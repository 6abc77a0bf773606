"""What a LiteRT file consists of: its main subgraph, its constants, what is not integer in it."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from rewriter.files import boundaries
from rewriter.litert import flatbuffer
from rewriter.litert.file_model import OPERATORS, TYPES, FileModel, FileOperator, FileTensor, schema


@dataclasses.dataclass(frozen=True)
class Census:
    """What a file consists of.

    Attributes:
      operators: how many of each kind.
      float_tensors: names of the floating-point tensors other than those at the border.
      conversions: outputs of the QUANTIZE and DEQUANTIZE operators in mid-graph; those from
        integer to integer, which change scale and zero point, included.
      hybrid: outputs of the operators that compute in float from an integer kernel.
      extra_subgraphs: subgraphs beside the main one (bodies of control flow).
    """

    operators: dict[str, int]
    float_tensors: tuple[str, ...]
    conversions: tuple[str, ...]
    hybrid: tuple[str, ...]
    extra_subgraphs: int

    @property
    def integer_only(self) -> bool:
        """True if nothing between the border tensors is computed in float."""
        return not (self.float_tensors or self.hybrid or self.extra_subgraphs)


def read(content: bytes) -> FileModel:
    """A read-only view of a file's main subgraph.

    Raises:
      VerificationError: these bytes are not a LiteRT file, or a damaged one.
    """
    with boundaries.litert("The LiteRT file"):
        flatbuffer.check_identifier(content)
        model = _main_subgraph(content)
        _check_places(model)
        return model


def _check_places(model: FileModel) -> None:
    """Raise ValueError unless all tensors that are named by their places exist."""
    named = [*model.inputs, *model.outputs]
    for operator in model.operators:
        named += [*operator.inputs, *operator.outputs]
    wrong = [index for index in named if not -1 <= index < len(model.tensors)]
    if wrong or any(size < -1 for tensor in model.tensors for size in tensor.shape):
        raise ValueError(f"there is no tensor {wrong[0]}" if wrong else "a shape is negative")


def _main_subgraph(content: bytes) -> FileModel:
    """The main subgraph of the packed file ``content``, field by field.

    The schema's mutable objects hold every option and every table of the file, which takes
    several times as long to make.
    """
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    stored = [model.Buffers(i).DataLength() > 0 for i in range(model.BuffersLength())]
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    kinds = [OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())] for code in codes]
    operators = []
    for place in range(graph.OperatorsLength()):
        op = graph.Operators(place)
        operators.append(
            FileOperator(
                kinds[op.OpcodeIndex()],
                _ints(op.InputsLength(), op.InputsAsNumpy),
                _ints(op.OutputsLength(), op.OutputsAsNumpy),
                codes[op.OpcodeIndex()].Version(),
            )
        )
    return FileModel(
        tuple(operators),
        _ints(graph.InputsLength(), graph.InputsAsNumpy),
        _ints(graph.OutputsLength(), graph.OutputsAsNumpy),
        tuple(_tensor(graph, index, stored) for index in range(graph.TensorsLength())),
        _signature(model),
        model.SubgraphsLength() - 1,
    )


def _ints(length: int, values: Any) -> tuple[int, ...]:
    return tuple(values().tolist()) if length else ()


def _tensor(graph: Any, index: int, stored: list[bool]) -> FileTensor:
    tensor = graph.Tensors(index)
    quantization = tensor.Quantization()
    scale: Any = ()
    zero_point: Any = ()
    axis = 0
    if quantization is not None:
        scale = quantization.ScaleAsNumpy() if quantization.ScaleLength() else ()
        zero_point = quantization.ZeroPointAsNumpy() if quantization.ZeroPointLength() else ()
        axis = quantization.QuantizedDimension()
    return FileTensor(
        index=index,
        name=(tensor.Name() or b"").decode(),
        shape=_ints(tensor.ShapeLength(), tensor.ShapeAsNumpy),
        dtype=TYPES[tensor.Type()],
        scale=np.array(scale, np.float32),  # a copy: the file need not be kept for it
        zero_point=np.array(zero_point, np.int64),
        quantized_dimension=axis,
        constant=stored[tensor.Buffer()],
        resizable=-1 in _ints(tensor.ShapeSignatureLength(), tensor.ShapeSignatureAsNumpy),
    )


def _signature(model: Any) -> Any:
    if not model.SignatureDefsLength():
        return (), ()
    first = model.SignatureDefs(0)
    inputs = [first.Inputs(i) for i in range(first.InputsLength())]
    outputs = [first.Outputs(i) for i in range(first.OutputsLength())]
    return tuple(
        tuple(((m.Name() or b"").decode(), m.TensorIndex()) for m in maps)
        for maps in (inputs, outputs)
    )


def stored(model: Any, index: int) -> np.ndarray:
    """The values of a constant tensor of integers, in its shape; those of 4 bits as int8."""
    tensor = model.subgraphs[0].tensors[index]
    kind = TYPES[tensor.type]
    shape = tuple(np.asarray(tensor.shape if tensor.shape is not None else ()).tolist())
    raw = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    if kind == "INT4":
        return unpacked(raw, math.prod(shape)).reshape(shape)
    return raw.view(np.dtype(kind.lower())).reshape(shape)


def unpacked(data: np.ndarray, count: int) -> np.ndarray:
    """What :func:`packed` packed; int8, flat."""
    both = np.stack([data << 4, data & 0xF0], axis=-1).reshape(-1)[:count]
    return both.view(np.int8) >> 4


def float_indexes(model: FileModel) -> list[int]:
    """Floating-point tensors other than float inputs and outputs behind a border conversion."""
    border = set(model.inputs) | set(model.outputs)
    producers, consumers = model.producers(), model.consumers()
    found = []
    for t in model.tensors:
        if not t.floating:
            continue
        makers = [producers[t.index]] if t.index in producers else []
        plain = {op.kind for op in consumers[t.index]} <= {"QUANTIZE"}
        plain &= {op.kind for op in makers} <= {"DEQUANTIZE"}
        if not (t.index in border and plain):
            found.append(t.index)
    return found


def conversions(model: FileModel) -> Iterator[FileOperator]:
    """The QUANTIZE and DEQUANTIZE operators but those that convert inputs and outputs."""
    for op in model.operators:
        inner = {
            "QUANTIZE": not set(op.inputs) <= set(model.inputs)
            or not (model.tensors[op.inputs[0]].floating or model.tensors[op.inputs[0]].unsigned),
            "DEQUANTIZE": not set(op.outputs) <= set(model.outputs),
        }
        ends = set(op.outputs) <= set(model.outputs) and model.tensors[op.outputs[0]].unsigned
        if inner.get(op.kind, False) and not ends:
            yield op


def census(content: bytes | FileModel) -> Census:
    """Count what a file consists of; see :class:`Census`."""
    model = content if isinstance(content, FileModel) else read(content)
    hybrid = [
        op
        for op in model.operators
        if op.kind not in ("DEQUANTIZE", "QUANTIZE")
        and any(model.tensors[i].floating for i in op.outputs)
        and any(i >= 0 and model.tensors[i].quantized for i in op.inputs)
    ]
    return Census(
        operators=dict(collections.Counter(op.kind for op in model.operators)),
        float_tensors=tuple(model.tensors[i].name for i in float_indexes(model)),
        conversions=tuple(model.tensors[op.outputs[0]].name for op in conversions(model)),
        hybrid=tuple(model.tensors[op.outputs[0]].name for op in hybrid),
        extra_subgraphs=model.extra_subgraphs,
    )


def _is_value(tensor: FileTensor) -> bool:
    """Whether it holds real values, or whole numbers."""
    return tensor.quantized or tensor.floating or tensor.dtype in ("INT32", "INT64")


def with_all_outputs(content: bytes) -> bytes:
    """The same model with every activation that is quantized, float or whole as an extra output.

    The delegates keep only what they must; an output they must. (The interpreter's option to keep
    all tensors switches the default delegate off, and so measures other kernels.) The first
    outputs stay as they were, so signatures stay valid.
    """
    model, seen = flatbuffer.unpack(content), read(content)
    written = [i for op in seen.operators for i in op.outputs]
    known = set(seen.outputs)
    extra = [i for i in dict.fromkeys(written) if i not in known and _is_value(seen.tensors[i])]
    model.subgraphs[0].outputs = np.asarray([*seen.outputs, *extra], np.int32)
    return flatbuffer.pack(model)
