"""Recurrent layers as the calls of all their steps, one after the other.

What the inputs of all steps give is one product. Each step is then a product with what the step
before it gave, sums, activations and products of two tensors: for every one of these one layer,
called once for each step, so that all steps have the same weights, and each layer one range.
LiteRT has an operator for a whole LSTM, but its states stay from one run to the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.lifting.block import ClosedError
from rewriter.reading.cells import CELLS, Kit
from rewriter.reading.graph import Call
from rewriter.reading.stock_activations import function as activation

# Each step has 16 operators or more of its own, in the file and in the graph that trains: of 64 an
# LSTM has 130 KB, and takes 22 seconds to trace.
MOST_STEPS = 64

# As many tensors as LiteRT for Microcontrollers concatenates at once.
_AT_ONCE = 10

LAYERS = frozenset({"LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional"})
_MERGES = {"concat": "Concatenate", "sum": "Add", "ave": "Average", "mul": "Multiply"}
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
    _refuse_call(call)
    for each in directions:
        _refuse(flavour, call, each)
    if getattr(layer, "activity_regularizer", None) is not None:
        raise ClosedError("it has an activity_regularizer; add a layer ActivityRegularization")
    if made is None:
        raise ClosedError(
            "it has an integer form, but was left as it is when the model was rewritten. "
            "Rewrite the original again, with input_shape if that leaves sizes open"
        )
    trains = layer.trainable and all(each.trainable for each in directions)
    kits = [
        Kit(flavour, each.cell, each.name, made, trains and each.cell.trainable)
        for each in directions
    ]

    def one(inputs: Any, **options: Any) -> Any:
        run = _run(kits[0], layer, inputs)
        output = _output(kits[0], layer, run.outputs)
        return [output, *run.states] if layer.return_state else output

    def two(inputs: Any, **options: Any) -> Any:
        runs = [_run(kit, each, inputs) for kit, each in zip(kits, directions, strict=True)]
        runs[1] = dataclasses.replace(runs[1], outputs=_reversed(layer, runs[1].outputs))
        outputs = [_output(kit, layer, run.outputs) for kit, run in zip(kits, runs, strict=True)]
        if layer.merge_mode is not None:
            merge = _MERGES[layer.merge_mode]
            outputs = [kits[0].layer(f"{layer.name}_merged", merge)(outputs)]
        states = [state for run in runs for state in run.states] if layer.return_state else []
        found = [*outputs, *states]
        return found if len(found) > 1 else found[0]

    return two if both else one


def _reversed(layer: Any, outputs: Sequence[Any]) -> Sequence[Any]:
    """The steps of the second direction in the order of the first."""
    return outputs[::-1] if layer.return_sequences else outputs


def _run(kit: Kit, layer: Any, inputs: Any) -> _Run:
    order = -1 if layer.go_backwards else 1
    if layer.cell.dropout:
        kind = kit.flavour.input_dropout(layer)
        inputs = kit.layer(f"{layer.name}_dropout", kind, layer.cell.dropout)(inputs)
    given = kit.projected(inputs)
    step, states = CELLS[kit.kind].step, kit.start(given)
    outputs = []
    for each in kit.steps(given)[::order]:
        states = step(kit, each, states)
        outputs.append(states[0])
    return _Run(outputs, states)


def _output(kit: Kit, layer: Any, outputs: Sequence[Any]) -> Any:
    if not layer.return_sequences:
        return outputs[-1]
    count, width = len(outputs), outputs[-1].shape[-1]
    concatenate, parts = kit.flavour.function("concatenate"), list(outputs)
    while len(parts) > 1:
        groups = [parts[i : i + _AT_ONCE] for i in range(0, len(parts), _AT_ONCE)]
        parts = [concatenate(group, axis=-1) if len(group) > 1 else group[0] for group in groups]
    return kit.flavour.function("reshape")(parts[0], (-1, count, width))


def _refuse_call(call: Call) -> None:
    """Raise ClosedError for a call with states or constants, or of an unknown number of steps."""
    if len(call.refs) != 1:
        raise ClosedError("it is given an initial_state or constants. Let its states start at zero")
    shape = call.input_shapes[0]
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


def _refuse(flavour: Flavour, call: Call, layer: Any) -> None:
    """Raise ClosedError for a layer, or a direction of one, that is more than its steps."""
    cell: Any = getattr(layer, "cell", None)
    name = flavour.class_name(cell)
    if name not in CELLS or flavour.class_name(layer) not in LAYERS:
        known = ", ".join(CELLS)
        raise ClosedError(f"its cell is {type(cell).__name__}, which is none of {known}. Use those")
    if layer.stateful:
        raise ClosedError(f"it is stateful, and a file keeps no states. {_REMEDY}")
    if getattr(layer, "time_major", False):
        raise ClosedError(f"it has time_major=True. {_REMEDY}")
    for option in ("recurrent_dropout", "dropout"):
        apart = option == "dropout" and flavour.input_dropout(layer)
        if getattr(cell, option, 0) and not apart:
            raise ClosedError(
                f"it has {option}={getattr(cell, option)}, which acts inside its steps while "
                "training. Put a layer SpatialDropout1D before it instead"
            )
    if cell.compute_dtype != "float32" or call.input_dtypes != ("float32",):
        raise ClosedError(f"it computes in {cell.compute_dtype}. Build it in float32")
    for option in ("activation", "recurrent_activation"):
        own = getattr(cell, option, None)
        if own is not None and activation(flavour, call, own, call.refs[0]) is None:
            shown = getattr(own, "__name__", type(own).__name__)
            raise ClosedError(f"its {option} {shown!r} has no integer form. Use sigmoid or tanh")
    CELLS[name].refuse(cell)
