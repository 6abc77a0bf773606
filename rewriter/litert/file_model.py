"""The main subgraph of a LiteRT file, as read-only data."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np

try:
    from ai_edge_litert import schema_py_generated as schema
except ImportError:  # TensorFlow carries a copy of the same schema
    from tensorflow.lite.python import schema_py_generated as schema


def _names_of(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if not k.startswith("_")}


OPERATORS = _names_of(schema.BuiltinOperator)
TYPES = _names_of(schema.TensorType)
_FLOATS = ("FLOAT32", "FLOAT16", "FLOAT64", "BFLOAT16")
_INTEGERS = ("INT8", "INT16", "INT4", "UINT8")


@dataclasses.dataclass(frozen=True, eq=False)
class FileTensor:
    """A tensor of the file; ``scale`` and ``zero_point`` are empty if it is not quantized."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray
    zero_point: np.ndarray
    quantized_dimension: int
    constant: bool

    @property
    def floating(self) -> bool:
        """Whether its elements are stored as floating-point numbers."""
        return self.dtype in _FLOATS

    @property
    def quantized(self) -> bool:
        """Whether it holds integers that stand for real values."""
        return self.dtype in _INTEGERS and len(self.scale) > 0


@dataclasses.dataclass(frozen=True, eq=False)
class FileOperator:
    """An operator of the file: its schema name and the indexes of its tensors (-1: absent)."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FileModel:
    """The main subgraph of a file.

    ``signature`` holds the names of the inputs and outputs, by the index of the tensor, of the
    first signature; empty if the file has none. ``extra_subgraphs``: how many there are beside the
    main one.
    """

    operators: tuple[FileOperator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[FileTensor, ...]
    signature: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]] = ((), ())
    extra_subgraphs: int = 0

    def producers(self) -> dict[int, FileOperator]:
        """The operator that writes each tensor."""
        return {t: op for op in self.operators for t in op.outputs}

    def consumers(self) -> dict[int, list[FileOperator]]:
        """The operators that read each tensor, in the order of execution."""
        found: dict[int, list[FileOperator]] = collections.defaultdict(list)
        for op in self.operators:
            for tensor in dict.fromkeys(op.inputs):
                found[tensor].append(op)
        return found


def from_bytes(content: bytes) -> FileModel:
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
