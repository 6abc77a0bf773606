"""A file's inputs and outputs: their names, and their types where these are not the program's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewriter.errors import ExportError
from rewriter.grid import BITS
from rewriter.program import Program, Quantization

FLOAT = "float32"
TYPES = ("int8", "uint8", FLOAT)
_SHIFT = 2 ** (BITS - 1)  # from int8 to uint8


def types(
    program: Program, float_io: bool, input_type: str | None, output_type: str | None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The inputs, and the outputs, that are converted inside the file, and what they are outside.

    Args:
      program: what is written.
      float_io: all of them in float.
      input_type, output_type: one of :data:`TYPES`, or None for what each input is in the Keras
        model, and the program's own integers.

    Raises:
      ExportError: if an input or output cannot have such a type.
      ValueError: for an unknown type, or one beside ``float_io``.
    """
    for name, given in (("input_type", input_type), ("output_type", output_type)):
        if given is not None and (given not in TYPES or float_io):
            beside = " beside float_io=True" if float_io else ""
            raise ValueError(f"{name} must be one of {TYPES} or None. Received: {given!r}{beside}.")
    if float_io:
        input_type = output_type = FLOAT
    unsigned = program.unsigned if input_type is None else ()
    inputs = {name: "uint8" if name in unsigned else input_type for name in program.inputs}
    outputs = dict.fromkeys(program.outputs, output_type)
    return _converted(program, inputs), _converted(program, outputs)


def _converted(program: Program, wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Those of another type than the program has."""
    found: dict[str, str] = {}
    for name, kind in wanted.items():
        grid = program.tensors[name].quantization
        if kind is None or grid is None or grid.whole:
            continue  # what a file has in float, or as whole numbers, stays so
        if kind != FLOAT and grid.bits != BITS:
            raise ExportError(
                f"The tensor {name!r} has {grid.bits} bits, and cannot be of {kind} at the border "
                "of the file. Leave the type out, or choose float32."
            )
        if kind != "int8":
            found[name] = kind
    return found


def tensor(kind: str, grid: Quantization) -> dict[str, Any]:
    """The tensor outside of the border, as :meth:`FileBuilder.activation` takes it."""
    if kind == FLOAT:
        return {}
    return {
        "bits": grid.bits,
        "scale": grid.scale,
        "zero_point": grid.zero_point + _SHIFT,
        "unsigned": True,
    }


def names(program: Program) -> Iterator[tuple[str, str]]:
    """Program tensors and their names in the file, where those are of inputs and outputs.

    They have their Keras names, unless that is the name of another of the program's tensors.
    """
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
