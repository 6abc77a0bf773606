"""The graph in a file, as one list of operators: calls of its functions are followed.

Nothing is handed to TensorFlow here. Every operator that a result waits for must be one of those
that may stand in a lifted graph, whether its value is used or it only has to run before; and every
one in a function that is called.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewriter.errors import LoadError
from rewriter.keras_compat import private_tensorflow
from rewriter.lifting import operators
from rewriter.lifting.graph import Node, Out

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_MOST = 1_000_000  # operators, and _DEEPEST calls in calls: no model has more
_DEEPEST = 100
_Made = int | list[Out]  # the number of a node, or what a call gave


@dataclasses.dataclass(eq=False)
class _Level:
    """The main graph, or one call of a function.

    Attributes:
      nodes: by name.
      arguments: of the function, by name; None in the main graph, whose tensors have other names.
      prefix: before the names of its nodes.
      made: what became of its nodes so far, by name.
    """

    nodes: Mapping[str, Any]
    arguments: Mapping[str, Out] | None
    prefix: str
    made: dict[str, _Made] = dataclasses.field(default_factory=dict)


class Flat:
    """A graph without calls.

    Args:
      definition: a ``GraphDef``.
      where: what it is, for messages.
      allowed: the operators that may stand in it.
      feeds: names of nodes that are inputs, whatever they are.

    Attributes:
      nodes: in topological order, once :meth:`tensors` has been asked for them.
      called: for each call in the main graph: the name of its function, and its operands.
    """

    def __init__(
        self,
        definition: Any,
        where: str,
        allowed: Iterable[str] = operators.ALLOWED,
        feeds: Iterable[str] = (),
    ):
        self.nodes: list[Node] = []
        self.called: list[tuple[str, list[Out]]] = []
        self._where, self._allowed, self._feeds = where, frozenset(allowed), frozenset(feeds)
        self._library = {f.signature.name: f for f in definition.library.function}
        self._main = _Level({node.name: node for node in definition.node}, None, "")

    def tensors(self, names: Sequence[str]) -> list[Out]:
        """The tensors of these names in the main graph, such as ``"scores:0"``.

        A control input, such as ``"^save/restore_all"``, is followed and gives no tensor.

        Raises:
          LoadError: there is no such node, one is not allowed, or the graph is no graph.
        """
        self._follow(self._main, names, ())
        return [self._tensor(self._main, name) for name in names if not name.startswith("^")]

    def placed(self, name: str) -> int | None:
        """The number of a node of the main graph; None if nothing waited for it."""
        made = self._main.made.get(name)
        return made if isinstance(made, int) else None

    def _follow(self, level: _Level, names: Sequence[str], path: tuple[str, ...]) -> None:
        for name in self._order(level, names):
            node = level.nodes[name]
            if level is self._main and name in self._feeds:
                node = type(node)(name=name, op="Placeholder")
            reads = [text for text in node.input if not text.startswith("^")]
            inputs = [self._tensor(level, text) for text in reads]
            function = self._function(node)
            if function is not None:
                if level is self._main:
                    self.called.append((function.signature.name, inputs))
                level.made[name] = self._call(level, node, function, inputs, path)
                continue
            level.made[name] = len(self.nodes)
            self.nodes.append(Node(level.prefix + name, node.op, node, inputs))
            if len(self.nodes) > _MOST:
                raise self._error(f"it has more than {_MOST:,} operators when its functions are "
                                  "followed")  # fmt: skip

    def _order(self, level: _Level, names: Sequence[str]) -> list[str]:
        """The nodes that are not made yet and that these tensors wait for, in topological order."""
        waits: dict[str, set[str]] = {}
        todo = [name for text in names if (name := self._node(level, text)) is not None]
        while todo:
            name = todo.pop()
            if name in waits or name in level.made:
                continue
            node = level.nodes.get(name)
            if node is None:
                raise self._error(f"it has no operator {level.prefix + name!r}, which is read")
            self._check(level, node)
            fed = level is self._main and name in self._feeds
            before = [self._node(level, text) for text in (() if fed else node.input)]
            waits[name] = {n for n in before if n is not None and n not in level.made}
            todo += waits[name]
        readers: dict[str, list[str]] = collections.defaultdict(list)
        for name, before_it in waits.items():
            for other in before_it:
                readers[other].append(name)
        ready = sorted((name for name, before_it in waits.items() if not before_it), reverse=True)
        order = []
        while ready:
            name = ready.pop()
            order.append(name)
            for reader in readers[name]:
                waits[reader].discard(name)
                if not waits[reader]:
                    ready.append(reader)
        if len(order) < len(waits):
            stuck = next(name for name, left in waits.items() if left)
            raise self._error(f"{level.prefix + stuck!r} waits for its own output")
        return order

    def _check(self, level: _Level, node: Any) -> None:
        if node.op in self._allowed or (level is self._main and node.name in self._feeds):
            return
        if node.op in self._library and node.op not in _CALLS:
            return  # a call, as TensorFlow 1 writes it
        raise LoadError(
            f"{self._where} has the operator {node.op} ({level.prefix + node.name!r}), which is "
            "none of those that only compute values, or is not known here. Export the model "
            "without it, or save it with its layers: model.save('model.keras')."
        )

    def _function(self, node: Any) -> Any:
        """The ``FunctionDef`` that a node calls; None if it is an operator."""
        if node.op not in _CALLS:
            return self._library.get(node.op) if node.op not in self._allowed else None
        name = node.attr["f"].func.name
        if name not in self._library:
            raise self._error(f"it has no function {name!r}, which {node.name!r} calls")
        return self._library[name]

    def _call(
        self, level: _Level, node: Any, function: Any, inputs: list[Out], path: tuple[str, ...]
    ) -> list[Out]:
        signature = function.signature
        if signature.name in path or len(path) >= _DEEPEST:
            raise self._error(f"its function {signature.name!r} calls itself, or calls are nested "
                              f"more than {_DEEPEST} deep")  # fmt: skip
        arguments = [argument.name for argument in signature.input_arg]
        if len(arguments) != len(inputs):
            raise self._error(f"{node.name!r} calls {signature.name!r} with {len(inputs)} tensors, "
                              f"which takes {len(arguments)}")  # fmt: skip
        inner = _Level(
            {n.name: n for n in function.node_def},
            dict(zip(arguments, inputs, strict=True)),
            f"{level.prefix}{node.name}/",
        )
        for inside in function.node_def:  # also what nothing waits for: TensorFlow may still run it
            self._check(inner, inside)
        results = [function.ret[argument.name] for argument in signature.output_arg]
        waited = [f"^{name}" for name in function.control_ret.values()]
        self._follow(inner, [*results, *waited], (*path, signature.name))
        return [self._tensor(inner, text) for text in results]

    def _node(self, level: _Level, text: str) -> str | None:
        """The name of the node that a tensor is of; None for a function's argument."""
        name = text.removeprefix("^").partition(":")[0]
        if level.arguments is not None and name in level.arguments:
            return None
        return name

    def _tensor(self, level: _Level, text: str) -> Out:
        name, _, rest = text.partition(":")
        if level.arguments is not None and name in level.arguments:
            return level.arguments[name]
        made = level.made[name]
        index = self._index(level, level.nodes[name], rest, text)
        if isinstance(made, int):
            return Out(made, index)
        if not 0 <= index < len(made):
            raise self._error(f"there is no tensor {text!r}")
        return made[index]

    def _index(self, level: _Level, node: Any, rest: str, text: str) -> int:
        """Which output of a node: ``"2"`` in the main graph, ``"y:0"`` in a function."""
        output, _, place = rest.rpartition(":")
        if not place.isdecimal() and rest:
            raise self._error(f"there is no tensor {text!r}")
        index = int(place or 0)
        if level.arguments is None:
            return index
        function = self._function(node)
        definition = (
            function.signature
            if function is not None and node.op not in _CALLS
            else private_tensorflow.op_definition(node.op)
        )
        for argument in definition.output_arg if definition is not None else ():
            if argument.name == output:
                return index
            index += _count(argument, node)
        raise self._error(f"there is no tensor {text!r}")

    def _error(self, reason: str) -> LoadError:
        return LoadError(f"{self._where} is damaged: {reason}. Save or export the model again.")


def _count(argument: Any, node: Any) -> int:
    """How many tensors an argument of an operator is."""
    if argument.number_attr:
        return int(node.attr[argument.number_attr].i)
    if argument.type_list_attr:
        return len(node.attr[argument.type_list_attr].list.type)
    return 1


def pruned(nodes: Sequence[Node], wanted: Iterable[Out]) -> tuple[list[Node], Callable[[Out], Out]]:
    """The nodes whose values these tensors are made of, and where each of their tensors is then."""
    needed, todo = set(), [out.node for out in wanted]
    while todo:
        number = todo.pop()
        if number not in needed:
            needed.add(number)
            todo += [out.node for out in nodes[number].inputs]
    place = {number: index for index, number in enumerate(sorted(needed))}

    def moved(out: Out) -> Out:
        return Out(place[out.node], out.index)

    kept = [
        Node(node.name, node.op, node.definition, [moved(out) for out in node.inputs])
        for node in (nodes[number] for number in sorted(needed))
    ]
    return kept, moved
