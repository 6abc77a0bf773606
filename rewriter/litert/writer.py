"""From a :class:`~rewriter.program.Program` to the bytes of a ``.tflite`` file.

A program is LiteRT operators with all their constants, so the file is written from it: one row of
:mod:`rewriter.litert.rows` an operator kind. Layers that stay in float are the exception: see
:mod:`rewriter.litert.islands`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import batches_apart, borders, constants, islands
from rewriter.litert.file_builder import FileBuilder
from rewriter.litert.file_model import FileModel
from rewriter.litert.partition import Island, schedule
from rewriter.litert.problems import problem
from rewriter.litert.rows import ROWS
from rewriter.program import Operator, Program, Step

Shape = tuple[int, ...]


def assemble(
    program: Program,
    *,
    float_io: bool = False,
    input_type: str | None = None,
    output_type: str | None = None,
    allow_float: bool = False,
    batch_size: int | None = 1,
) -> tuple[bytes, FileModel]:
    """The file of a program, and what it consists of.

    Tensors carry the program's names, inputs and outputs those of the Keras model; the signature
    is ``serving_default``.

    Args:
      program: what the file shall compute.
      float_io: float inputs and outputs: a QUANTIZE at the start, a DEQUANTIZE at the end.
      input_type, output_type: of all quantized inputs or outputs: one of
        :data:`rewriter.litert.borders.TYPES`. None: uint8 for inputs that are uint8 in the Keras
        model, and the program's own integers for all others.
      allow_float: accept steps that compute in float.
      batch_size: samples that the file takes at a time; None: any number, 1 until the application
        resizes the input.

    Raises:
      ExportError: a step is in float and ``allow_float`` is off, or LiteRT would refuse an
        operator. The message names the Keras layer. Also for a type that an input or output
        cannot have.
      ValueError: for a batch size that is not positive, an unknown type, or one beside
        ``float_io``.
    """
    inputs, outputs = borders.types(program, float_io, input_type, output_type)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"batch_size must be a positive whole number or None. Received: {batch_size!r}."
        )
    inside = [s for s in program.steps if s.operator.kind == "FLOAT"]
    kinds = {s.layer: s.operator.attributes.get("layer", "") for s in inside}
    reasons = {s.layer: s.operator.attributes.get("reason", "") for s in inside}
    floats = sorted(kinds)
    if floats and not allow_float:
        stock = sorted({s.layer for s in inside if s.operator.attributes.get("stock")})
        shown = ", ".join(
            f"{name} ({kinds[name]})" if kinds[name] else name for name in (stock or floats)[:8]
        )
        if stock:
            raise ExportError(
                f"Layer '{stock[0]}' is not quantization-aware, and {len(stock)} layer(s) were "
                f"added after the model was rewritten: {shown}. Run rewriter.rewrite on this "
                "model, which rewrites them and leaves the others as they are, and calibrate it."
            )
        raise ExportError(
            f"Layer '{floats[0]}' has no integer form, and {len(floats)} layer(s) would stay in "
            f"float: {shown}. Replace them, or allow float "
            "layers in the export: export_tflite(..., allow_float=True)."
            + "".join(f" {name}: {reasons[name]}." for name in floats[:8] if reasons[name])
        )
    batches_apart.refuse(program, batch_size)
    return _Writer(program, batch_size).write(inputs, outputs)


def write(program: Program, **options: Any) -> bytes:
    """The bytes of a program's file; ``options`` as for :func:`assemble`."""
    return assemble(program, **options)[0]


