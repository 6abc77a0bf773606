"""Which tensor of a converted file is which tensor of the program.

The converter names an operator's output after the TensorFlow operations that it came from, joined
by ``;``, so the name scope of a step usually leads back to it. Names can be lost or shared (common
subexpressions, constants folded across steps); then the wiring decides: same kind, same inputs,
same quantization.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.litert import patching
from rewriter.litert.flatbuffer import FileModel, FileOperator, FileTensor
from rewriter.litert.stand_ins import STAND_INS
from rewriter.program import Program, Step, Tensor

# Where nothing is added or left out, these keep the elements and their order; the converter drops
# them then, or merges them with the next one.
_MOVES = ("RESHAPE", "PAD", "SLICE", "STRIDED_SLICE", "SQUEEZE", "EXPAND_DIMS")


@dataclasses.dataclass(frozen=True)
class FileMapping:
    """Where the program's tensors are in a file.

    Attributes:
      indexes: the tensor's index in the file, by the name of the program's tensor.
      names: its name in the file.
      missing: program tensors that the file does not hold, because the converter merged
        operators. (One that does nothing, such as padding by nothing, shares its input's tensor.)
      file: what the file consists of.
    """

    indexes: Mapping[str, int]
    names: Mapping[str, str]
    missing: tuple[str, ...]
    file: FileModel


def fits(tensor: FileTensor, wanted: Tensor) -> bool:
    """Whether a file's tensor can be the program's: same size, same quantization."""
    if math.prod(tensor.shape) != math.prod(n or 1 for n in wanted.shape):
        return False
    if wanted.quantization is None:
        return not tensor.quantized
    return (
        tensor.quantized
        and len(tensor.scale) == 1
        and patching.same_quantization(
            float(tensor.scale[0]), int(tensor.zero_point[0]), wanted.quantization
        )
    )


def scopes_in(name: str, scopes: Mapping[str, int]) -> set[int]:
    """The steps whose scopes occur in a tensor's name: for ``a/b/Relu;c/Conv2D``, a/b and c."""
    found = set()
    for part in name.split(";"):
        end = part.rfind("/")
        while end > 0:
            if part[:end] in scopes:
                found.add(scopes[part[:end]])
                break
            end = part.rfind("/", 0, end)
    return found


class Matcher:
    """Finds each step's last operator in a converted file.

    Args:
      program: what was converted.
      file: what came of it.
      scopes: the position of the step in the program, by the name scope it was emitted in.
      agrees: whether an operator of the file holds the constants of a step; asked only to
        choose between several candidates.
    """

    def __init__(self, program: Program, file: FileModel, scopes: Mapping[str, int], agrees: Any):
        self._program, self._file, self._agrees = program, file, agrees
        self._named: dict[int, list[FileOperator]] = collections.defaultdict(list)
        self._owned: dict[int, list[FileOperator]] = collections.defaultdict(list)
        self._consumers, self._producers = file.consumers(), file.producers()
        self.owner: dict[int, int] = {}
        for op in file.operators:
            if not op.outputs:
                continue
            steps = scopes_in(file.tensors[op.outputs[0]].name, scopes)
            for step in steps:
                self._named[step].append(op)
            if steps:
                self.owner[op.outputs[0]] = max(steps)
                self._owned[max(steps)].append(op)

        border = zip(program.outputs, file.outputs, strict=True)
        # Float outputs carry the output's name, not their step's.
        self._float_outputs = {n: i for n, i in border if program.tensors[n].quantization is None}

    def match(self) -> tuple[dict[str, int], dict[int, FileOperator]]:
        """The file's tensor of every program tensor found, and the operator of every step."""
        indexes = border_inputs(self._program, self._file)
        operators: dict[int, FileOperator] = {}
        for position, step in enumerate(self._program.steps):
            op = self._find(position, step, indexes)
            if op is not None:
                indexes[step.output] = op.outputs[0]
                operators[position] = op
            elif step.operator.kind in _MOVES and step.inputs[0] in indexes:
                source = indexes[step.inputs[0]]
                if fits(self._file.tensors[source], self._program.tensors[step.output]):
                    indexes[step.output] = source
        return indexes, operators

    def _find(self, position: int, step: Step, indexes: dict[str, int]) -> FileOperator | None:
        wanted = self._program.tensors[step.output]
        if step.output in self._float_outputs:
            return self._producers.get(self._float_outputs[step.output])

        def possible(candidates: list[FileOperator]) -> list[FileOperator]:
            unique = {op.outputs[0]: op for op in candidates}.values()
            return [op for op in unique if fits(self._file.tensors[op.outputs[0]], wanted)]

        kinds = {step.operator.kind, STAND_INS.get(step.operator.kind)}
        wired = [op for op in self._wired(step, indexes) if op.kind in kinds]
        owned, wired = possible(self._owned[position]), possible(wired)
        both = [op for op in wired if any(op is other for other in owned)]
        for candidates in (both, owned, wired, possible(self._named[position])):
            if step.operator.kernel is not None:
                right_kind = [op for op in candidates if op.kind == step.operator.kind]
                candidates = right_kind or candidates
                if len(candidates) > 1:
                    candidates = [op for op in candidates if self._agrees(op, step)] or candidates
            if candidates:
                return candidates[-1]  # the last one, where a step took several operators
        return None

    def _wired(self, step: Step, indexes: dict[str, int]) -> list[FileOperator]:
        """The operators that read exactly the step's inputs."""
        inputs = [indexes.get(name, -1) for name in step.inputs]
        if not inputs or min(inputs) < 0:
            return []
        return [
            op
            for op in self._consumers.get(inputs[0], [])
            if sorted(self._file.activations(op)) == sorted(inputs)
        ]

    def nearest(self, index: int) -> Step | None:
        """The step that a file's tensor belongs to, or else the nearest one before or after it."""
        around = collections.defaultdict(set)
        for op in self._file.operators:
            for a in self._file.activations(op):
                for b in op.outputs:
                    around[a].add(b)
                    around[b].add(a)
        seen, queue = {index}, collections.deque([index])
        while queue:
            current = queue.popleft()
            if current in self.owner:
                return self._program.steps[self.owner[current]]
            queue.extend(sorted(around[current] - seen))
            seen |= around[current]
        return None


def border_inputs(program: Program, file: FileModel) -> dict[str, int]:
    """The file's tensor of each program input: behind its QUANTIZE, if it has one.

    A float input that nobody reads stands for no quantized tensor and is left out.
    """
    consumers, found = file.consumers(), {}
    for name, index in zip(program.inputs, file.inputs, strict=True):
        if program.tensors[name].quantization and file.tensors[index].floating:
            readers = [op for op in consumers.get(index, []) if op.kind == "QUANTIZE"]
            if not readers:
                continue
            index = readers[0].outputs[0]
        found[name] = index
    return found


def border_outputs(program: Program, file: FileModel) -> list[int]:
    """The file's tensor of each program output: before its DEQUANTIZE, if it has one."""
    producers, found = file.producers(), []
    for name, index in zip(program.outputs, file.outputs, strict=True):
        maker = producers.get(index)
        if program.tensors[name].quantization and maker and maker.kind == "DEQUANTIZE":
            index = maker.inputs[0]
        found.append(index)
    return found


def mapping_from_names(program: Program, file: FileModel) -> FileMapping:
    """The mapping of a file written by :func:`~rewriter.litert.convert.convert_program`.

    Such a file carries the program's tensor names; its inputs and outputs go by their order.
    A border tensor with a float conversion is represented by its integer side.

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
    by_name = {name: t.index for t in file.tensors for name in t.name.split(";")}
    indexes = {
        name: by_name[name]
        for name, tensor in program.tensors.items()
        if name in by_name
        and (tensor.quantization is None or file.tensors[by_name[name]].quantized)
    }
    indexes.update(zip(program.outputs, border_outputs(program, file), strict=True))
    indexes.update(border_inputs(program, file))
    return file_mapping(program, file, indexes)


def file_mapping(program: Program, file: FileModel, indexes: Mapping[str, int]) -> FileMapping:
    """A :class:`FileMapping` of these indexes."""
    return FileMapping(
        indexes=dict(indexes),
        names={name: file.tensors[i].name for name, i in indexes.items()},
        missing=tuple(name for name in program.tensors if name not in indexes),
        file=file,
    )
