"""A program's steps in an order of execution, those in float gathered into *islands*.

Adjacent float steps are one island, because every border of an island costs conversions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rewriter.errors import ExportError
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

    Raises:
      ExportError: steps wait for each other.
    """
    waiting, known = list(program.steps), set(program.inputs)
    while waiting:
        before = waiting
        for kind in (False, True):
            made = []
            for step in waiting:
                if (step.operator.kind == "FLOAT") == kind and known.issuperset(step.inputs):
                    made.append(step)
                    known.add(step.output)
            waiting = [step for step in waiting if step.output not in known]
            yield from _islands(program, made) if kind else made
        if len(waiting) == len(before):
            raise ExportError(
                f"Layer '{waiting[0].layer}': step '{waiting[0].name}' reads tensors that no step "
                f"makes: {sorted(set(waiting[0].inputs) - known)}. Please report this model."
            )


def _islands(program: Program, steps: Sequence[Step]) -> Iterator[Island]:
    """Steps that are connected with each other, as one island each."""
    group: dict[str, list[Step]] = {}  # the connected ones, by the output of each
    for step in steps:
        own = [step]
        for joined in {id(group[n]): group[n] for n in step.inputs if n in group}.values():
            own += joined
        group.update((member.output, own) for member in own)
    for own in {id(found): found for found in group.values()}.values():
        made = {step.output for step in own}
        members = [step for step in steps if step.output in made]
        read = dict.fromkeys(n for step in members for n in step.inputs if n not in made)
        wanted = {n for s in program.steps if s.output not in made for n in s.inputs}
        wanted.update(program.outputs)
        outputs = [step.output for step in members if step.output in wanted]
        yield Island(tuple(members), tuple(read), tuple(outputs))


def inside(program: Program) -> set[str]:
    """The tensors inside islands, which the file does not hold as the program has them."""
    found = [part for part in schedule(program) if isinstance(part, Island)]
    made = {step.output for island in found for step in island.steps}
    return made.difference(*(island.outputs for island in found))
