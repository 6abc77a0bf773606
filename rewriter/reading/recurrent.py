"""Recurrent layers as the calls of all their steps, one after the other.

What the inputs of all steps give is one product. Each step is then a product with what the step
before it gave, sums, activations and products of two tensors: for every one of these one layer,
called once for each step, so that all steps have the same weights, and each layer one range. Of
several cells in one layer, each runs through all that the one before it gave.
LiteRT has an operator for a whole LSTM, but its states stay from one run to the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import Flavour
from rewriter.lifting.block import ClosedError
from rewriter.reading import inside
from rewriter.reading.cells import CELLS, Kit
from rewriter.reading.graph import Call, Ref
from rewriter.reading.operations import RANDOM_IN_INFERENCE
from rewriter.reading.stock_activations import function as activation

# Each step has 16 operators or more of its own, in the file and in the graph that trains: of 64 an
# LSTM has 130 KB, and takes 22 seconds to trace.
MOST_STEPS = 64

# As many tensors as LiteRT for Microcontrollers concatenates at once.
_AT_ONCE = 10

LAYERS = frozenset({"LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional"})
_MERGES = {"concat": "Concatenate", "sum": "Add", "ave": "Average", "mul": "Multiply"}
# What the calls of both Kerases name it.
_SEQUENCES = ("sequences", "inputs")
_REMEDY = "Build the layer without it"


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a layer makes of a sequence.

    Attributes:
      outputs: of all steps, as the layer runs through them.
      states: after the last.
    """

    outputs: Sequence[Any]
    states: Sequence[Any]


