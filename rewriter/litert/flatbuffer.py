"""LiteRT files as data: read, take stock of and write the flatbuffer.

The file format is LiteRT's schema,
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs. The generated
object API does the work; what is here is a read-only view (:func:`read`), and a count of what is
not integer (:func:`census`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import file_model
from rewriter.litert.file_model import FileModel, FileOperator, schema


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
            raw = np.ascontiguousarray(self.data, np.uint8)
            builder.StartVector(1, raw.size, 16)
            builder.head = builder.head - raw.size
            builder.Bytes[builder.head : builder.head + raw.size] = raw.data
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
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
    model.buffers = [_AlignedBuffer(b.data) for b in model.buffers]
    size = sum(0 if b.data is None else len(b.data) for b in model.buffers)
    builder = _SharingBuilder(size + size // 8 + 65536)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def _ints(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(np.asarray(values).tolist())


def kind_of(model: Any, operator: Any) -> str:
    """The schema name of an ``OperatorT``."""
    code = model.operatorCodes[operator.opcodeIndex]
    return file_model.OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def text(name: bytes | str | None) -> str:
    """A name of the object API, which gives bytes when it reads."""
    return name.decode() if isinstance(name, bytes) else name or ""


def read(content: bytes) -> FileModel:
    """A read-only view of a file's main subgraph.

    Raises:
      ExportError: these bytes are not a LiteRT file.
    """
    _check_identifier(content)
    return file_model.from_bytes(content)


def stored(model: Any, index: int) -> np.ndarray:
    """The values of a constant tensor of integers, in its shape; those of 4 bits as int8."""
    tensor = model.subgraphs[0].tensors[index]
    kind, shape = file_model.TYPES[tensor.type], _ints(tensor.shape)
    raw = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    if kind == "INT4":
        return unpacked(raw, math.prod(shape)).reshape(shape)
    return raw.view(np.dtype(kind.lower())).reshape(shape)


def packed(values: np.ndarray) -> np.ndarray:
    """Integers of 4 bits, two to the byte, the first in the low bits; uint8, flat."""
    flat = np.ascontiguousarray(values, np.int8).reshape(-1).view(np.uint8) & 0xF
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | flat[1::2] << 4


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
    model, seen = unpack(content), read(content)
    written = [i for op in seen.operators for i in op.outputs]
    known = set(seen.outputs)
    extra = [
        i
        for i in dict.fromkeys(written)
        if i not in known and (seen.tensors[i].quantized or seen.tensors[i].floating)
    ]
    model.subgraphs[0].outputs = np.asarray([*seen.outputs, *extra], np.int32)
    return pack(model)
