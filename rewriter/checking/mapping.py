"""Which tensor of a file is which tensor of the program, by the names that the writer gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rewriter.errors import ExportError
from rewriter.litert.file_model import FileModel
from rewriter.litert.partition import inside
from rewriter.program import Program, Tensor


@dataclasses.dataclass(frozen=True)
class FileMapping:
    """Where the program's tensors are in a file.

    Attributes:
      indexes: the tensor's index in the file, by the name of the program's tensor.
      names: its name in the file.
      missing: program tensors that the file does not hold, other than those inside islands.
      file: what the file consists of.
    """

    indexes: Mapping[str, int]
    names: Mapping[str, str]
    missing: tuple[str, ...]
    file: FileModel


def mapping_from_names(program: Program, file: FileModel) -> FileMapping:
    """The mapping of a file written by :func:`rewriter.litert.writer.write`.

    Such a file carries the program's tensor names; its inputs and outputs go by their order.
    A border tensor with a conversion is represented by its integer side.

    Raises:
      ExportError: the file has another number of inputs or outputs.
    """
    for what, ours, theirs in (
        ("inputs", program.inputs, file.inputs),
        ("outputs", program.outputs, file.outputs),
    ):
        if len(ours) != len(theirs):
            raise ExportError(
                f"The file is not of this model: the model has {len(ours)} {what}, "
                f"the file has {len(theirs)}."
            )
    by_name = {tensor.name: tensor.index for tensor in file.tensors}
    indexes = {
        name: by_name[name]
        for name, tensor in program.tensors.items()
        if name in by_name
        and (not _on_a_grid(tensor) or file.tensors[by_name[name]].quantized)
        and not file.tensors[by_name[name]].unsigned
    }
    indexes.update(zip(program.outputs, _outputs(program, file), strict=True))
    indexes.update(_inputs(program, file))
    known = indexes.keys() | inside(program)
    return FileMapping(
        indexes=indexes,
        names={name: file.tensors[i].name for name, i in indexes.items()},
        missing=tuple(name for name in program.tensors if name not in known),
        file=file,
    )


def _on_a_grid(tensor: Tensor) -> bool:
    """Whether a file has a scale for a tensor of the program."""
    return tensor.quantization is not None and not tensor.quantization.whole


def _inputs(program: Program, file: FileModel) -> dict[str, int]:
    """The file's tensor of each program input: behind its QUANTIZE, if it has one.

    A float or uint8 input that nobody reads stands for no quantized tensor and is left out.
    """
    consumers, found = file.consumers(), {}
    for name, index in zip(program.inputs, file.inputs, strict=True):
        tensor = file.tensors[index]
        if program.tensors[name].quantization and (tensor.floating or tensor.unsigned):
            readers = [op for op in consumers.get(index, []) if op.kind == "QUANTIZE"]
            if not readers:
                continue
            index = readers[0].outputs[0]
        found[name] = index
    return found


def _outputs(program: Program, file: FileModel) -> list[int]:
    """The file's tensor of each program output: before its conversion, if it has one."""
    producers, found = file.producers(), []
    for name, index in zip(program.outputs, file.outputs, strict=True):
        maker = producers.get(index)
        kinds = ("QUANTIZE",) if file.tensors[index].unsigned else ("DEQUANTIZE",)
        if program.tensors[name].quantization and maker and maker.kind in kinds:
            index = maker.inputs[0]
        found.append(index)
    return found
