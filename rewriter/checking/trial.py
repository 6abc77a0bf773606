"""A written file is loaded once before anybody gets it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rewriter.errors import ExportError
from rewriter.litert import file_model
from rewriter.program import Program


def load(path: Path, program: Program) -> None:
    """Let LiteRT's default kernels prepare a file.

    Args:
      path: the file.
      program: what it was written from, to name the Keras layer in an error.

    Raises:
      ExportError: LiteRT refuses the file.
    """
    # Here: who only lowers or folds a model need not have the interpreter.
    from rewriter.checking.worker import Interpreter

    try:
        # One thread: it computes nothing.
        interpreter: Any = Interpreter(model_path=str(path), num_threads=1)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        where = _where(str(error), path, program)
        raise ExportError(f"{where}: LiteRT refuses the file: {error}") from error


def _where(complaint: str, path: Path, program: Program) -> str:
    """The Keras layer of the operator that LiteRT names by its number."""
    numbered = re.search(r"[Nn]ode number (\d+)", complaint)
    file = file_model.from_bytes(path.read_bytes())
    layers = {step.output: step.layer for step in program.steps}
    layers |= {
        given: layers[name]
        for name, given in zip(program.outputs, program.output_names, strict=True)
        if name in layers
    }
    if numbered is not None and int(numbered[1]) < len(file.operators):
        for index in file.operators[int(numbered[1])].outputs:
            name = file.tensors[index].name
            if name in layers:
                return f"Layer '{layers[name]}'"
    return "The model"
