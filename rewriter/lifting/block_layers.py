"""The layers that the graph of a user's layer is: its operators, and the layers that it calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from rewriter.errors import LoadError, short
from rewriter.keras_compat import Flavour, sharing
from rewriter.lifting import lift, operation, operators
from rewriter.lifting.block import Block, ClosedError, Inner
from rewriter.lifting.builder import Builder
from rewriter.lifting.graph import Out
from rewriter.lifting.values import Known, Repeated, Symbol


def build(
    flavour: Flavour,
    layer: Any,
    block: Block,
    symbols: Sequence[Any],
    flag: Callable[[Inner], bool | None],
    shared: dict[Any, Any],
) -> tuple[Any, dict[int, bool]]:
    """The layers that a graph is, called on symbolic tensors.

    Args:
      flavour: the Keras.
      layer: whose graph it is.
      block: the graph.
      symbols: the arguments.
      flag: which ``training`` a call inside is always given; None if it follows the model.
      shared: the layers that were made of the same layer before; new ones are added.

    Returns:
      the results, nested as the call returns them; and by the identity of the first result of
      a call inside: the flag that it is always given.

    Raises:
      ClosedError: an operator cannot be a layer.
    """
    builder = Builder(block.graph, flavour, "its call", operation.of(flavour), trains=True)
    builder.share(shared)
    for part in flavour.sublayers(layer):
        others = map(flavour.tf_variable, flavour.own_variables(part))
        builder.read_by.update((id(variable), layer.name) for variable in others)
    fixed: dict[int, bool] = {}
    done: set[int] = set()

    def tensor(value: Any) -> Any:
        if not isinstance(value, Out):
            return value
        known = builder.value(value)
        if isinstance(known, Repeated):
            return _for_every_sample(builder, value, known.row, symbols)
        if isinstance(known, Known):
            if known.variable is not None:
                raise ClosedError("its call hands a variable of its own to a layer inside it")
            return known.array
        if not isinstance(known, Symbol) or known.rows:
            raise ClosedError("its call hands rows of several samples to a layer inside it")
        return known.tensor

    try:
        for number, symbol in zip(block.arguments, symbols, strict=True):
            builder.set(Out(number), Symbol(symbol))
        for number in range(len(block.graph.nodes)):
            if number not in block.inner:
                lift.visit(builder, number)
            elif number not in done:
                inner = block.inner[number]
                args, kwargs = tf.nest.map_structure(tensor, (inner.args, inner.kwargs))
                always = flag(inner)
                if always is not None:
                    kwargs["training"] = always
                made = tf.nest.flatten(_called(flavour, inner, args, kwargs))
                for out, value in zip(tf.nest.flatten(inner.outputs), made, strict=True):
                    builder.set(out, Symbol(value))
                    done.add(out.node)
                if always is not None:
                    fixed[id(made[0])] = always
        outputs = tf.nest.map_structure(tensor, block.outputs)
        builder.assign()
        _hold(flavour, layer, builder.weighted)
        divided = builder.divided()
        if divided:
            raise ClosedError(
                f"its call reads its variable {divided[0]!r} in several places, which would be "
                "weights of their own"
            )
    except ClosedError:
        raise
    except LoadError as error:
        raise ClosedError(str(error).partition(". ")[0]) from error
    _set_trainable(flavour, layer, builder.weighted)
    return outputs, fixed


def _for_every_sample(builder: Builder, out: Out, row: Known, symbols: Sequence[Any]) -> Any:
    """A row that each sample has, as learned queries are: zeros of the sample, and the row added.

    Raises:
      ClosedError: no argument has the type of the row, or axes beside that of the samples.
    """
    flavour, node = builder.flavour, builder.graph.nodes[out.node]
    dtype, rank = row.array.dtype.name, row.array.ndim
    fits = (s for s in symbols if tf.as_dtype(s.dtype).name == dtype and len(s.shape) > 1)
    given = next(fits, None)
    if given is None or rank < 2:
        raise ClosedError("its call hands a value of its own to a layer inside it")
    first = (slice(None), *[slice(0, 1)] * (len(given.shape) - 1))
    one = given[first]
    if len(given.shape) != rank:
        one = flavour.function("reshape")(one, (-1, *[1] * (rank - 1)))
    zero = builder.apply(node, builder.layers.Rescaling, one, scale=0.0)
    add = tf.compat.v1.NodeDef(op="AddV2")
    add.attr["T"].type = tf.as_dtype(dtype).as_datatype_enum
    return builder.apply(
        node,
        operation.of(flavour),
        [zero],
        {"operand_1": row},
        operator=operators.to_json(add),
        constants={},
        operands={"1": operators.operand(row.array, row.variable)},
    )


def _called(flavour: Flavour, inner: Inner, args: Any, kwargs: dict[str, Any]) -> Any:
    """What a layer inside the call makes of these tensors.

    Raises:
      ClosedError: it takes none such.
    """
    try:
        return _run(flavour, inner.layer, args, kwargs)
    except Exception as error:  # of a Keras, or a user's class: whatever it raises is the reason
        raise ClosedError(
            f"its call of {inner.layer.name!r} cannot be made on symbolic tensors: {short(error)}"
        ) from error


def _run(flavour: Flavour, layer: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """What a layer makes of symbolic tensors.

    A model that was built for other sizes is run layer by layer: it computes with tensors of any
    size, and takes no symbolic ones but of its own.
    """
    try:
        return layer(*args, **kwargs)
    except ValueError:
        given = [value for value in kwargs.values() if value is not None]
        if not flavour.is_model(layer) or not flavour.is_functional(layer) or given:
            raise
    inputs, outputs = flavour.structure(layer)
    symbols = map(id, tf.nest.flatten(inputs))
    tensors = dict(zip(symbols, tf.nest.flatten(args), strict=True))
    for part, part_args, part_kwargs, results in flavour.nodes(layer):
        keys = [id(result) for result in tf.nest.flatten(results)]
        if not all(key in tensors for key in keys):
            own = tf.nest.map_structure(
                lambda leaf: tensors[id(leaf)] if flavour.is_tensor(leaf) else leaf,
                (part_args, part_kwargs),
            )
            made = tf.nest.flatten(_run(flavour, part, *own))
            tensors.update(zip(keys, made, strict=True))
    return tf.nest.map_structure(lambda result: tensors[id(result)], outputs)


def _hold(
    flavour: Flavour, layer: Any, weighted: Sequence[tuple[Any, Mapping[str, Known]]]
) -> None:
    """Have the new layers hold the variables of ``layer`` themselves, where they show them as is.

    Another layer may hold the same, which can be seen then. A weight of another shape or order of
    axes is one of its own, which has the values that :meth:`Builder.assign` has given it; the layer
    says of which variables (:func:`rewriter.keras_compat.sharing.mark`).
    """
    held = {id(flavour.tf_variable(variable)): variable for variable in layer.variables}
    for new, weights in weighted:
        for attribute, known in weights.items():
            own, original = getattr(new, attribute), held.get(id(known.variable))
            if original is None or own is original:
                continue
            alike = tuple(own.shape) == tuple(original.shape) and own.dtype == original.dtype
            if alike and not known.view:
                sharing.put(new, own, original)
            else:
                sharing.mark(new, id(known.variable))


def _set_trainable(
    flavour: Flavour, layer: Any, weighted: Sequence[tuple[Any, Mapping[str, Known]]]
) -> None:
    """Let the new layers train as the variables do that they have.

    Raises:
      ClosedError: a layer has some that train and some that do not.
    """
    trained = {id(flavour.tf_variable(v)) for v in layer.trainable_variables}
    for new, weights in weighted:
        fixed = getattr(new, "fixed", ())  # whatever the layer's flag
        flags = {
            k.variable is not None and id(k.variable) in trained
            for attribute, k in weights.items()
            if attribute not in fixed
        }
        if len(flags) > 1:
            raise ClosedError(f"of the weights of {new.name!r} in its call some train, others not")
        if flags == {False}:
            new.trainable = False
