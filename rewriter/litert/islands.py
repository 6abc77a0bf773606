"""Layers that stay in float: converted by TensorFlow's converter alone, and copied into the file.

The converter sees the function of an island (:mod:`rewriter.litert.partition`) and nothing of what
stands around it, so it can neither move nor quantize that; and since it is not asked to optimize,
it leaves the island in float.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.errors import ExportError
from rewriter.litert import flatbuffer
from rewriter.litert.file_builder import FileBuilder
from rewriter.litert.partition import Island
from rewriter.program import Program, Quantization, Step


def compute(island: Island, values: Sequence[Any]) -> list[Any]:
    """The outputs of an island, float32 or whole numbers; outputs of one layer share its call.

    Between the steps tensors keep the types that the layers gave them.
    """
    tensors = dict(zip(island.inputs, values, strict=True))
    found: dict[Any, Any] = {}
    for step in island.steps:
        key = (step.operator.function, step.inputs)
        if key not in found:
            found[key] = _called(step, [tensors[name] for name in step.inputs])
        tensors[step.output] = step.operator.part(found[key])
    grids = {step.output: step.operator.output for step in island.steps}
    return [tf.cast(tensors[name], _type(grids[name])) for name in island.outputs]


def _type(grid: Quantization | None) -> tf.DType:
    return tf.float32 if grid is None else {32: tf.int32, 64: tf.int64}[grid.bits]


def _called(step: Step, arguments: list[Any]) -> Any:
    if step.operator.function is None:
        raise ExportError(f"Layer '{step.layer}': step '{step.name}' has no function.")
    try:
        return step.operator.function(*arguments)
    except Exception as error:  # whatever a user's layer raises
        raise ExportError(
            f"Layer '{step.layer}': it cannot be traced for the export: {error}"
        ) from error


def splice(
    file: FileBuilder,
    program: Program,
    island: Island,
    inputs: Sequence[int],
    batches: Sequence[int],
    open_batch: bool,
) -> dict[str, int]:
    """Convert an island and copy its operators, tensors, buffers and subgraphs into a file.

    Args:
      file: to add to.
      program: which the island is of.
      island: what to convert.
      inputs: the file's float tensors that it reads.
      batches: the first size of each.
      open_batch: whether that may be changed by the application.

    Returns:
      The file's tensor of each of the island's outputs.

    Raises:
      ExportError: the converter cannot convert it; the message names the Keras layers.
    """
    model = flatbuffer.unpack(_convert(program, island, batches, open_batch))
    _refuse_others(island, model)
    main, copy = model.subgraphs[0], _Copy(file, model)
    # By name: the converter may drop an input that nothing reads.
    given = {f"x{place:04d}": index for place, index in enumerate(inputs)}
    computed = {int(i) for operator in main.operators for i in operator.outputs}
    for tensor in main.tensors:
        name = flatbuffer.text(tensor.name)
        tensor.name = f"{island.steps[0].name}/{name}"
        copy.tensors.append(given[name] if name in given else copy.tensor(tensor))
    for operator in main.operators:
        file.append(copy.operator(operator))
    for graph in model.subgraphs[1:]:
        for tensor in graph.tensors:
            tensor.buffer = copy.buffer(tensor.buffer)
        for operator in graph.operators:
            copy.relink(operator)
    file.subgraphs += model.subgraphs[1:]
    file.require(_runtime(model))
    found = {}
    for name, place in zip(island.outputs, map(int, main.outputs), strict=True):
        found[name] = copy.tensors[place]
        if place not in computed:  # an input, a constant, or what another output is, too
            bits = getattr(program.tensors[name].quantization, "bits", 0)
            found[name] = _copied(file, found[name], name, open_batch, bits)
        computed.discard(place)
    return found


def _copied(file: FileBuilder, index: int, name: str, open_batch: bool, bits: int) -> int:
    """A tensor of its own with the values of another."""
    shape = file.shape(index)
    sizes = np.asarray([-1, *shape[1:]] if open_batch else shape, np.int32)
    copied = file.activation(name, shape, bits)
    file.operator("RESHAPE", 1, [index, file.constant(f"{name}/shape", sizes)], [copied])
    return copied


def _refuse_others(island: Island, model: Any) -> None:
    """An island is built in operators that come with LiteRT, and keeps no state."""
    state = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "CUSTOM")
    for graph in model.subgraphs:
        kinds = [flatbuffer.kind_of(model, operator) for operator in graph.operators]
        found = [kind for kind in kinds if kind in state]
        # A variable tensor is not reset from one sample to the next.
        found += ["a variable"] * any(tensor.isVariable for tensor in graph.tensors)
        if found:
            raise ExportError(
                f"{island.where}: the TensorFlow Lite converter makes {found[0]} of it, which a "
                "file of plain operators cannot hold. Replace the layer."
            )


def _runtime(model: Any) -> str:
    for entry in model.metadata or ():
        if flatbuffer.text(entry.name) == "min_runtime_version":
            data = np.asarray(model.buffers[entry.buffer].data, np.uint8).tobytes()
            return data.rstrip(b"\0").decode() or "0"
    return "0"


# Fields of options that name a subgraph.
_SUBGRAPHS = (
    *("condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex"),
    *("initSubgraphIndex", "subgraph"),
)


class _Copy:
    """Moves parts of a converted model into a file.

    Attributes:
      tensors: the file's tensor of each tensor of the main graph, as far as they have been moved.
    """

    def __init__(self, file: FileBuilder, model: Any):
        self._file, self._model = file, model
        self._buffers: dict[int, int] = {}
        self._first = len(file.subgraphs)  # the main graph stays the first
        self.tensors: list[int] = []

    def buffer(self, index: int) -> int:
        """The file's buffer of a buffer; what holds nothing shares the first."""
        data = self._model.buffers[index].data
        if data is None or len(data) == 0:
            return 0
        if index not in self._buffers:
            self._buffers[index] = self._file.buffer(np.asarray(data, np.uint8))
        return self._buffers[index]

    def tensor(self, tensor: Any) -> int:
        tensor.buffer = self.buffer(tensor.buffer)
        return self._file.tensor(tensor)

    def operator(self, operator: Any) -> Any:
        """An operator of the main graph, on the file's tensors."""
        self.relink(operator)
        for field in ("inputs", "outputs", "intermediates"):
            places = getattr(operator, field)
            if places is not None:
                moved = [self.tensors[int(i)] if i >= 0 else -1 for i in places]
                setattr(operator, field, np.asarray(moved, np.int32))
        return operator

    def relink(self, operator: Any) -> None:
        """Its code and the subgraphs that it names, as they are in the file."""
        code = self._model.operatorCodes[operator.opcodeIndex]
        kind = max(code.builtinCode, code.deprecatedBuiltinCode)
        operator.opcodeIndex = self._file.code(kind, code.version, code.customCode)
        for field in _SUBGRAPHS:
            if hasattr(operator.builtinOptions, field):
                named = getattr(operator.builtinOptions, field)
                setattr(operator.builtinOptions, field, named + self._first)


