"""Which operator it is that LiteRT crashes on."""

from __future__ import annotations

import numpy as np

from rewriter.checking import child
from rewriter.errors import VerificationError
from rewriter.litert import flatbuffer

Sample = list[tuple[int, np.ndarray]]


class InterpreterCrash(VerificationError):
    """LiteRT ended its process, or did not come to an end.

    Attributes:
      kind: of the operator, as in LiteRT's schema; ``None`` if it cannot be told.
      tensor: the name, in the file, of the tensor that it writes; ``None`` likewise.
    """

    def __init__(self, message: str, kind: str | None = None, tensor: str | None = None):
        super().__init__(message)
        self.kind, self.tensor = kind, tensor


def explained(
    died: child.Died, content: bytes, kernels: str, sample: Sample | None
) -> InterpreterCrash:
    """The error that tells of a crash, with the operator.

    Args:
      died: what happened to the child process.
      content: the file.
      kernels: those that ran it.
      sample: what it was run on, as many samples as the file takes; ``None`` if it crashed while
        the file was loaded.
    """
    what = f"LiteRT's {kernels} kernels crash ({died.how})"
    when = "when they load this file" if sample is None else "when they run this file"
    said = f" LiteRT said: {died.text}" if died.text else ""
    if died.how.startswith("no answer"):  # to look for the operator would take as long, many times
        return InterpreterCrash(f"LiteRT's {kernels} kernels do not finish ({died.how}).{said}")
    operator = _first_to_crash(content, kernels, sample)
    if operator is None:
        return InterpreterCrash(f"{what} {when}.{said}")
    kind, tensor = operator
    return InterpreterCrash(
        f"{what} {when}, in the operator {kind} that writes the tensor {tensor!r}.{said}",
        kind,
        tensor,
    )


def _first_to_crash(content: bytes, kernels: str, sample: Sample | None) -> tuple[str, str] | None:
    """Kind and output of the first operator with which the file crashes, by bisection."""
    model = flatbuffer.unpack(content)
    subgraph = model.subgraphs[0]
    operators, inputs = list(subgraph.operators), list(subgraph.inputs)
    model.signatureDefs = None
    runner = child.Child()

    def crashes(count: int) -> bool:
        """Whether the first so many operators crash."""
        subgraph.operators = operators[:count]
        subgraph.outputs = np.unique(np.concatenate([op.outputs for op in operators[:count]]))
        try:
            runner.request(("load", flatbuffer.pack(model), kernels, None))
            if sample is not None:
                given = [(index, values) for index, values in sample if index in inputs]
                runner.request(("run", given, {}, len(sample[0][1])))
        except child.Died:
            return True
        except VerificationError:  # an error of LiteRT's, not a crash
            return False
        return False

    try:
        fine, crashing = 0, len(operators)
        if not crashes(crashing):
            return None  # not twice the same
        while crashing - fine > 1:
            middle = (fine + crashing) // 2
            fine, crashing = (fine, middle) if crashes(middle) else (middle, crashing)
    finally:
        runner.close()
    op = operators[crashing - 1]
    return flatbuffer.kind_of(model, op), flatbuffer.text(subgraph.tensors[op.outputs[0]].name)