def function(flavour: Flavour, call: Call, made: dict[Any, Any] | None) -> Callable[..., Any]:
    """What makes the calls that a call of a recurrent layer is.

    Args:
      flavour: the Keras.
      call: of a layer of :data:`LAYERS`, on a tensor of shape (batch, steps, features).
      made: the layers that were made of the same layer before; new ones are added. None: in a
        model that has been rewritten, whose own ones stay as they are.

    Raises:
      ClosedError: it has no such form; the message is the reason, with the remedy.
    """
    layer = call.layer
    if call.masked:
        raise ClosedError("it works under a mask, and a file carries none. Build it without masks")
    both = flavour.class_name(layer) == "Bidirectional"
    directions = [layer.forward_layer, layer.backward_layer] if both else [layer]
    cells = [(each, cell) for each in directions for cell in _cells(flavour, each)]
    drops = any(getattr(c, f"{k}dropout", 0) for _, c in cells for k in ("", "recurrent_"))
    if drops and True in (inside.own_flag(flavour, call), *_flags(call.args)):
        raise ClosedError(RANDOM_IN_INFERENCE)
    for each, cell in cells:
        _refuse(flavour, call, each, cell)
    _refuse_call(call, layer, sum(CELLS[flavour.class_name(cell)].states for _, cell in cells))
    if getattr(layer, "activity_regularizer", None) is not None:
        raise ClosedError("it has an activity_regularizer; add a layer ActivityRegularization")
    if made is None:
        raise ClosedError(
            "it has an integer form, but was left as it is when the model was rewritten. "
            "Rewrite the original again, with input_shape if that leaves sizes open"
        )
    trains = layer.trainable and all(each.trainable for each in directions)
    kits = [_kits(flavour, each, made, trains) for each in directions]

    def split(args: tuple, options: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """The sequence, and the states that are given."""
        leaves = _sequence_first(args, options)
        inputs, *states = [leaf for leaf in leaves if flavour.is_tensor(leaf)]
        return inputs, states

    def one(*args: Any, **options: Any) -> Any:
        inputs, states = split(args, options)
        run = _run(kits[0], layer, inputs, states)
        output = _output(kits[0][-1], layer, run.outputs)
        return [output, *run.states] if layer.return_state else output

    def two(*args: Any, **options: Any) -> Any:
        inputs, states = split(args, options)
        halves = states[: len(states) // 2], states[len(states) // 2 :]
        ways = zip(kits, directions, halves, strict=True)
        runs = [_run(kit, each, inputs, own) for kit, each, own in ways]
        runs[1] = dataclasses.replace(runs[1], outputs=_reversed(layer, runs[1].outputs))
        outputs = [_output(kit[-1], layer, r.outputs) for kit, r in zip(kits, runs, strict=True)]
        if layer.merge_mode is not None:
            merge = _MERGES[layer.merge_mode]
            outputs = [kits[0][0].layer(f"{layer.name}_merged", merge)(outputs)]
        states = [state for run in runs for state in run.states] if layer.return_state else []
        found = [*outputs, *states]
        return found if len(found) > 1 else found[0]

    return two if both else one


def _sequence_first(args: tuple, options: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call, flattened: by keyword too, the sequence stands before its states."""
    given = {name: value for name, value in options.items() if name not in _SEQUENCES}
    return tf.nest.flatten(([options.get(name) for name in _SEQUENCES], args, given))


def _flags(args: tuple) -> list[bool]:
    return [each for each in args if isinstance(each, bool)]


def _cells(flavour: Flavour, layer: Any) -> Sequence[Any]:
    """The cells of a layer, or of a direction of one."""
    cell: Any = getattr(layer, "cell", None)
    return cell.cells if flavour.class_name(cell) == "StackedRNNCells" else [cell]


def _kits(flavour: Flavour, layer: Any, made: dict[Any, Any], trains: bool) -> list[Kit]:
    """For each cell of a layer the layers that stand for it."""
    cells = _cells(flavour, layer)
    return [
        Kit(
            flavour,
            cell,
            layer.name if len(cells) == 1 else f"{layer.name}_{number}",
            made,
            trains and layer.cell.trainable and cell.trainable,
        )
        for number, cell in enumerate(cells, 1)
    ]


def _reversed(layer: Any, outputs: Sequence[Any]) -> Sequence[Any]:
    """The steps of the second direction in the order of the first."""
    return outputs[::-1] if layer.return_sequences else outputs


def _run(kits: Sequence[Kit], layer: Any, inputs: Any, given: Sequence[Any]) -> _Run:
    """``given``: the states before the first step; none: zeros."""
    order = -1 if layer.go_backwards else 1
    after: list[Any] = []
    outputs: list[Any] = []
    if getattr(layer.cell, "dropout", 0):
        kind = kits[0].flavour.input_dropout(layer)
        inputs = kits[0].layer(f"{layer.name}_dropout", kind, layer.cell.dropout)(inputs)
    for kit in kits:
        cell = CELLS[kit.kind]
        projected = kit.projected(_sequence(kit, outputs) if outputs else inputs)
        first, given = list(given[: cell.states]), given[cell.states :]
        states, steps = first or kit.start(projected), kit.steps(projected)
        steps, outputs = steps if outputs else steps[::order], []
        for each in steps:
            states = cell.step(kit, each, states)
            outputs.append(states[0])
        after += states
    return _Run(outputs, after)


def _output(kit: Kit, layer: Any, outputs: Sequence[Any]) -> Any:
    return _sequence(kit, outputs) if layer.return_sequences else outputs[-1]


def _sequence(kit: Kit, outputs: Sequence[Any]) -> Any:
    """Steps as one tensor, (batch, steps, features)."""
    count, width = len(outputs), outputs[-1].shape[-1]
    concatenate, parts = kit.flavour.function("concatenate"), list(outputs)
    while len(parts) > 1:
        groups = [parts[i : i + _AT_ONCE] for i in range(0, len(parts), _AT_ONCE)]
        parts = [concatenate(group, axis=-1) if len(group) > 1 else group[0] for group in groups]
    return kit.flavour.function("reshape")(parts[0], (-1, count, width))


def _refuse_call(call: Call, layer: Any, states: int) -> None:
    """Raise ClosedError for a call with other tensors than states, or of unknown many steps."""
    more = [leaf for leaf in tf.nest.flatten(call.kwargs.get("initial_state")) if leaf is not None]
    if not all(isinstance(leaf, Ref) for leaf in more):
        raise ClosedError(
            "its initial_state is a constant. Give it as a tensor of the model, or let its states "
            "start at zero"
        )
    if getattr(layer, "_num_constants", 0) or call.kwargs.get("constants") is not None:
        raise ClosedError("it is given constants, which its cells do not take. Leave them out")
    if len(call.refs) not in (1, 1 + states):
        raise ClosedError(
            f"it is given {len(call.refs) - 1} states, and has {states}. Give it an initial_state "
            "with all of them, or let them start at zero"
        )
    sequence = Call.tensors(_sequence_first(call.args, call.kwargs))[0]
    shape = call.input_shapes[call.refs.index(sequence)]
    if len(shape) != 3 or None in shape[1:]:
        raise ClosedError(
            "its number of steps is not known. Fix it: Input((steps, features)), or input_shape "
            "when the model is rewritten"
        )
    if (shape[1] or 0) > MOST_STEPS:
        raise ClosedError(
            f"it has {shape[1]} steps, each of which would have operators of its own in the file; "
            f"up to {MOST_STEPS} are. Shorten the sequence before it, as by a convolution with "
            "strides"
        )


def _refuse(flavour: Flavour, call: Call, layer: Any, cell: Any) -> None:
    """Raise ClosedError for a layer, or a direction of one, that is more than its cells' steps."""
    name = flavour.class_name(cell)
    if name not in CELLS or flavour.class_name(layer) not in LAYERS:
        known = ", ".join(CELLS)
        raise ClosedError(f"its cell is {type(cell).__name__}, which is none of {known}. Use those")
    if layer.stateful:
        raise ClosedError(f"it is stateful, and a file keeps no states. {_REMEDY}")
    if getattr(layer, "time_major", False):
        raise ClosedError(f"it has time_major=True. {_REMEDY}")
    for option in ("recurrent_dropout", "dropout"):
        apart = option == "dropout" and cell is layer.cell and flavour.input_dropout(layer)
        if getattr(cell, option, 0) and not apart:
            raise ClosedError(
                f"it has {option}={getattr(cell, option)}, which acts inside its steps while "
                "training. Put a layer SpatialDropout1D before it instead"
            )
    if cell.compute_dtype != "float32" or {*call.input_dtypes} != {"float32"}:
        raise ClosedError(f"it computes in {cell.compute_dtype}. Build it in float32")
    for option in ("activation", "recurrent_activation"):
        own = getattr(cell, option, None)
        if own is not None and activation(flavour, call, own, call.refs[0]) is None:
            shown = getattr(own, "__name__", type(own).__name__)
            raise ClosedError(f"its {option} {shown!r} has no integer form. Use sigmoid or tanh")
    CELLS[name].refuse(cell)
