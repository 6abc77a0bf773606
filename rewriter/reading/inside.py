"""What a layer of a user's computes, where that is one operation.

A function given to ``Activation`` or ``Lambda``, or a layer of a class of a user's, is one call to
the graph. Where what it runs is one operation (``x * self.gamma``, ``tf.nn.depth_to_space``), or
one function of a number (``x * relu6(x + 3) / 6``), it is read as that, and the layer itself stays
in the model with its variables.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter.grid import BYTES, WHOLE
from rewriter.keras_compat import Flavour, symbols
from rewriter.lifting.operation import GraphOperatorMixin
from rewriter.reading import stock_activations, stock_functions
from rewriter.reading.graph import Call, Ref, map_refs
from rewriter.reading.operations import LOOKS_UP, MOVES, PLACES, Operation, affine, is_floating
from rewriter.reading.traces import Node, Trace, trace

STOCK = ("Lambda", "Activation")  # these hold a user's function
_SCALED = ("AdditiveAttention", "Attention")  # these may have a variable, a scale of their scores
# Nodes of a weighted sum.
_LINEAR = frozenset({"Add", "AddN", "AddV2", "Mul", "Neg", "Pack", "RealDiv", "Sub", "Sum"})


def may_be_read(flavour: Flavour, call: Call) -> bool:
    """Whether a call is one of a user's function or layer, of real or of whole numbers only."""
    layer = call.layer
    if flavour.is_ours(layer) or flavour.is_added_loss(layer) or flavour.is_model(layer):
        return False
    if flavour.class_name(layer) not in ("", *STOCK) or not hasattr(layer, "call"):
        return False
    masked = call.masked and flavour.class_name(layer) != "Activation"
    given = all(is_floating(d) or d in BYTES or d in WHOLE for d in call.input_dtypes)
    made = all(is_floating(dtype) or dtype in WHOLE for dtype in call.dtypes)
    return not masked and bool(call.input_dtypes) and given and made


def masks(flavour: Flavour, layer: Any) -> bool:
    """Whether a layer may make a mask of its own."""
    if flavour.is_lambda(layer):
        return getattr(layer, "mask", None) is not None
    base = flavour.keras.layers.Layer
    stock = bool(flavour.class_name(layer))
    return not stock and type(layer).compute_mask is not base.compute_mask


def may_be_replaced(flavour: Flavour, call: Call) -> bool:
    """Whether a user's function or layer may be nothing but the calls inside it.

    It makes no mask. Variables of its own become the weights of the calls that read them. So do
    those of stock attention.
    """
    layer = call.layer
    scaled = flavour.class_name(layer) in _SCALED and not (call.masked or layer.dropout)
    return (
        (may_be_read(flavour, call) or (scaled and bool(flavour.own_variables(layer))))
        and getattr(layer, "activity_regularizer", None) is None
        and {*call.input_dtypes} <= {*WHOLE, getattr(layer, "compute_dtype", call.input_dtypes[0])}
        and flavour.is_layer(layer)
        and not isinstance(layer, GraphOperatorMixin)  # the call inside it is itself
        and not masks(flavour, layer)
    )


def operation(flavour: Flavour, call: Call) -> Operation | None:
    """The one operation that a user's layer computes; None if there is none such."""
    if not may_be_read(flavour, call) or len(call.dtypes) != 1:
        return None
    refs = list(dict.fromkeys(call.refs))
    layer = call.layer
    kwargs = {key: v for key, v in call.kwargs.items() if key not in ("mask", "training")}
    if "training" in parameters(layer):
        kwargs["training"] = False

    def function(*x: Any) -> Any:
        tensors = dict(zip(refs, x, strict=True))
        args, given = map_refs((call.args, kwargs), tensors.__getitem__)
        with flavour.added_losses(layer):
            return layer.call(*args, **given)

    shapes = dict(zip(call.refs, call.input_shapes, strict=True))
    given = dict(zip(call.refs, call.input_dtypes, strict=True))
    dtypes = ["float32" if is_floating(given[ref]) else given[ref] for ref in refs]
    traced = trace(function, [(None, *shapes[ref][1:]) for ref in refs], dtypes)
    if traced is None:
        return None
    floats = dtypes == ["float32"]
    learned = flavour.is_layer(layer) and bool(flavour.own_variables(layer))
    if floats and traced.result < traced.arguments:  # a dropout of a user's, in inference
        return Operation("identity", (refs[traced.result],))
    if floats and call.shapes[0] == call.input_shapes[0]:
        found = stock_activations.scalar(traced, refs[0])
        if found is not None and not learned:
            return found
    single = _single(traced, call, refs, learned)
    if single is None and {*dtypes, *call.dtypes} == {"float32"}:
        return _weighted_sum(traced, call, refs)
    if single is None or not _fits(single, call):
        return None
    if single.name in PLACES:
        call.dtypes = (single.options["dtype"],)  # a Lambda of Keras 3 says what its layer has
    return single


