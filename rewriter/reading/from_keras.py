"""The front end for Keras models: their symbolic history becomes a call graph.

:mod:`rewriter.keras_compat` knows where a Keras keeps it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import Flavour, flavour_of
from rewriter.reading import chains, expansions, paddings_inside, roles
from rewriter.reading.graph import Call, Graph, Ref, map_refs

_PLAIN = (str, bytes, int, float, type(None))


def read(model: Any) -> Graph:
    """Read the call graph of a Sequential, functional, nested or traceable subclassed model.

    Raises:
      UnsupportedModelError: if the model is not built, or a subclassed model cannot be traced.
    """
    flavour = flavour_of(model)
    if not flavour.is_model(model):
        raise UnsupportedModelError(
            f"Expected a Keras model. Received: the layer {model.name!r}. "
            "Wrap it: Model(inputs, layer(inputs))."
        )
    names = getattr(model, "output_names", None)
    functional = _functional(flavour, model)
    reader = _Reader(flavour)
    inputs, outputs = flavour.structure(functional)
    reader.inline(functional, prefix="", env=reader.env, inherited={})
    graph_outputs = tf.nest.map_structure(lambda t: reader.env[id(t)], outputs)
    names = names or flavour.output_names(functional)
    graph = Graph(
        flavour=flavour,
        name=model.name,
        calls=reader.calls,
        inputs=tf.nest.map_structure(lambda t: reader.env[id(t)], inputs),
        outputs=graph_outputs,
        output_names=tuple(names),
        regularized=tuple(reader.regularized),
        reopened=reader.reopened,
    )
    chains.join(graph)
    return graph


def _functional(flavour: Flavour, model: Any) -> Any:
    """``model`` itself, or the functional model that its ``call`` traces into."""
    if flavour.is_functional(model):
        return model
    spec = flavour.input_spec_of(model)
    if spec is None:
        raise UnsupportedModelError(
            f"The model {model.name!r} has not been built: its input shape is unknown. "
            "Call it once on a batch of data, then rewrite it. If it has been called, Keras "
            "could not trace its call on symbolic inputs: write it with Keras layers and "
            "operations only, or build it with the functional API."
        )
    leaves = _is_spec
    inputs = _map_spec(
        spec, lambda s: flavour.keras.Input(shape=s[0][1:], dtype=s[1]), is_leaf=leaves
    )
    return _trace(flavour, model, (inputs,), {})


def _is_spec(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str)


def _map_spec(spec: Any, function: Callable, is_leaf: Callable[[Any], bool]) -> Any:
    if is_leaf(spec):
        return function(spec)
    if isinstance(spec, Mapping):
        return {key: _map_spec(value, function, is_leaf) for key, value in spec.items()}
    return [_map_spec(value, function, is_leaf) for value in spec]


def _trace(flavour: Flavour, model: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A functional model that makes the calls that ``model.call`` makes."""
    try:
        with flavour.added_losses(model) as losses:
            outputs = model.call(*args, **kwargs)
        functional = flavour.keras.Model(args[0], outputs, name=model.name)
        for loss in losses:
            functional.add_loss(loss)
        return functional
    except Exception as error:
        raise UnsupportedModelError(
            f"The subclassed model {model.name!r} ({type(model).__qualname__}) cannot be traced "
            f"on symbolic inputs: {error}. Write its call with Keras layers and operations only "
            "(no Python control flow on tensor values), or build it with the functional API."
        ) from error


