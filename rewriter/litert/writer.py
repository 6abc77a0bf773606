"""From a :class:`~rewriter.program.Program` to the bytes of a ``.tflite`` file.

A program is LiteRT operators with all their constants, so the file is written from it: one row of
:mod:`rewriter.litert.rows` an operator kind. Layers that stay in float are the exception: see
:mod:`rewriter.litert.islands`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import islands, validation
from rewriter.litert.file_builder import FileBuilder
from rewriter.litert.integer_elementwise import constant
from rewriter.litert.layouts import LAYOUTS
from rewriter.litert.rows import ROWS
from rewriter.litert.versions import Use
from rewriter.partition import Island, schedule
from rewriter.program import Operator, Program, Step


def write(
    program: Program,
    *,
    float_io: bool = False,
    allow_float: bool = False,
    batch_size: int | None = 1,
) -> bytes:
    """The file of a program.

    Tensors carry the program's names, inputs and outputs those of the Keras model; the signature
    is ``serving_default``.

    Args:
      program: what the file shall compute.
      float_io: float inputs and outputs: a QUANTIZE at the start, a DEQUANTIZE at the end.
      allow_float: accept steps that compute in float.
      batch_size: samples that the file takes at a time; None: any number, 1 until the application
        resizes the input.

    Raises:
      ExportError: a step is in float and ``allow_float`` is off, or LiteRT would refuse an
        operator. The message names the Keras layer.
      ValueError: for a batch size that is not positive.
    """
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(
            f"batch_size must be a positive whole number or None. Received: {batch_size!r}."
        )
    if not allow_float:
        _refuse_float(program)
    return _Writer(program, batch_size).write(float_io)


def _refuse_float(program: Program) -> None:
    floats = sorted({s.layer for s in program.steps if s.operator.kind == "FLOAT"})
    if floats:
        raise ExportError(
            f"Layer '{floats[0]}' has no integer form, and {len(floats)} layer(s) would stay in "
            f"float: {', '.join(floats[:8])}. Replace them, or allow float "
            "layers in the export: export_tflite(..., allow_float=True)."
        )


class _Writer:
    """Writes one program.

    ``_index`` and ``_shapes``: of every program tensor so far, its index in the file and its shape
    there. ``_reals``, ``_outer``: the index of the float values of those that float layers read,
    and of the outputs of a file with float outputs.
    """

    def __init__(self, program: Program, batch_size: int | None):
        self._program = program
        self._open, self._batch = batch_size is None, batch_size or 1
        self._file = FileBuilder(self._open)
        self._index: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._reals: dict[str, int] = {}
        self._outer: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._read: set[str] = set()

    def write(self, float_io: bool) -> bytes:
        program = self._program
        self._names = _names(program, float_io)
        self._read = {n for step in program.steps for n in step.inputs} | {*program.outputs}
        inputs = [
            (given, self._input(name, given, float_io))
            for name, given in zip(program.inputs, program.input_names, strict=True)
        ]
        for part in schedule(program):
            if isinstance(part, Island):
                self._island(part)
            else:
                self._step(part)
        outputs = [
            (given, self._output(name, given, float_io))
            for name, given in zip(program.outputs, program.output_names, strict=True)
        ]
        return self._file.pack(inputs, outputs)

    def _input(self, name: str, given: str, float_io: bool) -> int:
        tensor = self._program.tensors[name]
        shape = self._shapes[name] = validation.input_shape(given, tensor.shape, self._batch)
        if not float_io or tensor.quantization is None:
            return self._activation(name)
        outer = self._file.activation(given, shape)
        if name not in self._read:
            return outer
        inner = self._activation(name)
        self._operator(Operator("QUANTIZE", (None,), tensor.quantization), [outer], inner, [shape])
        return outer

    def _output(self, name: str, given: str, float_io: bool) -> int:
        tensor = self._program.tensors[name]
        if not float_io or tensor.quantization is None:
            return self._index[name]
        if name not in self._outer:
            self._outer[name] = self._file.activation(given, self._shapes[name])
            operator = Operator("DEQUANTIZE", (tensor.quantization,), None)
            shapes = [self._shapes[name]]
            self._operator(operator, [self._index[name]], self._outer[name], shapes)
        return self._outer[name]

    def _activation(self, name: str) -> int:
        """The file's tensor of a program tensor, which is new."""
        grid = self._program.tensors[name].quantization
        quantized = () if grid is None else (grid.bits, grid.scale, grid.zero_point)
        given = self._names.get(name, name)
        self._index[name] = self._file.activation(given, self._shapes[name], *quantized)
        return self._index[name]

    def _step(self, step: Step) -> None:
        shapes = [self._shapes[name] for name in step.inputs]
        wanted = self._program.tensors[step.output]
        self._shapes[step.output] = validation.check(step, shapes, wanted)
        inputs = [self._index[name] for name in step.inputs]
        inputs = self._with_constants(step, inputs)
        self._operator(step.operator, inputs, self._activation(step.output), shapes)

    def _operator(
        self, operator: Operator, inputs: list[int], output: int, shapes: list[tuple[int, ...]]
    ) -> None:
        row = ROWS[operator.kind]
        version = row.version(Use(operator, tuple(shapes)))
        self._file.require(row.runtime(version))
        self._file.operator(
            operator.kind, version, inputs, [output], row.options, row.values(operator)
        )

    def _with_constants(self, step: Step, inputs: list[int]) -> list[int]:
        """The inputs of a step's operator, with its constants in their places."""
        operator, file = step.operator, self._file
        if operator.kernel is not None:
            inputs = self._kernel(step, inputs)
        if "constant" in operator.attributes:
            numbers, grid = constant(operator)
            stored = np.atleast_1d(numbers.astype(np.int8 if grid.bits == 8 else np.int16))
            name = f"{step.name}/constant"
            index = file.constant(name, stored, grid.scale, zero_point=grid.zero_point)
            inputs = [*inputs, index]
        rest: Mapping[str, np.ndarray] = ROWS[operator.kind].constants(operator)
        if operator.kind == "RESHAPE":
            rest = {"shape": self._target(step.output)}
        return [*inputs, *(file.constant(f"{step.name}/{n}", v) for n, v in rest.items())]

    def _target(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        return np.asarray([-1, *shape[1:]] if self._open else shape, np.int32)

    def _kernel(self, step: Step, inputs: list[int]) -> list[int]:
        """Input, kernel and bias; a TRANSPOSE_CONV has the shape of its output in front."""
        operator, file = step.operator, self._file
        layout, source = LAYOUTS[operator.kind], operator.inputs[0]
        if source is None:
            raise ExportError(f"Layer '{step.layer}': {operator.kind} reads a float tensor.")
        scale = np.asarray(operator.kernel_scale, np.float32)
        kernel = file.constant(
            f"{step.name}/kernel",
            layout.to_file(np.asarray(operator.kernel, np.int8)),
            scale,
            axis=layout.axis,
            bits=operator.kernel_storage_bits or 0,
        )
        # 16-bit activations accumulate in 64 bits, and their kernels read a 64-bit bias.
        wide = np.int64 if source.bits > 8 else np.int32
        # TRANSPOSE_CONV fuses an activation only beside a bias, and XNNPACK takes it so.
        numbers = np.zeros(len(scale)) if operator.bias is None else operator.bias
        step_size = np.float32(source.scale) * scale
        bias = file.constant(f"{step.name}/bias", np.asarray(numbers, wide), step_size)
        if operator.kind != "TRANSPOSE_CONV":
            return [*inputs, kernel, bias]
        shape = np.asarray(self._shapes[step.output], np.int32)
        return [file.constant(f"{step.name}/output_shape", shape), kernel, *inputs, bias]

    def _island(self, island: Island) -> None:
        """Steps in float: converted by TensorFlow and copied in, between DEQUANTIZE operators."""
        inputs = [self._real(name) for name in island.inputs]
        batches = [self._shapes[name][0] for name in island.inputs]
        found = islands.splice(self._file, self._program, island, inputs, batches, self._open)
        for name, index in found.items():
            self._index[name] = self._reals[name] = index
            self._shapes[name] = self._file.shape(index)
            validation.check_island(island, self._program.tensors[name], self._shapes[name])
            self._file.rename(index, self._names.get(name, name))

    def _real(self, name: str) -> int:
        """The float values of a tensor, for all who read them."""
        grid = self._program.tensors[name].quantization
        if grid is None:
            return self._index[name]
        if name not in self._reals:
            shape = self._shapes[name]
            self._reals[name] = self._file.activation(f"{name}/float", shape)
            operator = Operator("DEQUANTIZE", (grid,), None)
            self._operator(operator, [self._index[name]], self._reals[name], [shape])
        return self._reals[name]


def _names(program: Program, float_io: bool) -> dict[str, str]:
    """The names in the file of program tensors that have another there.

    An output has its Keras name, unless that is the name of another of the program's tensors. With
    float inputs and outputs those carry the Keras names, and the integers behind them one of
    their own.
    """
    names = dict(_border_names(program))
    if not float_io:
        return names
    quantized = [n for n in names if program.tensors[n].quantization is not None]
    for name in quantized:
        free = f"{names[name]}_quantized"
        while free in program.tensors or free in names.values():
            free += "_"
        names[name] = free
    return names


def _border_names(program: Program) -> Iterator[tuple[str, str]]:
    taken: set[str] = set()
    named: set[str] = set()
    pairs = [
        *zip(program.inputs, program.input_names, strict=True),
        *zip(program.outputs, program.output_names, strict=True),
    ]
    for name, given in pairs:
        free = given == name or given not in program.tensors
        if free and given not in taken and name not in named:
            taken.add(given)
            named.add(name)
            yield name, given
