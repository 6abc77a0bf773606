"""A layer of a user's, opened: a functional model of what its call does with the layers inside it.

The call is run on symbolic tensors. Where that cannot be, because it uses operators that take none
or has variables of its own, it is run as a graph, and the operators become layers too
(:mod:`rewriter.lifting.block`).

A call that has the argument ``training`` is run twice, once for training and once for inference.
Both must be the same but for the flags that it hands on, and for layers that do nothing in
inference, such as a dropout that it leaves out then. A flag that differs follows the model's; one
that does not is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter.errors import short
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.pure_functions import words
from rewriter.lifting import block, block_layers, block_numbers
from rewriter.lifting.block import ClosedError
from rewriter.reading import inside, modes, momentary

# They pass their input on in inference.
_ONLY_IN_TRAINING = words(
    """AlphaDropout Dropout GaussianDropout GaussianNoise SpatialDropout1D SpatialDropout2D
    SpatialDropout3D StochasticDepth"""
)

# Of tf_keras; those of Keras 3 take no symbolic sizes. Some repeat what may be a tensor, or not.
_MADE_OF_SIZES = words("ops.eye ops.fill ops.ones ops.range ops.sequence_mask ops.zeros")
_REPEATS = words("ops.broadcast_to ops.repeat ops.tile")


@dataclasses.dataclass(eq=False)
class Opened:
    """What a layer's call does.

    Attributes:
      model: functional; its inputs are the tensors that the layer is given.
      flags: ``training`` of a call in it, by the identity of the call's first result: always this,
        or None where it follows the model's. Calls that are not there have what Keras says.
    """

    model: Any
    flags: dict[int, bool | None]


def passes(flavour: Flavour, layer: Any, flag: Any) -> bool:
    """Whether a call of a layer with a flag, in inference, only passes its input on."""
    return flavour.class_name(layer) in _ONLY_IN_TRAINING and flag is not True


def opened(
    flavour: Flavour,
    layer: Any,
    symbols: Sequence[Any],
    args: tuple,
    kwargs: dict[str, Any],
    shared: dict[Any, Any],
    inputs: Any = None,
) -> Opened:
    """The calls inside a layer.

    Args:
      flavour: the Keras of the layer.
      layer: it, or a subclassed model.
      symbols: inputs of Keras for the tensors that it is given.
      args, kwargs: of its call, with indices of ``symbols`` as :class:`Place`; no ``training``.
      shared: the layers made of its variables before; new ones are added.
      inputs: the symbols as the inputs of the new model are nested; None for a list.

    Raises:
      ClosedError: it cannot be opened; the message is the reason.
    """
    reason = found = None
    if not flavour.own_variables(layer):
        try:
            found = _symbolic(flavour, layer, symbols, args, kwargs, inputs)
        except ClosedError as error:
            reason = error
        if found is not None and not _of_sizes(flavour, found.model):
            return found
    try:
        return _graph(flavour, layer, symbols, args, kwargs, shared, inputs)
    except ClosedError as error:
        if found is not None:
            return found
        # What went wrong on symbolic tensors says little where the call is not written for them.
        raise (reason if reason is not None and modes.TWO_WAYS in str(reason) else error) from error


def _of_sizes(flavour: Flavour, model: Any) -> bool:
    """Whether tensors are made of sizes there, which are known, and so constants of a graph."""
    named = ((flavour.class_name(operation), args) for operation, args, *_ in flavour.nodes(model))
    return any(
        name in _MADE_OF_SIZES or (name in _REPEATS and not any(map(flavour.is_tensor, args[:1])))
        for name, args in named
    )


def expanded(
    flavour: Flavour,
    layer: Any,
    function: Callable[..., Any],
    symbols: Sequence[Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> Opened:
    """The calls that ``function`` makes in the place of a layer's; arguments as of :func:`opened`.

    Raises:
      ClosedError: it cannot be run on these tensors.
    """
    try:
        return Opened(_called(flavour, layer, function, symbols, args, kwargs, None), {})
    except Exception as error:  # of a Keras's own layer, for arguments that it has no calls for
        raise ClosedError(f"its call cannot take symbolic tensors: {short(error)}") from error


def _called(
    flavour: Flavour,
    layer: Any,
    function: Callable[..., Any],
    symbols: Sequence[Any],
    args: tuple,
    kwargs: dict[str, Any],
    inputs: Any,
) -> Any:
    """A functional model of what a function makes of the symbols."""
    given, options = _at((args, kwargs), symbols)
    with flavour.added_losses(layer) as losses:
        outputs = function(*given, **options)
    model = _model(flavour, layer, symbols, outputs, inputs)
    if not all(flavour.infers_sizes(operation) for operation, *_ in flavour.nodes(model)):
        raise ClosedError("its call computes with the size of the batch")
    for loss in losses:
        model.add_loss(loss)
    return model


def _model(flavour: Flavour, layer: Any, symbols: Sequence[Any], outputs: Any, inputs: Any) -> Any:
    """A functional model of results on symbols.

    Raises:
      ClosedError: a result depends on none of them.
    """
    if not all(flavour.is_tensor(leaf) for leaf in tf.nest.flatten(outputs)):
        raise ClosedError("its call returns a value that does not depend on its inputs")
    return flavour.keras.Model(
        list(symbols) if inputs is None else inputs, outputs, name=layer.name
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """Stands for one of the tensors that a layer is given."""

    index: int


def _at(structure: Any, tensors: Sequence[Any]) -> Any:
    return tf.nest.map_structure(
        lambda leaf: tensors[leaf.index] if isinstance(leaf, Place) else leaf, structure
    )


def _flags(layer: Any) -> tuple[bool | None, ...]:
    """The flags that a call is run with, training first."""
    return (True, False) if "training" in inside.parameters(layer) else (None,)


def _symbolic(
    flavour: Flavour,
    layer: Any,
    symbols: Sequence[Any],
    args: tuple,
    kwargs: dict[str, Any],
    inputs: Any,
) -> Opened:
    models = []
    variables = momentary.inside(flavour, layer)
    for mode in _flags(layer):
        options = kwargs if mode is None else kwargs | {"training": mode}
        tape = tf.GradientTape(persistent=True, watch_accessed_variables=False)
        try:
            with tape:
                tape.watch(variables)
                model = _called(flavour, layer, layer.call, symbols, args, options, inputs)
        except Exception as error:  # of a user's call: whatever it raises is the reason
            raise ClosedError(f"its call cannot take symbolic tensors: {short(error)}") from error
        if variables and momentary.read(flavour, model, variables, tape):
            raise ClosedError("its call computes with variables of a layer inside it")
        models.append(model)
    table = modes.Numbers()
    read = [
        _model_numbers(flavour, layer, model, symbols, table, bool(mode))
        for model, mode in zip(models, _flags(layer), strict=True)
    ]
    merged = modes.merged([calls for _, calls, _ in read], [outputs for outputs, _, _ in read])
    flags = {key: merged.get(number) for key, number in read[0][2].items()}
    return Opened(models[0], flags)


def _model_numbers(
    flavour: Flavour,
    layer: Any,
    model: Any,
    symbols: Sequence[Any],
    table: modes.Numbers,
    training: bool,
) -> tuple[Any, dict[int, list[Any]], dict[int, int]]:
    """As of a graph, of a functional model; and the numbers of its calls by their first results."""
    own = {id(part) for part in flavour.sublayers(layer)}
    known = {id(symbol): table(("argument", i)) for i, symbol in enumerate(symbols)}
    calls: dict[int, list[Any]] = {}
    numbers: dict[int, int] = {}

    def number(value: Any) -> int | None:
        return known.get(id(value))

    for part, args, kwargs, outputs in flavour.nodes(model):
        flat = tf.nest.flatten(outputs)
        if all(id(tensor) in known for tensor in flat):
            continue
        options = dict(kwargs)
        flag = options.pop("training", None)
        numbers[id(flat[0])] = -1  # follows the model
        if passes(flavour, part, flag and not training):
            source = next(t for t in tf.nest.flatten((args, options)) if flavour.is_tensor(t))
            known[id(flat[0])] = known[id(source)]
            continue
        kind = id(part) if id(part) in own else _kind(flavour, part)
        key = table((kind, modes.frozen(flavour, (args, options), number)))
        numbers[id(flat[0])] = key
        calls.setdefault(key, []).append(flag)
        known.update((id(tensor), table((key, i))) for i, tensor in enumerate(flat))
    return modes.frozen(flavour, flavour.structure(model)[1], number), calls, numbers


def _kind(flavour: Flavour, operation: Any) -> Any:
    """A key for a layer or an operation that the call has made itself: by what it is."""
    if flavour.is_layer(operation):
        try:
            config = dict(operation.get_config())
        except Exception:  # a layer without a configuration is only itself
            return id(operation)
        config.pop("name", None)
        return (type(operation), flavour.class_name(operation), repr(config))
    public = {k: v for k, v in vars(operation).items() if k[0] != "_" and k != "name"}
    return (type(operation), repr(public))


def _graph(
    flavour: Flavour,
    layer: Any,
    symbols: Sequence[Any],
    args: tuple,
    kwargs: dict[str, Any],
    shared: dict[Any, Any],
    inputs: Any,
) -> Opened:
    dtypes = [tf.as_dtype(symbol.dtype) for symbol in symbols]
    specs = [
        tf.TensorSpec(tuple(symbol.shape), dtype, name=f"argument_{i}")
        for i, (symbol, dtype) in enumerate(zip(symbols, dtypes, strict=True))
    ]
    blocks = [
        block.trace(flavour, layer, specs, lambda x: _at((args, dict(kwargs)), x), mode)
        for mode in (True, False)
    ]
    table = modes.Numbers()

    def frozen(value: Any, known: Mapping[Any, int]) -> Any:
        def number(leaf: Any) -> int | None:
            return known[leaf] if isinstance(leaf, block.Out) else None

        return modes.frozen(flavour, value, number)

    def skips(training: bool) -> Callable[[Any, Any], bool]:
        return lambda part, flag: passes(flavour, part, flag and not training)

    read = [
        block_numbers.numbers(each, table, frozen, skips(mode))
        for each, mode in zip(blocks, (True, False), strict=True)
    ]
    flags = [
        {key: [modes.plain(each.training) for each in found] for key, found in calls.items()}
        for _, calls in read
    ]
    merged = modes.merged(flags, [outputs for outputs, _ in read])
    by_call = {id(c): merged[n] for n, calls in read[0][1].items() for c in calls}
    outputs, fixed = block_layers.build(
        flavour, layer, blocks[0], symbols, lambda call: by_call.get(id(call)), shared
    )
    return Opened(_model(flavour, layer, symbols, outputs, inputs), dict(fixed))