def _fits(operation: Operation, call: Call) -> bool:
    """Whether an operation has a meaning for tensors of these types."""
    if operation.name in LOOKS_UP | PLACES:
        return True
    if not is_floating(call.dtypes[0]):
        return operation.name in MOVES
    return not any(dtype in WHOLE for dtype in call.input_dtypes)


def parameters(layer: Any) -> tuple[str, ...]:
    """The names of what a layer or an operation can be called with."""
    try:
        return tuple(inspect.signature(layer.call).parameters)
    except (AttributeError, TypeError, ValueError):
        return ()


def asks(flavour: Flavour, layer: Any) -> bool:
    """Whether a user's layer may do something else in training."""
    return "training" in parameters(layer) and not flavour.is_lambda(layer)


def in_inference(flavour: Flavour, call: Call, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call that is made outside of its model, in inference.

    A layer that is called by itself takes its own default, which for layers that augment images is
    to train; and Keras 3 notes that default with the call, as if it had been asked for.
    """
    if "training" not in parameters(call.layer):
        return dict(kwargs)
    given = own_flag(flavour, call, kwargs)
    return {**kwargs, "training": False if given is None else given}


def own_flag(flavour: Flavour, call: Call, kwargs: Mapping[str, Any] | None = None) -> Any:
    """The ``training`` that a call is given whatever the model's is; None if it follows that.

    Args:
      flavour: of the layer.
      call: the call.
      kwargs: its keyword arguments with tensors in them; None: those that it has.
    """
    given = call.kwargs if kwargs is None else kwargs
    return call.always if flavour.overrides_training else given.get("training")


def _single(traced: Trace, call: Call, refs: list[Ref], learned: bool) -> Operation | None:
    """One operation; or several that scale and shift, one after the other, as one.

    ``learned``: constants may be variables, which will be others: a gain of 1 is a gain.
    """
    made: dict[int, Ref] = dict(enumerate(refs))
    operations: dict[Ref, Operation] = {}
    same, parts = _unwrapped(traced.nodes, len(refs))
    for index, node in enumerate(traced.nodes, len(refs)):
        if index in parts:
            continue
        if index in same:
            made[index] = made[same[index]]
            continue
        read = _operation(node, call, made)
        if read is None or (learned and node.kind == "Pow"):
            return None
        if learned and read.name == "identity" and len(node.inputs) > 1:
            one = {"scale": np.ones(()), "offset": np.zeros(())}
            read = Operation("affine", read.operands, one)
        before = operations.get(read.operands[0])
        if before is not None:
            read = _joined(before, read)
        if read is None or any(ref in operations for ref in read.operands):
            return None
        made[index] = Ref(-index)
        operations[made[index]] = read
    last = made[traced.result]
    return operations.get(last)


def _unwrapped(nodes: Sequence[Node], first: int) -> tuple[dict[int, int], set[int]]:
    """Where ``tf.where(i < 0, i + size, i)`` stands for ``i``, as ``keras.ops.take`` has it.

    A program looks up by numbers from 0 on only, see :mod:`rewriter.reading.whole_numbers`.

    Returns:
      The value that it stands for by that of each such node, and the values that are parts of it.
    """
    by_value = dict(enumerate(nodes, first))
    same: dict[int, int] = {}
    parts: set[int] = set()
    for index, node in by_value.items():
        if node.kind != "SelectV2" or not all(isinstance(v, int) for v in node.inputs):
            continue
        less, more = (by_value.get(int(v)) for v in node.inputs[:2])
        number = int(node.inputs[2])
        if less is None or more is None or (less.kind, more.kind) != ("Less", "AddV2"):
            continue
        bound, size = less.inputs[1], more.inputs[1]
        constants = isinstance(bound, np.ndarray) and isinstance(size, np.ndarray)
        if constants and not np.any(bound) and less.inputs[0] == more.inputs[0] == number:
            same[index] = number
            parts.update(int(v) for v in node.inputs[:2])
    return same, parts


def _weighted_sum(traced: Trace, call: Call, refs: list[Ref]) -> Operation | None:
    """A sum of several tensors, each times a number that the layer makes of its variables.

    Of nodes that are linear with constants beside tensors; the numbers are found by ones in the
    place of one tensor and zeros in that of the others.
    """
    shape = call.shapes[0]
    if len(refs) < 2 or None in shape[1:] or {*call.input_shapes} != {shape}:
        return None
    sizes = [size or 0 for size in shape[1:]]
    if any(node.kind not in _LINEAR for node in traced.nodes):
        return None
    rng = np.random.default_rng(0)
    probe = rng.normal(size=(len(refs), 1, *sizes)).astype(np.float32)
    units = np.eye(len(refs), dtype=np.float32)
    try:
        found = [np.asarray(traced.run(*(np.full_like(probe[0], n) for n in u))) for u in units]
        mixed = np.asarray(traced.run(*probe))
    except (TypeError, ValueError, tf.errors.OpError):
        return None  # not of a single sample
    scales = np.array([part.ravel()[0] for part in found], np.float64)
    expected = np.tensordot(scales, probe, 1)
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5 * float(np.abs(scales).max())}
    alike = all(np.allclose(p, scale, **near) for p, scale in zip(found, scales, strict=True))
    if not alike or mixed.shape != expected.shape or not np.allclose(mixed, expected, **near):
        return None
    if not scales.any() or not np.isfinite(scales).all():
        return None
    # With those that are 0 now: training may change them, and their tensors need ranges then.
    return Operation("add", tuple(refs), {"scales": scales.tolist()})


def _operation(node: Node, call: Call, made: dict[int, Ref]) -> Operation | None:
    if node.kind == "ConcatV2":
        return _joined_to_constants(node, call, made)
    specification = symbols.TENSORFLOW.get(f"raw.{node.kind}")
    if specification is None:
        return None
    args = tuple(v if isinstance(v, np.ndarray) else made[v] for v in node.inputs)
    kwargs = {**node.attributes, "keepdims": node.attributes.get("keep_dims", False)}
    kind = node.attributes.get("output_type")  # which a layer of Keras 3 does not know
    dtypes = call.dtypes if kind is None else (tf.as_dtype(kind).name,)
    one = Call(call.layer, call.path, args, kwargs, call.shapes, dtypes)
    one.input_shapes, one.input_dtypes = call.input_shapes, call.input_dtypes
    read = stock_functions.of(specification, one)
    rank = len(call.shapes[0])
    for name in ("scale", "offset"):
        numbers = np.asarray(0 if read is None else read.options.get(name, 0))
        if numbers.ndim > rank or (rank and numbers.ndim == rank and numbers.shape[0] > 1):
            return None  # for each sample of a batch
    return read


def _joined_to_constants(node: Node, call: Call, made: dict[int, Ref]) -> Operation | None:
    """A tensor between constants that are the same for every sample, such as a class token."""
    *parts, axis = node.inputs
    places = [i for i, part in enumerate(parts) if not isinstance(part, np.ndarray)]
    if len(places) != 1 or len(parts) == 1 or not isinstance(axis, np.ndarray):
        return None
    rank = len(call.shapes[0])
    constants = [part for part in parts if isinstance(part, np.ndarray)]
    if int(axis) % rank == 0 or any(c.ndim != rank or c.shape[0] != 1 for c in constants):
        return None
    place, tensor = places[0], parts[places[0]]
    before, after = (
        np.concatenate(some, int(axis)).astype(np.float64) if some else None
        for some in (constants[:place], constants[place:])
    )
    options = {"axis": int(axis) % rank, "before": before, "after": after}
    return Operation("concatenate_constants", (made[int(tensor)],), options)


def _joined(first: Operation, second: Operation) -> Operation | None:
    """``second`` of ``first``, both of which scale and shift."""
    if first.name == "identity" or second.name == "identity":
        kept = second if first.name == "identity" else first
        return Operation(kept.name, first.operands, kept.options)
    if (first.name, second.name) != ("affine", "affine"):
        return None
    scale, offset = second.options["scale"], second.options["offset"]
    return affine(
        first.operands[0],
        np.multiply(first.options["scale"], scale),
        np.multiply(first.options["offset"], scale) + offset,
    )
