"""Layers that stay in float: converted by TensorFlow's converter alone, and copied into the file.

Adjacent float steps are one *island*. The converter sees an island's function and nothing of what
stands around it, so it can neither move nor quantize that; and since it is not asked to optimize,
it leaves the island in float.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
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
from rewriter.program import Program, Step


@dataclasses.dataclass(frozen=True, eq=False)
class Island:
    """Float steps that are converted together.

    Attributes:
      steps: in topological order.
      inputs: the tensors that they read and do not make.
      outputs: the tensors that others read, or that the program returns.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def where(self) -> str:
        """The Keras layers, for messages."""
        layers = list(dict.fromkeys(step.layer for step in self.steps))
        return f"Layer{'s' * (len(layers) > 1)} {', '.join(map(repr, layers))}"


def schedule(program: Program) -> Iterator[Step | Island]:
    """The program's steps in an order of execution, with float steps gathered into islands.

    All integer steps that can be computed come first, then all float steps that can be computed
    from them: so no island waits for a tensor that is computed from another of its own.
    """
    waiting = list(program.steps)
    known = set(program.inputs)
    while waiting:
        ready: list[Step] = []
        for kind in (False, True):
            made, rest = [], []
            for step in waiting:
                if (step.operator.kind == "FLOAT") == kind and known.issuperset(step.inputs):
                    made.append(step)
                    known.add(step.output)
                else:
                    rest.append(step)
            waiting = rest
            if kind:
                yield from _islands(program, made)
            else:
                yield from made
            ready += made
        if not ready:
            raise ExportError(
                f"Layer '{waiting[0].layer}': step '{waiting[0].name}' reads tensors that no step "
                f"makes: {sorted(set(waiting[0].inputs) - known)}. Please report this model."
            )


def _islands(program: Program, steps: Sequence[Step]) -> Iterator[Island]:
    """Steps that are connected with each other, as one island each."""
    group: dict[str, list[Step]] = {}
    for step in steps:
        own = [step]
        for joined in {id(group[n]): group[n] for n in step.inputs if n in group}.values():
            own = joined + own
            for member in joined:
                group[member.output] = own
        for member in own:
            group[member.output] = own
    readers = collections.defaultdict(set)
    for step in program.steps:
        for name in step.inputs:
            readers[name].add(step.name)
    order = {step.name: place for place, step in enumerate(steps)}
    for own in {id(found): found for found in group.values()}.values():
        members = sorted(own, key=lambda step: order[step.name])
        made = {step.output for step in members}
        inside = {step.name for step in members}
        read = dict.fromkeys(n for step in members for n in step.inputs if n not in made)
        outputs = [
            step.output
            for step in members
            if step.output in program.outputs or readers[step.output] - inside
        ]
        yield Island(tuple(members), tuple(read), tuple(outputs))


def compute(island: Island, values: Sequence[Any]) -> list[Any]:
    """The outputs of an island, real-valued.

    Steps that are the outputs of one layer share its computation.
    """
    tensors = dict(zip(island.inputs, values, strict=True))
    found: dict[Any, Any] = {}
    for step in island.steps:
        operator = step.operator
        arguments = [tensors[name] for name in step.inputs]
        key = (operator.function, step.inputs)
        if key not in found:
            found[key] = _called(step, arguments)
        tensors[step.output] = operator.part(found[key])
    return [tensors[name] for name in island.outputs]


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
    shapes = [
        (None if open_batch else batch, *program.tensors[name].shape[1:])
        for name, batch in zip(island.inputs, batches, strict=True)
    ]
    model = flatbuffer.unpack(_convert(island, shapes))
    _refuse_others(island, model)
    main = model.subgraphs[0]
    copy = _Copy(file, model, island.steps[0].name)
    named = {flatbuffer.text(main.tensors[i].name): int(i) for i in main.inputs}
    for place, index in enumerate(inputs):
        found = named.get(f"x{place:04d}")
        if found is not None:  # the converter may drop an input that nothing reads
            copy.tensors[found] = index
    for index, tensor in enumerate(main.tensors):
        if index not in copy.tensors:
            copy.tensors[index] = copy.tensor(tensor)
    for operator in main.operators:
        file.append(copy.operator(operator))
    for graph in model.subgraphs[1:]:
        for tensor in graph.tensors:
            tensor.buffer = copy.buffer(tensor.buffer)
        for operator in graph.operators:
            copy.relink(operator)
        file.subgraphs.append(graph)
    file.require(_runtime(model))
    places = [copy.tensors[int(index)] for index in main.outputs]
    return dict(zip(island.outputs, places, strict=True))


def _refuse_others(island: Island, model: Any) -> None:
    """An island is built in operators that come with LiteRT, and keeps no state."""
    state = ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "CUSTOM")
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = flatbuffer.kind_of(model, operator)
            if kind in state:
                raise ExportError(
                    f"{island.where}: the TensorFlow Lite converter makes {kind} of it, which a "
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
      tensors: the file's tensor of each tensor of the main graph.
    """

    def __init__(self, file: FileBuilder, model: Any, scope: str):
        self._file, self._model, self._scope = file, model, scope
        self._buffers: dict[int, int] = {}
        self._first = len(file.subgraphs)  # the main graph stays the first
        self.tensors: dict[int, int] = {}

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
        tensor.name = f"{self._scope}/{flatbuffer.text(tensor.name)}"
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


def _convert(island: Island, shapes: Sequence[Sequence[int | None]]) -> bytes:
    specs = [tf.TensorSpec(shape, tf.float32, f"x{i:04d}") for i, shape in enumerate(shapes)]

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
            raise ExportError(f"{island.where}: {_reasons(error, log())}") from error


def _reasons(error: Exception, log: str) -> str:
    """The converter's complaints without its stack traces."""
    found = dict.fromkeys(re.findall(r"error: (?:loc\(.*?\): )?(?!loc\()(.+)", f"{error}\n{log}"))
    reasons = "; ".join(found) or str(error).split("<unknown>:0: error:")[0].strip()
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
