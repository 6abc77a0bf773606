"""LiteRT files as bytes: the flatbuffer, unpacked and packed.

The file format is LiteRT's schema,
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs. The generated
object API does the work; what is here is what it leaves open: alignment, and equal parts once.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import file_model
from rewriter.litert.file_model import schema


def unpack(content: bytes) -> Any:
    """The file as the schema's mutable ``ModelT``.

    Raises:
      ExportError: these bytes are not a LiteRT file.
    """
    check_identifier(content)
    return schema.ModelT.InitFromPackedBuf(content, 0)


def check_identifier(content: bytes) -> None:
    """Raise ExportError unless these bytes begin as a LiteRT file does."""
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


def kind_of(model: Any, operator: Any) -> str:
    """The schema name of an ``OperatorT``."""
    code = model.operatorCodes[operator.opcodeIndex]
    return file_model.OPERATORS[max(code.builtinCode, code.deprecatedBuiltinCode)]


def text(name: bytes | str | None) -> str:
    """A name of the object API, which gives bytes when it reads."""
    return name.decode() if isinstance(name, bytes) else name or ""


def packed(values: np.ndarray) -> np.ndarray:
    """Integers of 4 bits, two to the byte, the first in the low bits; uint8, flat."""
    flat = np.ascontiguousarray(values, np.int8).reshape(-1).view(np.uint8) & 0xF
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[0::2] | flat[1::2] << 4