def _convert(program: Program, island: Island, batches: Sequence[int], open_batch: bool) -> bytes:
    specs = [
        tf.TensorSpec(
            (None if open_batch else batch, *program.tensors[name].shape[1:]), name=f"x{i:04d}"
        )
        for i, (name, batch) in enumerate(zip(island.inputs, batches, strict=True))
    ]

    def function(*values: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # A name of its own for every output: the converter merges equal ones otherwise.
        return tuple(tf.identity(value) for value in compute(island, values))

    # Not tf.function, which would look at every node for an order of side effects.
    wrapped = tf.compat.v1.wrap_function(function, specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([wrapped], tf.Module())
    converter.experimental_lower_to_saved_model = False  # saves a trip through the disk
    with quiet() as log:
        try:
            return converter.convert()
        except Exception as error:  # the converter raises many types, all of them final
            reasons = _reasons(error, log())
            raise ExportError(f"{island.where}: {reasons}") from error


# What the converter says of an operation that LiteRT has no operator for; and those that it says
# it of beside others, which are the cause: inputs, and conversions, of strings.
_LACKS = re.compile(r"'(tf\.\w+)' op is neither a custom op nor a flex op")
_BESIDE = ("tf.Placeholder", "tf.Cast")


def _reasons(error: Exception, log: str) -> str:
    """The converter's complaints without its stack traces."""
    found = dict.fromkeys(re.findall(r"error: (?:loc\(.*?\): )?(?!loc\()(.+)", f"{error}\n{log}"))
    lacks = [name.group(1) for each in found if (name := _LACKS.match(each))]
    lacks = [name for name in lacks if name not in _BESIDE] or lacks
    if lacks:
        return (
            f"LiteRT has no operator for {', '.join(lacks)}, in float neither. Compute it before "
            "the file's inputs or from its outputs: rewrite the model without that layer"
        )
    reasons = "; ".join(found) or str(error).split("<unknown>:0: error:")[0].strip()
    if "TensorList" in reasons:  # it wants to know how large a list of all steps will be
        reasons = "a loop over steps needs a fixed batch_size, or unroll=True in the layer"
    return f"the TensorFlow Lite converter failed: {reasons[:2000]}"


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Keep the converter's notes off the terminal; yields a function that reads them so far."""
    sys.stderr.flush()
    level = logging.getLogger("tensorflow").level
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = os.dup(2)
        os.dup2(sink.fileno(), 2)
        logging.getLogger("tensorflow").setLevel(logging.ERROR)

        def log() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        try:
            yield log
        finally:
            logging.getLogger("tensorflow").setLevel(level)
            os.dup2(saved, 2)
            os.close(saved)
