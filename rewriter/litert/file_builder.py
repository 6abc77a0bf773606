"""The tables of a file while it is written: tensors, buffers, operators and their codes.

Knows the format and nothing of programs. The format is LiteRT's schema,
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter.litert import flatbuffer
from rewriter.litert.file_model import (
    OPERATORS,
    TYPES,
    FileModel,
    FileOperator,
    FileTensor,
    schema,
)
from rewriter.litert.flatbuffer import packed

_TYPES = {
    np.dtype(name): getattr(schema.TensorType, name.upper())
    for name in ("int8", "int16", "int32", "int64", "float32")
}
_WIDTHS = {
    4: schema.TensorType.INT4,
    8: schema.TensorType.INT8,
    16: schema.TensorType.INT16,
    32: schema.TensorType.INT32,
    64: schema.TensorType.INT64,
}
FLOAT = schema.TensorType.FLOAT32
# Of the metadata that LiteRT's tools read: the first runtime that can run the file, 16 bytes.
_RUNTIME, _RUNTIME_BYTES = "min_runtime_version", 16


class FileBuilder:
    """Adds to a file; an index names what has been added.

    Args:
      open_batch: leave the first size of activations to be set by the application.

    Attributes:
      subgraphs: bodies of control flow, beside the main graph.
    """

    def __init__(self, open_batch: bool = False):
        self._open_batch = open_batch
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: list[Any] = []
        self._code_index: dict[tuple[int, int, Any], int] = {}
        # The first buffer is empty by convention: all that is computed shares it.
        self._buffers: list[Any] = [schema.BufferT()]
        self._constants: dict[tuple[Any, ...], int] = {}
        self._runtime: tuple[int, ...] = (0,)
        self.subgraphs: list[Any] = []

    def activation(
        self,
        name: str,
        shape: Sequence[int],
        bits: int = 0,
        scale: float = 0,
        zero_point: int = 0,
        unsigned: bool = False,
    ) -> int:
        """A tensor that is computed, per-tensor quantized; of float32 if ``bits`` is 0.

        Without a ``scale``: of integers that are not quantized. ``unsigned``: of uint8.
        """
        width = schema.TensorType.UINT8 if unsigned else _WIDTHS.get(bits, FLOAT)
        tensor = schema.TensorT(
            shape=np.asarray(shape, np.int32),
            type=width,
            name=name,
            hasRank=True,
        )
        if scale:
            tensor.quantization = _quantization([scale], zero_point, 0)
        if self._open_batch:
            tensor.shapeSignature = np.asarray([-1, *shape[1:]], np.int32)
        return self.tensor(tensor)

    def constant(
        self,
        name: str,
        values: np.ndarray,
        scale: Any = None,
        *,
        axis: int = 0,
        zero_point: int = 0,
        bits: int = 0,
    ) -> int:
        """A stored tensor; equal ones are stored once.

        Args:
          name: of the tensor.
          values: integers, or float32, in the file's layout.
          scale: None for plain integers; one number, or one for each index of ``axis``.
          axis: of the scales.
          zero_point: of all scales.
          bits: 4 packs two of the values into a byte; otherwise the dtype's own width.
        """
        values = np.asarray(values)
        shape = values.shape
        kind = _WIDTHS[bits] if bits == 4 else _TYPES[values.dtype]
        raw = packed(values) if bits == 4 else np.ascontiguousarray(values)
        data = raw.reshape(-1).view(np.uint8)
        scales = None if scale is None else np.atleast_1d(np.asarray(scale, np.float32))
        digest = hashlib.blake2b(data.data, digest_size=16).digest()
        own = None if scales is None else scales.tobytes()
        key = (shape, kind, axis, zero_point, own, digest)
        if key not in self._constants:
            tensor = schema.TensorT(
                shape=np.asarray(shape, np.int32),
                type=kind,
                buffer=self.buffer(data),
                name=name,
                hasRank=True,
            )
            if scales is not None:
                tensor.quantization = _quantization(scales, zero_point, axis)
            self._constants[key] = self.tensor(tensor)
        return self._constants[key]

    def tensor(self, tensor: Any) -> int:
        """Any ``TensorT`` whose buffer is this file's."""
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def buffer(self, data: np.ndarray) -> int:
        """Bytes of a constant; not copied until the file is packed."""
        self._buffers.append(schema.BufferT(data=data))
        return len(self._buffers) - 1

    def shape(self, index: int) -> tuple[int, ...]:
        """The static shape of a tensor."""
        return tuple(self._tensors[index].shape.tolist())

    def rename(self, index: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[index].name = name

    def code(self, kind: int, version: int, custom: Any = None) -> int:
        """The index of an operator code."""
        key = kind, version, custom
        if key not in self._code_index:
            self._code_index[key] = len(self._codes)
            # Readers of the time before code 127 look at the small field.
            small = min(kind, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES)
            self._codes.append(
                schema.OperatorCodeT(
                    deprecatedBuiltinCode=small,
                    builtinCode=kind,
                    version=version,
                    customCode=custom,
                )
            )
        return self._code_index[key]

    def operator(
        self,
        kind: str,
        version: int,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an operator of the main graph."""
        operator = schema.OperatorT(
            opcodeIndex=self.code(getattr(schema.BuiltinOperator, kind), version),
            inputs=np.asarray(inputs, np.int32),
            outputs=np.asarray(outputs, np.int32),
        )
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            operator.builtinOptions = getattr(schema, f"{options}OptionsT")(**(values or {}))
        self.append(operator)

    def append(self, operator: Any) -> None:
        """Append any ``OperatorT`` of the main graph."""
        self._operators.append(operator)

    def require(self, runtime: str) -> None:
        """Say that the file needs at least this version of the runtime."""
        self._runtime = max(self._runtime, tuple(int(part) for part in runtime.split(".")))

    def view(self, inputs: Sequence[int], outputs: Sequence[int]) -> FileModel:
        """What the main graph consists of: what reading the packed file would tell."""
        operators = [
            FileOperator(
                OPERATORS[self._codes[op.opcodeIndex].builtinCode],
                tuple(op.inputs.tolist()),
                tuple(op.outputs.tolist()),
            )
            for op in self._operators
        ]
        tensors = []
        for index, t in enumerate(self._tensors):
            grid = t.quantization or schema.QuantizationParametersT()
            tensor = FileTensor(
                index=index,
                name=t.name,
                shape=tuple(t.shape.tolist()),
                dtype=TYPES[t.type],
                scale=np.asarray(() if grid.scale is None else grid.scale, np.float32),
                zero_point=np.asarray(() if grid.zeroPoint is None else grid.zeroPoint, np.int64),
                quantized_dimension=grid.quantizedDimension,
                constant=t.buffer > 0,
            )
            tensors.append(tensor)
        extra = len(self.subgraphs)
        return FileModel(
            tuple(operators), tuple(inputs), tuple(outputs), tuple(tensors), extra_subgraphs=extra
        )

    def pack(self, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> bytes:
        """The bytes of the file.

        Args:
          inputs, outputs: pairs of a name in the signature and a tensor, in order.
        """
        graph = schema.SubGraphT(
            tensors=self._tensors,
            inputs=np.asarray([index for _, index in inputs], np.int32),
            outputs=np.asarray([index for _, index in outputs], np.int32),
            operators=self._operators,
            name="main",
        )
        signature = schema.SignatureDefT(
            inputs=[schema.TensorMapT(name=n, tensorIndex=i) for n, i in inputs],
            outputs=[schema.TensorMapT(name=n, tensorIndex=i) for n, i in outputs],
            signatureKey="serving_default",
            subgraphIndex=0,
        )
        runtime = ".".join(map(str, self._runtime)).encode().ljust(_RUNTIME_BYTES, b"\0")
        model = schema.ModelT(
            version=3,
            operatorCodes=self._codes,
            subgraphs=[graph, *self.subgraphs],
            description="rewriter",
            buffers=self._buffers,
            signatureDefs=[signature],
            metadata=[
                schema.MetadataT(
                    name=_RUNTIME, buffer=self.buffer(np.frombuffer(runtime, np.uint8))
                )
            ],
        )
        return flatbuffer.pack(model)


def _quantization(scale: Any, zero_point: int, axis: int) -> Any:
    scale = np.asarray(scale, np.float32)
    return schema.QuantizationParametersT(
        scale=scale, zeroPoint=np.full(scale.shape, zero_point, np.int64), quantizedDimension=axis
    )