class _Reader:
    def __init__(self, flavour: Flavour):
        self.flavour = flavour
        self.calls: list[Call] = []
        self.env: dict[int, Ref] = {}  # id of a symbolic tensor -> where it comes from
        self.regularized: list[str] = []
        self.reopened = False
        self._masked: set[Ref] = set()
        self._keep: list[Any] = []  # traced models: their tensors' ids must stay unique

    def inline(
        self, model: Any, prefix: str, env: dict[int, Ref], inherited: dict[str, Any]
    ) -> None:
        """Append the calls of ``model``; ``env`` maps its tensors and holds its inputs if bound."""
        self._keep.append(model)
        for layer, args, kwargs, outputs in self.flavour.nodes(model):
            flat = tf.nest.flatten(outputs)
            if all(id(t) in env for t in flat):
                continue  # an input of a nested model, bound by the caller
            args = tuple(self._resolve(value, env) for value in args)
            kwargs = {key: self._resolve(value, env) for key, value in kwargs.items()}
            path = prefix + layer.name
            if self.flavour.is_model(layer):
                refs = self._nested(layer, path, args, {**inherited, **kwargs})
            else:
                for key, value in inherited.items():
                    if kwargs.get(key) is None and _accepts(layer, key):
                        kwargs[key] = value
                refs = self._opened(layer, path, args, kwargs, flat) or self._kept(
                    layer, path, args, kwargs, flat
                )
            for tensor, ref in zip(flat, refs, strict=True):
                env[id(tensor)] = ref

    def _resolve(self, structure: Any, env: dict[int, Ref]) -> Any:
        def leaf(value: Any) -> Any:
            return env[id(value)] if self.flavour.is_tensor(value) else value

        # Most arguments are not nested, and to find that out takes as long as all the rest.
        plain = self.flavour.is_tensor(structure) or isinstance(structure, _PLAIN)
        return leaf(structure) if plain else tf.nest.map_structure(leaf, structure)

    def _kept(
        self, layer: Any, path: str, args: tuple, kwargs: dict[str, Any], outputs: list[Any]
    ) -> list[Ref]:
        refs = self._append(layer, path, args, kwargs, outputs)
        return self._replaced(self.calls[-1]) or refs

    def _append(
        self, layer: Any, path: str, args: tuple, kwargs: dict[str, Any], outputs: list[Any]
    ) -> list[Ref]:
        index = len(self.calls)
        shapes = tuple(tuple(t.shape) for t in outputs)
        dtypes = tuple(tf.as_dtype(t.dtype).name for t in outputs)
        call = Call(layer, path, args, kwargs, shapes, dtypes)
        read = call.refs
        call.input_shapes = tuple(self.calls[ref.call].shapes[ref.index] for ref in read)
        call.input_dtypes = tuple(self.calls[ref.call].dtypes[ref.index] for ref in read)
        carried = any(ref in self._masked for ref in read)
        call.masked = carried or isinstance(kwargs.get("mask"), Ref)
        call.role = roles.classify(self.flavour, call)
        self.calls.append(call)
        refs = [Ref(index, i) for i in range(len(outputs))]
        passed_on = carried and getattr(layer, "supports_masking", False)
        for ref, tensor in zip(refs, outputs, strict=True):
            if passed_on or self.flavour.is_masked(tensor):
                self._masked.add(ref)
        return refs

    def _opened(
        self, layer: Any, path: str, args: tuple, kwargs: dict[str, Any], outputs: list[Any]
    ) -> list[Ref] | None:
        """The calls inside a user's layer that holds normalizations, if it can be traced.

        Only where all its variables belong to layers inside it: they go on as those layers'.
        """
        flavour = self.flavour
        padding = paddings_inside.padding(flavour, layer, args, kwargs, outputs, self.calls)
        if padding is not None:
            return self._append(padding[0], path, *padding[1:], outputs)
        if (
            flavour.is_ours(layer)
            or flavour.class_name(layer)
            or not any(flavour.is_batch_norm(inner) for inner in flavour.sublayers(layer))
        ):
            return None
        if flavour.own_variables(layer):
            return None
        return self._traced(layer, path, args, kwargs, layer.call)

    def _replaced(self, call: Call) -> list[Ref] | None:
        """The calls inside a layer that is several, the last call so far, in its place.

        Only where each of them has an integer form, or there are normalizations among them, and
        the layer does nothing else, and has no variables of its own.
        """
        layer, flavour = call.layer, self.flavour
        if not isinstance(call.role, roles.Opaque):
            return None
        stock = expansions.function(flavour, call)
        function = stock or expansions.of_user(flavour, call)
        if (
            function is None
            or getattr(layer, "activity_regularizer", None) is not None
            or any(dtype != getattr(layer, "compute_dtype", dtype) for dtype in call.input_dtypes)
            or (flavour.is_layer(layer) and flavour.own_variables(layer))
        ):
            return None
        self.calls.pop()
        before, regularized = len(self.calls), len(self.regularized)
        refs = self._traced(layer, call.path, call.args, call.kwargs, function, losses=False)
        added = [each.role for each in self.calls[before:]]
        normalizes = stock is not None and any(isinstance(r, roles.BatchNorm) for r in added)
        whole = normalizes or not any(isinstance(role, roles.Opaque) for role in added)
        if refs is not None and whole and len(refs) == len(call.shapes):
            return refs
        del self.calls[before:], self.regularized[regularized:]
        self.calls.append(call)
        return None

    def _traced(
        self,
        layer: Any,
        path: str,
        args: tuple,
        kwargs: dict[str, Any],
        function: Callable[..., Any],
        losses: bool = True,
    ) -> list[Ref] | None:
        """The calls that a layer makes, appended; None if it cannot be traced.

        ``function``: makes them. ``losses``: whether it may add some.
        """
        flavour = self.flavour
        refs = list(dict.fromkeys(Call.tensors((args, kwargs))))
        symbols = {}
        for ref in refs:
            call = self.calls[ref.call]
            shape = call.shapes[ref.index]
            symbols[ref] = flavour.keras.Input(
                shape=shape[1:], batch_size=shape[0], dtype=call.dtypes[ref.index]
            )
        symbolic, options = map_refs((args, kwargs), symbols.__getitem__)
        options.pop("training", None)
        try:
            with flavour.added_losses(layer) as added:
                outputs = function(*symbolic, **options)
            model = flavour.keras.Model(list(symbols.values()), outputs)
            for loss in added:
                model.add_loss(loss)
        except Exception:
            return None  # it stays one call, and normalizations inside it are refused by name
        if added and not losses:
            return None
        env = {id(tensor): ref for tensor, ref in zip(tf.nest.flatten(model.inputs), refs,
                                                      strict=True)}  # fmt: skip
        if getattr(layer, "activity_regularizer", None) is not None:
            self.regularized.append(path)
        training = kwargs.get("training")
        self.inline(model, path + "/", env, {} if training is None else {"training": training})
        return [env[id(t)] for t in tf.nest.flatten(flavour.structure(model)[1])]

    def _nested(self, model: Any, path: str, args: tuple, kwargs: dict[str, Any]) -> list[Ref]:
        # `training` and `mask` given to a nested model hold for the layers inside it.
        inherited = {k: v for k, v in kwargs.items() if k == "training" and v is not None}
        read = args[0] if args else kwargs.get("inputs")
        given = tf.nest.flatten(read)
        if not self.flavour.is_functional(model):
            model = _functional(self.flavour, model)
        inputs, outputs = self.flavour.structure(model)
        if isinstance(inputs, Mapping) and isinstance(read, Mapping):
            given = [read[key] for key in sorted(inputs)]
        flat_inputs = tf.nest.flatten(inputs)
        if len(given) != len(flat_inputs):
            raise UnsupportedModelError(
                f"The nested model {path!r} takes {len(flat_inputs)} inputs. "
                f"Received: {len(given)}."
            )
        env: dict[int, Ref] = {
            id(tensor): ref for tensor, ref in zip(flat_inputs, given, strict=True)
        }
        for tensor, ref in zip(flat_inputs, given, strict=True):
            outer = self.calls[ref.call].shapes[ref.index]
            sizes = zip(tuple(tensor.shape)[1:], outer[1:], strict=False)
            self.reopened |= any(inner is None and size is not None for inner, size in sizes)
        self.inline(model, path + "/", env, inherited)
        return [env[id(t)] for t in tf.nest.flatten(outputs)]


def _accepts(layer: Any, argument: str) -> bool:
    try:
        return argument in inspect.signature(layer.call).parameters
    except (TypeError, ValueError):  # a callable without a readable signature takes no extras
        return False
