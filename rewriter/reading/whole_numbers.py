"""Which tensors of a graph a program carries as whole numbers: places, classes, words.

Numbers that something finds are whole, and so are those that something looks up by, as far as they
come from an input or only change their places. What else is done with such numbers has no integer
form, and neither have those that nothing looks up by: the input of a model whose numbers are cast
to float is on a grid.
"""

from __future__ import annotations

from rewriter.grid import WHOLE
from rewriter.reading.graph import Call, Graph, Ref
from rewriter.reading.operations import LOOKS_UP, PLACES, Operation, is_floating
from rewriter.reading.roles import Input, Opaque


def settle(graph: Graph) -> None:
    """Set ``graph.whole``, and take the roles of operations on such tensors that have none."""
    wanted = _wanted(graph)
    readers = graph.consumers()
    whole: set[Ref] = set()
    for index, call in enumerate(graph.calls):
        made = [Ref(index, i) for i in range(len(call.dtypes))]
        numbers = [ref for ref, dtype in zip(made, call.dtypes, strict=True) if dtype in WHOLE]
        role = call.role
        if isinstance(role, Operation):
            given = whole.issuperset(role.operands)
            if role.name in PLACES or (_moves(call) and given):
                whole.update(numbers)
                continue
            if given if role.name in LOOKS_UP else not (_moves(call) or whole & {*role.operands}):
                continue
            call.role, call.closed = Opaque(), _of(role)
        elif isinstance(role, Input) and _only_looked_up(graph, made[0], readers):
            numbers = made  # of a float type: what reads them cuts their fractions off
        whole.update(wanted.intersection(numbers))
    graph.whole = frozenset(whole)


def _of(role: Operation) -> str:
    """Why an operation has no integer form."""
    if role.name in LOOKS_UP:
        return (
            "it looks rows up by computed numbers, which a file has in float. Look them up "
            "by an input, or by what an argmax finds"
        )
    return (
        "it makes real numbers of whole ones, which a file only finds, moves and looks rows up by. "
        "Compute it from the file's outputs, or before its inputs"
    )


def _wanted(graph: Graph) -> set[Ref]:
    """What is looked up by, with what that is made of where numbers only change their places."""
    wanted: set[Ref] = set()
    for index in reversed(range(len(graph.calls))):
        call = graph.calls[index]
        if not isinstance(call.role, Operation):
            continue
        moved = _moves(call) and any(Ref(index, i) in wanted for i in range(len(call.dtypes)))
        if call.role.name in LOOKS_UP or moved:
            wanted.update(call.role.operands)
    return wanted


def _moves(call: Call) -> bool:
    """Whether an operation gives whole numbers other places, or another type."""
    found = isinstance(call.role, Operation) and call.role.name not in PLACES
    return found and set(call.dtypes) <= set(WHOLE)


def _only_looked_up(graph: Graph, ref: Ref, readers: dict[Ref, list[int]]) -> bool:
    """Whether numbers of a float type only say which rows are meant, or what is masked."""
    calls = [graph.calls[index] for index in readers.get(ref, ())]
    roles = [call.role for call in calls if set(call.dtypes) != {"bool"}]
    named = [role.name for role in roles if isinstance(role, Operation)]
    inner = bool(roles) and ref not in graph.output_refs()
    floating = is_floating(graph.calls[ref.call].dtypes[ref.index])
    return inner and floating and len(named) == len(roles) and LOOKS_UP.issuperset(named)
