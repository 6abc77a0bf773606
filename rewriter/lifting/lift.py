"""A SavedModel that is only functions, as a functional Keras model."""

from __future__ import annotations

import collections
import dataclasses
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from rewriter.errors import LoadError, RewriterWarning
from rewriter.keras_compat import Flavour, stack
from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import functions, operation, rows, source, values
from rewriter.lifting.builder import Builder
from rewriter.lifting.graph import Graph, Out
from rewriter.lifting.values import Known, Symbol, Value

_DEFAULT = ("serving_default", "serve")


@dataclasses.dataclass(frozen=True)
class Lifted:
    """How a model was lifted.

    Attributes:
      signature: which one it was lifted from; "" for a frozen graph.
      recognised: the operator of the graph that each layer stands for.
      kept: the operators that no layer stands for: each is in a layer of its own.
    """

    signature: str
    recognised: dict[str, str]
    kept: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "signature": self.signature,
            "recognised": dict(self.recognised),
            "kept": list(self.kept),
        }

    def __str__(self) -> str:
        counts = collections.Counter(self.recognised.values())
        ops = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        lines = [f"  lifted from the signature {self.signature!r}: {ops}"]
        if self.kept:
            lines.append(f"  kept as they are, each in a layer: {', '.join(self.kept)}")
        return "\n".join(lines)


_LIFTED: weakref.WeakKeyDictionary[Any, Lifted] = weakref.WeakKeyDictionary()


def of(model: Any) -> Lifted | None:
    """How a model was lifted; None if it was not."""
    return _LIFTED.get(model)


def lift(path: Path, flavour: Flavour, signature: str | None = None) -> Any:
    """The model that a signature of a SavedModel computes; :func:`of` says how it was made.

    Args:
      path: the folder.
      flavour: the Keras of the model.
      signature: its name; None for the one that is served by default, or the only one.

    Raises:
      LoadError: the file is damaged, there is no such signature, or an operator cannot be lifted.
    """
    names = source.signatures(path)
    name = _signature(names, signature, repr(str(path)))
    where = f"The signature {name!r} of {str(path)!r}"
    return from_graph(source.saved_model(path, name), flavour, where, name)


