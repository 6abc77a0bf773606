"""The operators of the file: how many, what their constants take, and how long they take."""

from __future__ import annotations

import dataclasses

from rewriter.checking import timing
from rewriter.errors import VerificationError
from rewriter.litert import flatbuffer


@dataclasses.dataclass(frozen=True)
class OperatorRow:
    """One operator of the file.

    Attributes:
      kind: as in LiteRT's schema.
      tensor: the name of its first output.
      bytes: of its constants; what several operators read counts for the first.
      microseconds: by itself, the median; None where it was not measured.
    """

    kind: str
    tensor: str
    bytes: int
    microseconds: float | None


@dataclasses.dataclass(frozen=True)
class KindRow:
    """All operators of one kind: their number, and the sums of what :class:`OperatorRow` has."""

    kind: str
    count: int
    bytes: int
    microseconds: float | None


@dataclasses.dataclass(frozen=True)
class Operators:
    """What the file's operators are.

    Attributes:
      rows: in the file's order.
      other_bytes: of the file, what is no constant: names, shapes, scales, the structure.
      whole_microseconds: one invocation of the whole file; None where it was not measured.
      reasons: why an operator, or the whole file, was not measured.
    """

    rows: tuple[OperatorRow, ...]
    other_bytes: int
    whole_microseconds: float | None
    reasons: tuple[str, ...]

    @property
    def kinds(self) -> tuple[KindRow, ...]:
        """By kind, what takes longest first."""
        made = []
        for kind in dict.fromkeys(row.kind for row in self.rows):
            own = [row for row in self.rows if row.kind == kind]
            times = [row.microseconds for row in own if row.microseconds is not None]
            total = sum(times) if len(times) == len(own) else None
            made.append(KindRow(kind, len(own), sum(row.bytes for row in own), total))
        return tuple(sorted(made, key=lambda row: (-(row.microseconds or 0), -row.bytes)))


def of_file(content: bytes, kernels: str, measured: bool) -> Operators:
    """The operators of a file.

    Args:
      content: the file.
      kernels: those of LiteRT that are timed.
      measured: whether they are timed.
    """
    model = flatbuffer.unpack(content)
    graph = model.subgraphs[0]
    times: timing.Times | None = None
    reasons: tuple[str, ...] = () if measured else ("Times were not asked for.",)
    if measured:
        try:
            times = timing.measure(content, kernels)
            reasons = tuple(dict.fromkeys(times.reasons.values()))
        except VerificationError as error:
            reasons = (str(error),)
    counted: set[int] = {0}  # the empty buffer
    made = []
    for place, operator in enumerate(graph.operators):
        size = 0
        for index in operator.inputs:
            buffer = graph.tensors[index].buffer if index >= 0 else 0
            if buffer not in counted:
                counted.add(buffer)
                data = model.buffers[buffer].data
                size += 0 if data is None else len(data)
        taken = None if times is None else times.operators[place]
        made.append(
            OperatorRow(
                flatbuffer.kind_of(model, operator),
                flatbuffer.text(graph.tensors[operator.outputs[0]].name),
                size,
                None if taken is None else 1e6 * taken,
            )
        )
    return Operators(
        tuple(made),
        len(content) - sum(row.bytes for row in made),
        None if times is None else 1e6 * times.whole,
        reasons,
    )
