"""Export: a quantization-aware model into a ``.tflite`` file of integers only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rewriter.checking import reading, targets, trial
from rewriter.errors import ExportError
from rewriter.files import outputs
from rewriter.files.replacing import replacing, write_bytes
from rewriter.litert import c_array as c_array_text
from rewriter.litert import writer
from rewriter.lowering.lower import Lowered, lower_with_sources
from rewriter.quantization import levels
from rewriter.reading.roles import Ours
from rewriter.rewriting import sizes


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
      path: the file.
      bytes: its size.
      ops: how many of each LiteRT operator it has.
      scales: scale and zero point of every activation tensor, by name.
      float_tensors: names of float tensors; only with float I/O or allowed float layers.
      input_lines: for int8 inputs whose values are levels, such as those of pixels: a line of C
        that makes the integer ``q`` of level number ``pixel``.
    """

    path: str
    bytes: int
    ops: dict[str, int]
    scales: dict[str, tuple[float, int]]
    float_tensors: tuple[str, ...] = ()
    input_lines: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        ops = ", ".join(f"{count} {name}" for name, count in sorted(self.ops.items()))
        lines = [f"{self.path}: {self.bytes:,} bytes; {ops}"]
        if self.float_tensors:
            lines.append(f"  in float: {', '.join(self.float_tensors)}")
        lines += [f"  input {name}: {line}" for name, line in self.input_lines.items()]
        return "\n".join(lines)


def export_tflite(
    model: Any,
    path: str | Path,
    *,
    float_io: bool = False,
    input_type: str | None = None,
    output_type: str | None = None,
    allow_float: bool = False,
    batch_size: int | None = 1,
    c_array: str | Path | None = None,
    target: str | None = None,
    input_shape: Any = None,
) -> ExportReport:
    """Write a calibrated quantization-aware model as an integer-only LiteRT file.

    int8 activations, int8 or int4 kernels, int32 biases. The file computes what
    :func:`rewriter.fold` of the same model computes. Before it appears in its place, it has been
    loaded once by LiteRT's interpreter.

    Args:
      model: what :func:`rewriter.rewrite` returned, calibrated or trained.
      path: where to write, with the suffix ``.tflite``. An existing file is replaced only when the
        new one is complete, and only if it is a ``.tflite`` file.
      float_io: float inputs and outputs, converted inside the file.
      input_type, output_type: ``"int8"``, ``"uint8"`` or ``"float32"``, converted inside the file;
        None: uint8 for inputs that are uint8 in the model, int8 for all others. A float model
        reads uint8 on the grid of its input.
      allow_float: let layers without an integer form be computed in float.
      batch_size: samples that the file takes at a time; None: any number, 1 until the application
        calls ``resize_tensor_input``.
      c_array: a ``.c`` file to write, too, with the file as an aligned array; beside it a ``.h``
        file with its size and with how inputs and outputs are stored.
      target: what is to run the file, see :func:`rewriter.check`.
      input_shape: sizes of the inputs, without the batch, for a model that leaves some open; as for
        :func:`rewriter.rewrite`.

    Raises:
      ExportError: if ranges are not set, something would be computed in float, or LiteRT does not
        take an operator, or ``target`` would not run it; the message names the Keras layer. Also
        for a ``path`` with another suffix, or that holds something else, or an unknown target.
      UnsupportedModelError: for an ``input_shape`` that does not fit.
      OSError: if the file cannot be written.
      ValueError: for a batch size that is not positive, an unknown type, or one beside
        ``float_io``.
    """
    refusal = outputs.refusal(path, (".tflite",), "A LiteRT file")
    if refusal is not None:
        raise ExportError(refusal)
    if c_array is not None and Path(c_array).suffix != ".c":
        raise ExportError(f"An array in C is a .c file. Received: {str(c_array)!r}.")
    if c_array is not None and (refusal := outputs.unwritable(c_array)) is not None:
        raise ExportError(refusal)
    if target is not None and target not in targets.TARGETS:
        known = ", ".join(targets.TARGETS)
        raise ExportError(f"There is no target {target!r}. There are: {known}.")
    model = sizes.settled(model, input_shape)
    _refuse_open(model)
    lowered = lower_with_sources(model)
    _refuse_twin(lowered)
    program = lowered.program
    content, file = writer.assemble(
        program,
        float_io=float_io,
        input_type=input_type,
        output_type=output_type,
        allow_float=allow_float,
        batch_size=batch_size,
    )
    if target is not None:
        found = list(targets.find(reading.read(content), targets.TARGETS[target]))
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise ExportError(f"{target} would not run the file: {found[0]}{more}.")
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        trial.load(temporary, file, program, open_batch=batch_size is None)
    lines = {} if float_io else input_lines(lowered)
    if c_array is not None:
        source = Path(c_array)
        header = c_array_text.header(reading.read(content), len(content), source.stem, lines)
        write_bytes(source.with_suffix(".h"), header.encode())
        write_bytes(source, c_array_text.source(content, source.stem).encode())
    census = reading.census(file)
    return ExportReport(
        path=str(path),
        bytes=len(content),
        ops=dict(census.operators),
        scales={
            name: (tensor.quantization.scale, tensor.quantization.zero_point)
            for name, tensor in program.tensors.items()
            if tensor.quantization is not None and not tensor.quantization.whole
        },
        float_tensors=tuple(census.float_tensors),
        input_lines=lines,
    )


def input_lines(lowered: Lowered) -> dict[str, str]:
    """For inputs whose values are levels, by name: the line of C of :class:`ExportReport`."""
    lines = {}
    for name, public in zip(lowered.program.inputs, lowered.program.input_names, strict=True):
        layer = lowered.sources[name].layer if name in lowered.sources else None
        values = getattr(getattr(layer, "quantizer", None), "levels", None)
        grid = lowered.program.tensors[name].quantization
        if values is None or grid is None:
            continue
        line = levels.in_c(
            levels.Levels(*values), grid.scale, grid.zero_point, grid.qmin, grid.qmax
        )
        first, step, _ = values
        lines[public] = f"{line}  // where pixel k stands for {first:.6g} + {step:.6g} * k"
    return lines


def _refuse_twin(lowered: Lowered) -> None:
    """Raise ExportError for what :func:`rewriter.fold` returned, or a model that holds it."""
    calls = lowered.graph.calls
    found = [c.path for c in calls if isinstance(c.role, Ours) and c.role.final]
    if found:
        raise ExportError(
            f"The model {lowered.graph.name!r} is a twin, which rewriter.fold returned, or holds "
            f"one: {found[0]!r} computes with a file's integers already. Give the "
            "quantization-aware model that it was made of."
        )


def _refuse_open(model: Any) -> None:
    """Raise ExportError if an input leaves a size open, which a file cannot."""
    for tensor in getattr(model, "inputs", None) or ():
        shape = tuple(tensor.shape)[1:]
        if None in shape:
            name = tensor.name.split(":")[0]
            given = ", ".join("32" if size is None else str(size) for size in shape)
            raise ExportError(
                f"Input {name!r} has no fixed size, which integer operators need. Received shape: "
                f"{(None, *shape)}. Say which: export_tflite(..., input_shape=({given})), on the "
                f"command line --input-shape {given.replace(' ', '')}; or rewrite the model with "
                "input_shape."
            )