def lift_frozen(
    path: Path,
    flavour: Flavour,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Any:
    """The model that a frozen graph computes.

    Args:
      path: a ``.pb`` file.
      flavour: the Keras of the model.
      inputs: names of its tensors or operators; None for its placeholders.
      outputs: likewise; None for those that nothing reads.

    Raises:
      LoadError: the file is damaged, has no such tensor, or has an operator that cannot be lifted.
    """
    return from_graph(source.frozen(path, inputs, outputs), flavour, repr(str(path)), "")


def _signature(signatures: list[str], wanted: str | None, where: str) -> str:
    if not signatures:
        raise LoadError(
            f"{where} has no signature: nothing says what the model's function is. Save it with "
            "model.export, or give tf.saved_model.save(signatures=...)."
        )
    if wanted is not None:
        if wanted not in signatures:
            raise LoadError(
                f"{where} has no signature {wanted!r}. It has: {', '.join(signatures)}."
            )
        return wanted
    for name in _DEFAULT:
        if name in signatures:
            return name
    if len(signatures) == 1:
        return signatures[0]
    raise LoadError(
        f"{where} has the signatures {', '.join(signatures)}. Choose one: signature=, or "
        "--signature on the command line."
    )


def from_graph(graph: Graph, flavour: Flavour, where: str, signature: str) -> Any:
    """The model that a graph computes; see :func:`lift`.

    Raises:
      LoadError: an input or an operator cannot be lifted.
    """
    builder = Builder(graph, flavour, where, operation.of(flavour))
    inputs = {}
    for name, (number, shape, dtype) in graph.inputs.items():
        if dtype == tf.string:
            raise LoadError(
                f"{where} has the input {name!r} of strings. Export the model without the step "
                "that parses them."
            )
        if shape.rank == 0 or shape.rank is None:
            raise LoadError(f"{where} has the input {name!r} without a batch: shape {shape}.")
        if shape[0] is not None:
            builder.fixed_batch = shape[0]
        inputs[name] = flavour.keras.Input(tuple(shape[1:]), name=name, dtype=dtype.name)
        builder.set(Out(number), Symbol(inputs[name]))
        builder.take(name)
    with stack.room_for(2 * len(graph.nodes)):
        for number in range(len(graph.nodes)):
            visit(builder, number)
        outputs = {name: _output(builder, name, out) for name, out in graph.outputs.items()}
        model = flavour.keras.Model(
            _alone(inputs), _alone(outputs, names=False), name=_model_name(where)
        )
    builder.assign()
    divided = builder.divided()
    if divided:
        warnings.warn(
            f"{where} reads {divided[0]!r}{f' and {len(divided) - 1} more' if divided[1:] else ''} "
            "in several places, which are weights of their own here: they are equal until they are "
            "trained.",
            RewriterWarning,
            stacklevel=4,
        )
    _LIFTED[model] = Lifted(signature, builder.recognised, tuple(builder.kept))
    return model


# In training they are something else than in inference.
_INFERENCE_ONLY = words(
    "StopGradient PreventGradient FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3"
)


# Several operators that are one layer: where they have been found, and what makes it of them, or
# None if no layer does.
_WHOLE: tuple[
    tuple[Callable[[Builder], dict[int, Any]], Callable[..., list[Value] | None]], ...
] = (
    (lambda b: b.layer_norms, rows.layer_norm_in_pieces),
    (lambda b: b.pieces, functions.in_pieces),
)


def visit(b: Builder, number: int) -> None:
    """Make what a node of the graph is: a layer, a size, or nothing where another has taken it in.

    Raises:
      LoadError: it cannot be lifted.
    """
    node = b.graph.nodes[number]
    if number in b.norms:
        for index, value in enumerate(rows.norm_in_pieces(b, number, b.norms[number])):
            b.set(Out(number, index), value)
        return
    for matches, made_of in _WHOLE:
        if number not in matches(b):
            continue
        match = matches(b).pop(number)
        whole = made_of(b, number, match)
        if whole is not None:
            b.set(Out(number), whole[0])
            return
        b.done -= set(match.nodes)  # no layer takes it: each of its operators by itself
        for piece in match.nodes[:-1]:
            visit(b, piece)
    if number in b.done or not b.needed(number):
        return
    if not b.domains.symbolic(Out(number)):
        if not b.domains.known(Out(number)) and values.makes_sizes(node):
            inputs = [b.value(out) for out in node.inputs]
            found = values.sizes_of(node, inputs, lambda s: tuple(s.tensor.shape))
            if found is not None:
                b.set(Out(number), found)
        return
    if number in {n for n, _, _ in b.graph.inputs.values()}:
        return
    row = None if b.trains and node.op in _INFERENCE_ONLY else rows.ROWS.get(node.op)
    made = row(b, number, node) if row is not None else None
    for index, value in enumerate(b.keep(node) if made is None else made):
        b.set(Out(number, index), value)


def _output(b: Builder, name: str, out: Out) -> Any:
    """The tensor of an output, from a layer of the output's name."""
    value = b.value(out)
    if isinstance(value, Known) or not isinstance(value, Symbol):
        raise LoadError(f"{b.where}: the output {name!r} does not depend on the inputs.")
    if not b.free(name):
        return value.tensor
    if not tf.as_dtype(value.tensor.dtype).is_floating:  # an Activation of Keras 3 says it is
        return b.layers.Identity(name=name)(value.tensor)
    return b.layers.Activation("linear", name=name)(value.tensor)


def _alone(tensors: dict[str, Any], names: bool = True) -> Any:
    found = list(tensors.values())
    return found[0] if len(found) == 1 else found


def _model_name(where: str) -> str:
    return "lifted"
