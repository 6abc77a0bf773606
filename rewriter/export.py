"""Export: a quantization-aware model into a ``.tflite`` file of integers only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rewriter.files import write_bytes
from rewriter.litert import flatbuffer
from rewriter.litert.convert import convert_program
from rewriter.lower import lower


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
      path: the file.
      bytes: its size.
      ops: how many of each LiteRT operator it has.
      scales: scale and zero point of every activation tensor, by name.
      float_tensors: names of float tensors; only with float I/O or allowed float layers.
    """

    path: str
    bytes: int
    ops: dict[str, int]
    scales: dict[str, tuple[float, int]]
    float_tensors: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        ops = ", ".join(f"{count} {name}" for name, count in sorted(self.ops.items()))
        lines = [f"{self.path}: {self.bytes:,} bytes; {ops}"]
        if self.float_tensors:
            lines.append(f"  in float: {', '.join(self.float_tensors)}")
        return "\n".join(lines)


def export_tflite(
    model: Any, path: str | Path, *, float_io: bool = False, allow_float: bool = False
) -> ExportReport:
    """Write a calibrated quantization-aware model as an integer-only LiteRT file.

    int8 activations and per-channel int8 kernels, int32 biases; batch size 1. The file computes
    what :func:`rewriter.fold` of the same model computes.

    Args:
      model: what :func:`rewriter.rewrite` returned, calibrated or trained.
      path: where to write; an existing file is replaced only when the new one is complete.
      float_io: float inputs and outputs, converted inside the file.
      allow_float: let layers without an integer form be computed in float.

    Raises:
      ExportError: if ranges are not set, or something would be computed in float; the message
        names the Keras layer.
      OSError: if the file cannot be written.
    """
    program = lower(model)
    content, mapping = convert_program(program, float_io=float_io, allow_float=allow_float)
    write_bytes(path, content)
    census = flatbuffer.census(mapping.file)
    return ExportReport(
        path=str(path),
        bytes=len(content),
        ops=dict(census.operators),
        scales={
            name: (tensor.quantization.scale, tensor.quantization.zero_point)
            for name, tensor in program.tensors.items()
            if tensor.quantization is not None
        },
        float_tensors=tuple(census.float_tensors),
    )
