"""LiteRT files as data: read, take stock of, edit and write the flatbuffer.

The file format is LiteRT's schema,
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs. The generated
object API does the work; what is here is a read-only view (:func:`read`), a count of what is not
integer (:func:`census`), and the few edits that the converter leaves to be done.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import file_model
from rewriter.litert.file_model import FileModel, FileOperator, FileTensor, Wiring, schema


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


def unpack(content: bytes) -> Any:
    """The file as the schema's mutable ``ModelT``.

    Raises:
      ExportError: these bytes are not a LiteRT file.
    """
    _check_identifier(content)
    return schema.ModelT.InitFromPackedBuf(content, 0)


def _check_identifier(content: bytes) -> None:
    if content[4:8] != b"TFL3":
        raise ExportError(
            "Not a LiteRT file: the identifier 'TFL3' is missing. "
            f"Received: {len(content)} bytes beginning with {bytes(content[:8])!r}."
        )


class _AlignedBuffer(schema.BufferT):
    """A buffer whose data start at a multiple of 16 bytes, as the schema's force_align demands."""

    def Pack(self, builder: flatbuffers.Builder) -> int:
        data = None
        if self.data is not None:
            raw = np.asarray(self.data, np.uint8)
            builder.StartVector(1, raw.size, 16)
            builder.head = builder.head - raw.size
            builder.Bytes[builder.head : builder.head + raw.size] = raw.tobytes()
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        schema.BufferAddOffset(builder, self.offset)
        schema.BufferAddSize(builder, self.size)
        return schema.BufferEnd(builder)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors once: the zero points of all kernels and biases of one width, shapes."""

    def __init__(self, size: int):
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = (x.dtype.str, x.tobytes())
        if key not in self._written:
            self._written[key] = super().CreateNumpyVector(x)
        return self._written[key]


def pack(model: Any) -> bytes:
    """The bytes of a ``ModelT``."""
    model.buffers = [_AlignedBuffer(b.data, b.offset, b.size) for b in model.buffers]
    size = sum(0 if b.data is None else len(b.data) for b in model.buffers)
    builder = _SharingBuilder(size + size // 8 + 65536)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(np.asarray(values).tolist())


def kind_of(model: Any, operator: Any) -> str:
    """The schema name of an ``OperatorT``."""
    code = model.operatorCodes[operator.opcodeIndex]
    return file_model.OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def text(name: bytes | str | None) -> str:
    """A name of the object API, which gives bytes when it reads."""
    return name.decode() if isinstance(name, bytes) else name or ""


def wiring(model: Any) -> Wiring:
    """The operators of the main subgraph of a ``ModelT``, as they are now."""
    graph = model.subgraphs[0]
    operators = tuple(
        FileOperator(kind_of(model, op), _ints(op.inputs), _ints(op.outputs))
        for op in graph.operators
    )
    return Wiring(operators, _ints(graph.inputs), _ints(graph.outputs))


def view(model: Any) -> FileModel:
    """The main subgraph of a ``ModelT``, as it is now; :func:`wiring` is a part of it."""
    graph = model.subgraphs[0]
    tensors = []
    for index, t in enumerate(graph.tensors):
        q = t.quantization
        scale = () if q is None or q.scale is None else q.scale
        zero = () if q is None or q.zeroPoint is None else q.zeroPoint
        data = model.buffers[t.buffer].data
        tensors.append(
            FileTensor(
                index=index,
                name=text(t.name),
                shape=_ints(t.shape),
                dtype=file_model.TYPES[t.type],
                scale=np.asarray(scale, np.float32),
                zero_point=np.asarray(zero, np.int64),
                quantized_dimension=0 if q is None else int(q.quantizedDimension),
                constant=data is not None and len(data) > 0,
            )
        )
    signature: Any = ((), ())
    if model.signatureDefs:
        first = model.signatureDefs[0]
        signature = tuple(
            tuple((text(m.name), int(m.tensorIndex)) for m in maps or ())
            for maps in (first.inputs, first.outputs)
        )
    wired = wiring(model)
    return FileModel(
        wired.operators,
        wired.inputs,
        wired.outputs,
        tuple(tensors),
        signature,
        len(model.subgraphs) - 1,
    )


def read(content: bytes) -> FileModel:
    """A read-only view of a file's main subgraph.

    Raises:
      ExportError: these bytes are not a LiteRT file.
    """
    _check_identifier(content)
    return file_model.from_bytes(content)


def stored(model: Any, index: int) -> np.ndarray:
    """The values of a constant int8, int32 or int64 tensor, in its shape."""
    tensor = model.subgraphs[0].tensors[index]
    kinds = {"INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64}
    raw = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    return np.frombuffer(raw.tobytes(), kinds[file_model.TYPES[tensor.type]]).reshape(
        _ints(tensor.shape)
    )


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
    """The QUANTIZE operators not after a float input, the DEQUANTIZE ones not before an output."""
    for op in model.operators:
        inner = {
            "QUANTIZE": not set(op.inputs) <= set(model.inputs)
            or not model.tensors[op.inputs[0]].floating,
            "DEQUANTIZE": not set(op.outputs) <= set(model.outputs),
        }
        if inner.get(op.kind, False):
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


def with_all_outputs(content: bytes) -> bytes:
    """The same model with every quantized or float activation as an extra output.

    The delegates keep only what they must; an output they must. (The interpreter's option to keep
    all tensors switches the default delegate off, and so measures other kernels.) The first
    outputs stay as they were, so signatures stay valid.
    """
    model = unpack(content)
    seen = view(model)
    written = [i for op in seen.operators for i in op.outputs]
    known = set(seen.outputs)
    extra = [
        i
        for i in dict.fromkeys(written)
        if i not in known and (seen.tensors[i].quantized or seen.tensors[i].floating)
    ]
    model.subgraphs[0].outputs = np.asarray([*seen.outputs, *extra], np.int32)
    return pack(model)
