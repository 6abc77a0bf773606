"""The main subgraph of a LiteRT file, as read-only data."""

from __future__ import annotations

import collections
import dataclasses

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
    resizable: bool = False  # whether a size may change when it is run

    @property
    def floating(self) -> bool:
        """Whether its elements are stored as floating-point numbers."""
        return self.dtype in _FLOATS

    @property
    def unsigned(self) -> bool:
        """Whether it holds uint8, which only inputs and outputs do."""
        return self.dtype == "UINT8"

    @property
    def quantized(self) -> bool:
        """Whether it holds integers that stand for real values."""
        return self.dtype in _INTEGERS and len(self.scale) > 0


@dataclasses.dataclass(frozen=True, eq=False)
class FileOperator:
    """An operator of the file: schema name, the indexes of its tensors (-1: absent), version."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    version: int = 1


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