class _Writer:
    """Writes one program.

    ``_index`` and ``_shapes``: of every program tensor so far, its index in the file and its shape
    there. ``_reals``: the index of the float values of those that are read in float; ``_unsigned``:
    that of the uint8 values of outputs.
    """

    def __init__(self, program: Program, batch_size: int | None):
        self._program = program
        self._open, self._batch = batch_size is None, batch_size or 1
        self._file = FileBuilder(self._open)
        self._index: dict[str, int] = {}
        self._shapes: dict[str, Shape] = {}
        self._reals: dict[str, int] = {}
        self._unsigned: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._outer: dict[str, str] = {}
        self._read = {n for step in program.steps for n in step.inputs} | {*program.outputs}

    def write(
        self, input_types: Mapping[str, str], output_types: Mapping[str, str]
    ) -> tuple[bytes, FileModel]:
        program = self._program
        self._names = dict(borders.names(program))
        converted = {*input_types, *output_types}
        if converted:
            self._outer, self._names = self._names, self._behind_the_border(converted)
        inputs = [
            (given, self._input(name, given, input_types.get(name, "")))
            for name, given in zip(program.inputs, program.input_names, strict=True)
        ]
        for part in schedule(program):
            if isinstance(part, Island):
                self._island(part)
            else:
                self._step(part)
        outputs = [
            (given, self._converted(name, output_types.get(name, "")))
            for name, given in zip(program.outputs, program.output_names, strict=True)
        ]
        places = ([index for _, index in pairs] for pairs in (inputs, outputs))
        file = self._file.view(*places)
        return self._file.pack(inputs, outputs), file

    def _behind_the_border(self, converted: set[str]) -> dict[str, str]:
        """Converted inputs and outputs carry the Keras names; the integers behind them others."""
        names: dict[str, str] = {}
        for name, given in self._names.items():
            free = given
            while name in converted and (
                free == given or free in self._program.tensors or free in names.values()
            ):
                free += "_quantized"
            names[name] = free
        return names

    def _input(self, name: str, given: str, kind: str) -> int:
        tensor = self._program.tensors[name]
        if None in tensor.shape[1:]:
            raise ExportError(
                f"Input '{given}' has no fixed size, which integer operators "
                f"need. Received shape: {tensor.shape}. Rebuild the model with a fixed input shape."
            )
        shape = self._shapes[name] = (self._batch, *(int(n or 0) for n in tensor.shape[1:]))
        grid = tensor.quantization
        if not kind or grid is None:
            return self._activation(name)
        outer = self._file.activation(given, shape, **borders.tensor(kind, grid))
        if name in self._read:
            source = None if kind == borders.FLOAT else grid
            quantize = Operator("QUANTIZE", (source,), grid)
            self._operator(quantize, [outer], self._activation(name), [shape])
        return outer

    def _converted(self, name: str, kind: str) -> int:
        """An output of the file, in the type that was asked for."""
        grid = self._program.tensors[name].quantization
        if not kind or grid is None:
            return self._index[name]
        if kind == borders.FLOAT:
            return self._real(name)
        if name not in self._unsigned:
            shape = self._shapes[name]
            given = self._outer.get(name, f"{name}/unsigned")
            index = self._file.activation(given, shape, **borders.tensor(kind, grid))
            self._unsigned[name] = index
            operator = Operator("QUANTIZE", (grid,), grid)
            self._operator(operator, [self._index[name]], index, [shape])
        return self._unsigned[name]

    def _activation(self, name: str) -> int:
        """The file's tensor of a program tensor, which is new."""
        grid = self._program.tensors[name].quantization
        quantized = () if grid is None else (grid.bits, grid.scale, grid.zero_point)
        if grid is not None and grid.whole:
            quantized = (grid.bits, 0.0, 0)  # without a scale
        given = self._names.get(name, name)
        self._index[name] = self._file.activation(given, self._shapes[name], *quantized)
        return self._index[name]

    def _step(self, step: Step) -> None:
        operator, wanted = step.operator, self._program.tensors[step.output]
        reason = problem(operator)
        if reason is None and operator.output != wanted.quantization:
            reason = f"its output is on {operator.output}, its tensor on {wanted.quantization}"
        if reason is not None:
            raise ExportError(
                f"Layer '{step.layer}': LiteRT would refuse step '{step.name}' ({operator.kind}): "
                f"{reason}. Please report this model."
            )
        shapes = [self._shapes[name] for name in step.inputs]
        sizes = tuple(1 if n is None else int(n) for n in wanted.shape[1:])
        self._shapes[step.output] = (_rows(operator, shapes, sizes), *sizes)
        read = [self._index[name] for name in step.inputs]
        made = self._shapes[step.output]
        inputs = constants.beside(self._file, step, read, made, self._open)
        self._operator(operator, inputs, self._activation(step.output), shapes)

    def _operator(
        self, operator: Operator, inputs: list[int], output: int, shapes: list[Shape]
    ) -> None:
        row = ROWS[operator.kind]
        version = row.version(operator, shapes)
        self._file.require(version.runtime)
        values = row.values(operator)
        self._file.operator(operator.kind, version.number, inputs, [output], row.options, values)

    def _island(self, island: Island) -> None:
        """Steps in float: converted by TensorFlow and copied in, between DEQUANTIZE operators."""
        inputs = [self._real(name) for name in island.inputs]
        batches = [self._shapes[name][0] for name in island.inputs]
        found = islands.splice(self._file, self._program, island, inputs, batches, self._open)
        for name, index in found.items():
            self._index[name] = index
            if self._program.tensors[name].quantization is None:
                self._reals[name] = index
            self._shapes[name] = self._file.shape(index)
            if not self._shapes[name]:
                layer = next(step.layer for step in island.steps if step.output == name)
                raise batches_apart.one_number(layer)
            self._file.rename(index, self._names.get(name, name))

    def _real(self, name: str) -> int:
        """The float values of a tensor, for all who read them."""
        grid = self._program.tensors[name].quantization
        if grid is None:
            return self._index[name]
        if name not in self._reals:
            shape = self._shapes[name]
            given = f"{name}/float" if name in self._program.inputs else self._outer.get(name)
            self._reals[name] = self._file.activation(given or f"{name}/float", shape)
            operator = Operator("CAST" if grid.whole else "DEQUANTIZE", (grid,), None)
            self._operator(operator, [self._index[name]], self._reals[name], [shape])
        return self._reals[name]


def _rows(operator: Operator, shapes: list[Shape], sizes: Shape) -> int:
    """The first size of an output, of which one sample may have several rows."""
    if operator.kind == "RESHAPE":
        return math.prod(shapes[0]) // max(math.prod(sizes), 1)
    if operator.kind == "FULLY_CONNECTED" and not operator.attributes.get("keep_num_dims"):
        return math.prod(shapes[0]) // np.asarray(operator.kernel).shape[0]
    return max(shape[0] for shape in shapes)
