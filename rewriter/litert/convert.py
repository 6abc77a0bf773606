"""From a :class:`~rewriter.program.Program` to the bytes of a ``.tflite`` file.

TensorFlow's converter does the lowering; its result is then made exact (see
:mod:`rewriter.litert.patching`) and checked: every quantized tensor of the program must be in the
file with its scale and zero point, and nothing may be computed in float unless it was asked for.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.litert import border, checks, constants, emit_program, flatbuffer, patching, stand_ins
from rewriter.litert.matching import FileMapping, Matcher, file_mapping
from rewriter.litert.nodes import NodeError
from rewriter.program import Program


def convert_program(
    program: Program, *, float_io: bool = False, allow_float: bool = False
) -> tuple[bytes, FileMapping]:
    """Convert a program into a LiteRT file of batch size 1.

    Args:
      program: what to convert.
      float_io: keep float inputs and outputs: a QUANTIZE at the start, a DEQUANTIZE at the end.
      allow_float: accept steps that compute in float.

    Returns:
      The file, and where each of the program's tensors is in it. Tensors carry the program's
      names, inputs and outputs those of the Keras model; the signature is ``serving_default``.

    Raises:
      ExportError: a step is in float and ``allow_float`` is off; the converter failed; or the
        file is not what the program says. The message names the Keras layer.
    """
    floats = sorted({s.layer for s in program.steps if s.operator.kind == "FLOAT"})
    if floats and not allow_float:
        raise ExportError(
            f"Layer '{floats[0]}' has no integer form, and {len(floats)} layer(s) would stay in "
            f"float: {', '.join(floats[:8])}. Replace them, or allow float "
            "layers in the export: export_tflite(..., allow_float=True)."
        )
    barriers = patching.barrier_slopes(program)
    content, scopes = _convert(program, barriers)
    model = flatbuffer.unpack(content)
    border.order_inputs(model, program)
    patching.restore_disguised(model, barriers)
    patching.restore_dequantize(model)
    if not float_io:
        border.strip(
            model,
            [program.tensors[name].quantization for name in program.inputs],
            [program.tensors[name].quantization for name in program.outputs],
        )
    file = flatbuffer.view(model)
    matcher = Matcher(
        program,
        file,
        scopes,
        lambda op, step: constants.kernel_disagreement(model, op, step.operator) is None,
    )
    indexes, operators = matcher.match()
    checks.check_steps(program, file, matcher, indexes, operators)
    checks.check_outputs(program, file, indexes)
    if not allow_float:
        checks.check_integer(program, file, matcher, operators)
    places = {id(op): place for place, op in enumerate(file.operators)}
    placed = [(program.steps[i], op, places[id(op)]) for i, op in operators.items()]
    for step, op, place in placed:
        kind = step.operator.kind
        if op.kind != kind and op.kind == stand_ins.STAND_INS.get(kind):
            stand_ins.restore(model, model.subgraphs[0].operators[place], kind, flatbuffer.schema)
    constants.patch_constants(model, [p for p in placed if p[0].operator.kernel is not None])
    constants.patch_operands(model, [p for p in placed if "constant" in p[0].operator.attributes])
    patching.set_scales(model, program, indexes, file.tensors)
    return _finish(model, program, indexes)


def _convert(program: Program, barriers: Mapping[int, float]) -> tuple[bytes, dict[str, int]]:
    """Run the converter; returns its file (float border) and each scope's step."""
    scopes: dict[str, int] = {}
    with quiet() as log:
        try:
            converter = emit_program.converter(program, barriers, scopes)
        except NodeError as error:  # raised where the node was needed, maybe layers later
            where = _where(str(error), scopes, program)
            raise ExportError(f"{where} could not be emitted: {error}") from error
        try:
            content = converter.convert()
        except Exception as error:  # the converter raises many types, all of them final
            raise ExportError(_explain(error, log(), scopes, program)) from error
    return content, scopes


def _explain(error: Exception, log: str, scopes: dict[str, int], program: Program) -> str:
    """The converter's complaints without its stack traces, and the Keras layer they are about."""
    text = f"{error}\n{log}"
    where = _where(text, scopes, program)
    found = dict.fromkeys(re.findall(r"error: (?:loc\(.*?\): )?(?!loc\()(.+)", text))
    reasons = "; ".join(found) or str(error).split("<unknown>:0: error:")[0].strip()
    return f"{where}: the TensorFlow Lite converter failed: {reasons[:2000]}"


def _where(text: str, scopes: dict[str, int], program: Program) -> str:
    """The Keras layer whose nodes a text names, in quotes or as {{node its_name}}; or the model."""
    named = [
        position
        for scope, position in scopes.items()
        if f'"{scope}/' in text or f"{{{{node {scope}/" in text
    ]
    layers = dict.fromkeys(program.steps[position].layer for position in named)
    return f"Layer '{', '.join(layers)}'" if len(layers) == 1 else "The model"


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


def _finish(model: Any, program: Program, indexes: dict[str, int]) -> tuple[bytes, FileMapping]:
    """Unused tensors out, names and signature in, and the bytes."""
    graph = model.subgraphs[0]
    for name, index in name_tensors(model, program, indexes).items():
        graph.tensors[index].name = name
    wanted = {name: graph.tensors[index].name for name, index in indexes.items()}
    patching.drop_unused(model)
    border.set_signature(model, list(program.input_names), list(program.output_names))
    file = flatbuffer.view(model)
    by_name = {t.name: t.index for t in file.tensors}
    final = {name: by_name[found] for name, found in wanted.items()}
    return flatbuffer.pack(model), file_mapping(program, file, final)


def name_tensors(model: Any, program: Program, indexes: dict[str, int]) -> dict[str, int]:
    """Unique names that :func:`~rewriter.litert.matching.mapping_from_names` can read.

    An input or output has its Keras name, unless that is the name of another of the program's
    tensors; any other tensor the program's, or several joined by ``;`` where one tensor of the
    file stands for several. What is not in the program keeps its name.
    """
    graph = model.subgraphs[0]
    names: dict[int, list[str]] = collections.defaultdict(list)
    for places, given, own in (
        (graph.inputs, program.input_names, program.inputs),
        (graph.outputs, program.output_names, program.outputs),
    ):
        for index, name, tensor in zip(places, given, own, strict=True):
            free = name == tensor or name not in program.tensors
            names[int(index)] += [name] if free and not names[int(index)] else []
    by_position = {*program.inputs, *program.outputs}
    for tensor, index in indexes.items():
        if tensor not in by_position or not names[index]:
            names[index].append(tensor)
    taken: dict[str, int] = {}
    for index in sorted(range(len(graph.tensors)), key=lambda i: i not in names):
        own_name = ";".join(dict.fromkeys(names.get(index, ())))
        name = own_name or flatbuffer.text(graph.tensors[index].name)
        if not own_name and not program.tensors.keys().isdisjoint(name.split(";")):
            name = f"constant/{name.replace(';', '_')}"
        unique, number = name, 0
        while unique in taken:
            number += 1
            unique = f"{name}_{number}"
        taken[unique] = index
    return taken
