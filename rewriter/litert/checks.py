"""Checks of a converted file: it must be what the program says."""

from __future__ import annotations

from rewriter.errors import ExportError
from rewriter.litert import flatbuffer
from rewriter.litert.flatbuffer import FileModel, FileOperator
from rewriter.litert.matching import Matcher, border_outputs
from rewriter.program import Program

CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


def check_steps(
    program: Program,
    file: FileModel,
    matcher: Matcher,
    indexes: dict[str, int],
    operators: dict[int, FileOperator],
) -> None:
    """Kernels and outputs must be found, and nothing meant as integers be computed in float.

    Args:
      program: what was converted.
      file: what came of it.
      matcher: what has matched the two.
      indexes: the file's tensor of every program tensor found.
      operators: the file's operator of every step found.

    Raises:
      ExportError: naming the Keras layer.
    """
    for position, step in enumerate(program.steps):
        kind, op = step.operator.kind, operators.get(position)
        if op is not None and op.kind == "QUANTIZE" and kind not in ("QUANTIZE", "FLOAT"):
            raise ExportError(
                f"Layer '{step.layer}': the converter left step '{step.name}' ({kind}) in float, "
                f"and quantizes its result '{file.tensors[op.outputs[0]].name}'. "
                "Please report this model."
            )
        needed = step.operator.kernel is not None or step.output in program.outputs
        if step.output not in indexes and step.operator.output is not None and needed:
            names = [
                f"{t.name} ({t.dtype}, scale {t.scale.tolist()}, zero point "
                f"{t.zero_point.tolist()})"
                for t in file.tensors
                if matcher.owner.get(t.index) == position
            ]
            raise ExportError(
                f"Layer '{step.layer}': step '{step.name}' ({kind}) is not in the "
                f"converted file as one integer operator with {step.operator.output}. "
                f"Found in its place: {'; '.join(names) or 'nothing'}."
            )


def check_outputs(program: Program, file: FileModel, indexes: dict[str, int]) -> None:
    """The outputs must come in the program's order; those not found before enter ``indexes``.

    Raises:
      ExportError: they do not.
    """
    found = border_outputs(program, file)
    for i, (name, index) in enumerate(zip(program.outputs, found, strict=True)):
        if indexes.setdefault(name, index) != index:
            raise ExportError(
                f"Output {i} ('{program.output_names[i]}') of the converted file is tensor "
                f"'{file.tensors[index].name}', expected "
                f"'{file.tensors[indexes[name]].name}'. Please report this model."
            )


def check_integer(
    program: Program, file: FileModel, matcher: Matcher, operators: dict[int, FileOperator]
) -> None:
    """Nothing in float, and no conversion that is not a step of the program.

    Raises:
      ExportError: naming the Keras layer.
    """
    meant = {
        op.outputs[0]
        for i, op in operators.items()
        if program.steps[i].operator.kind in CONVERSIONS
    }
    for op in flatbuffer.conversions(file):
        if op.outputs[0] not in meant:
            _refuse(file, matcher, op.outputs[0], f"a {op.kind} operator in mid-graph")
    for index in flatbuffer.float_indexes(file):
        _refuse(file, matcher, index, "a floating-point tensor")


def _refuse(file: FileModel, matcher: Matcher, index: int, what: str) -> None:
    step = matcher.nearest(index)
    where = "The model" if step is None else f"Layer '{step.layer}' (step '{step.name}')"
    raise ExportError(
        f"{where} left {what} in the file: '{file.tensors[index].name}'. Allow float layers in "
        "the export to accept it, or report this model."
    )
