"""The front end for Keras models: their symbolic history becomes a call graph.

:mod:`rewriter.keras_compat` knows where a Keras keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import Flavour, flavour_of
from rewriter.reading import chains, expansions, inside, models, opening, paddings_inside, roles
from rewriter.reading.graph import Call, Graph, Ref, map_refs
from rewriter.reading.known_sizes import KnownSizes
from rewriter.reading.reasons import note

_PLAIN = (str, bytes, int, float, type(None))


def read(model: Any, steps: bool = False) -> Graph:
    """Read the call graph of a Sequential, functional, nested or traceable subclassed model.

    ``steps``: read recurrent layers as the calls of their steps, as the original's are.

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
    functional, flags = models.functional(flavour, model)
    reader = _Reader(flavour, steps)
    reader.inline(functional, "", reader.env, {}, flags)
    ends = tf.nest.map_structure(lambda t: reader.env[id(t)], flavour.structure(functional))
    graph = Graph(
        flavour=flavour,
        name=model.name,
        calls=reader.calls,
        inputs=ends[0],
        outputs=ends[1],
        output_names=tuple(names or flavour.output_names(functional)),
        regularized=tuple(reader.regularized),
        reopened=reader.reopened,
        parts=reader.nests.parts(reader.calls),
    )
    chains.join(graph)
    return graph


class _Reader:
    def __init__(self, flavour: Flavour, steps: bool):
        self.flavour, self._steps, self.reopened = flavour, steps, False
        self.calls: list[Call] = []
        self.env: dict[int, Ref] = {}  # id of a symbolic tensor -> where it comes from
        self.regularized: list[str] = []
        self._masked: set[Ref] = set()
        self.nests, self._sizes = models.Nests(), KnownSizes(flavour)
        self._keep: list[Any] = []  # traced models: their tensors' ids must stay unique
        self._reasons: dict[int, str] = {}  # by id of a layer: why it is not opened
        self._shared: dict[int, dict[Any, Any]] = {}  # by id of an opened layer: its new layers

    def inline(
        self,
        model: Any,
        prefix: str,
        env: dict[int, Ref],
        inherited: dict[str, Any],
        flags: models.Flags = None,
        always: bool = False,
    ) -> None:
        """Append the calls of ``model``.

        Args:
          model: a functional one.
          prefix: before the names of its layers.
          env: where its tensors come from; holds its inputs if they are bound.
          inherited: ``training``, if the model is called with it.
          flags: the ``training`` of the calls of an opened layer.
          always: whether it is a user's code that gives the inherited flag.
        """
        self._keep.append(model)
        for layer, args, kwargs, outputs in self.flavour.nodes(model):
            flat = tf.nest.flatten(outputs)
            if all(id(t) in env for t in flat):
                continue  # an input of a nested model, bound by the caller
            args = tuple(self._resolve(value, env) for value in args)
            if self.flavour.passes_on(layer):
                if getattr(layer, "members", ()):  # of a nested model
                    self.nests.handles.append(layer)
                env[id(flat[0])] = tf.nest.flatten(args[0])[0]
                continue
            kwargs = {key: self._resolve(value, env) for key, value in kwargs.items()}
            path = prefix + layer.name
            models.refuse(self.flavour, layer, path)
            own = False
            if flags is not None and id(flat[0]) in flags:
                flag = flags[id(flat[0])]
                kwargs.pop("training", None)
                if flag is not None:
                    kwargs["training"], own = flag, True
            held = own or (always and "training" not in kwargs)
            if self.flavour.is_model(layer):
                refs = self._nested(layer, path, args, {**inherited, **kwargs}, held)
            else:
                for key, value in inherited.items():
                    if kwargs.get(key) is None and key in inside.parameters(layer):
                        kwargs[key] = value
                held = held and "training" in kwargs
                refs = (
                    self._opened(layer, path, args, kwargs, flat, held)
                    or (models.passed_on(self.flavour, layer, path, args, kwargs) if held else None)
                    or self._kept(layer, path, args, kwargs, flat, held)
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
        self,
        layer: Any,
        path: str,
        args: tuple,
        kwargs: dict[str, Any],
        outputs: list[Any],
        held: bool = False,
    ) -> list[Ref]:
        refs = self._append(layer, path, args, kwargs, outputs)
        call, always = self.calls[-1], kwargs["training"] if held else None
        call.always, call.closed = always, self._reasons.pop(id(layer), call.closed)
        return self._replaced(call) or refs

    def _append(
        self, layer: Any, path: str, args: tuple, kwargs: dict[str, Any], outputs: list[Any]
    ) -> list[Ref]:
        index = len(self.calls)
        shapes = models.shapes(path, outputs)
        dtypes = tuple(tf.as_dtype(t.dtype).name for t in outputs)
        call = Call(layer, path, *self._sizes.filled(layer, args, kwargs), shapes, dtypes)
        read = call.refs
        call.input_shapes = tuple(self.calls[ref.call].shapes[ref.index] for ref in read)
        call.input_dtypes = tuple(self.calls[ref.call].dtypes[ref.index] for ref in read)
        carried = any(ref in self._masked for ref in read)
        call.masked = carried or isinstance(kwargs.get("mask"), Ref)
        call.role = roles.classify(self.flavour, call)
        self.calls.append(call)
        self._sizes.note(call, refs := [Ref(index, i) for i in range(len(outputs))])
        passed_on = carried and getattr(layer, "supports_masking", False)
        for ref, tensor in zip(refs, outputs, strict=True):
            if passed_on or self.flavour.is_masked(tensor):
                self._masked.add(ref)
        return refs

    def _opened(
        self,
        layer: Any,
        path: str,
        args: tuple,
        kwargs: dict[str, Any],
        outputs: list[Any],
        held: bool,
    ) -> list[Ref] | None:
        """The calls inside a user's layer that holds normalizations, if it can be opened.

        ``held``: whether its ``training`` is given by a user's code.
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
        if inside.masks(flavour, layer):
            self._reasons[id(layer)] = "it makes a mask of its own"
            return None
        return self._traced(layer, path, args, kwargs, held=held)

    def _replaced(self, call: Call) -> list[Ref] | None:
        """The calls inside a layer that is several, the last call so far, in its place.

        Only where each has an integer form, or a stock layer has normalizations among them, and
        the layer does nothing else.
        """
        layer, flavour = call.layer, self.flavour
        if not isinstance(call.role, roles.Opaque):
            return None
        made = self._shared.setdefault(id(layer), {}) if self._steps else None
        stock = expansions.function(flavour, call, made)
        if stock is None and not inside.may_be_replaced(flavour, call):
            return None
        self.calls.pop()
        before, regularized = len(self.calls), len(self.regularized)
        refs = self._traced(layer, call.path, call.args, call.kwargs, losses=False, function=stock)
        added = [each.role for each in self.calls[before:]]
        normalizes = stock is not None and any(isinstance(r, roles.BatchNorm) for r in added)
        whole = normalizes or not roles.opaque(self.calls, refs or [], before)
        if refs is not None and whole and len(refs) == len(call.shapes):
            expansions.mark(flavour, layer, self.calls[before:])
            return refs
        note(flavour, call, self._reasons.pop(id(layer), ""), self.calls[before:])
        del self.calls[before:], self.regularized[regularized:]
        self.calls.append(call)
        return None

    def _traced(
        self,
        layer: Any,
        path: str,
        args: tuple,
        kwargs: dict[str, Any],
        losses: bool = True,
        held: bool = False,
        function: expansions.Function | None = None,
    ) -> list[Ref] | None:
        """The calls that a layer makes, appended; None if it cannot be opened.

        Args:
          layer, path, args, kwargs: of the call.
          losses: whether it may add some.
          held: whether its ``training`` is given by a user's code.
          function: makes the calls; None: the layer's own ``call``.
        """
        flavour = self.flavour
        refs, symbols = list(dict.fromkeys(Call.tensors((args, kwargs)))), []
        for ref in refs:
            call = self.calls[ref.call]
            shape = call.shapes[ref.index]
            if not shape:
                self._reasons[id(layer)] = "it reads one number of all samples"
                return None
            make = flavour.keras.Input
            symbols.append(make(shape=shape[1:], batch_size=shape[0], dtype=call.dtypes[ref.index]))
        places = {ref: opening.Place(i) for i, ref in enumerate(refs)}
        symbolic, options = map_refs((args, kwargs), places.__getitem__)
        training = options.pop("training", None)
        try:
            if function is None:
                shared = self._shared.setdefault(id(layer), {})
                found = opening.opened(flavour, layer, symbols, symbolic, options, shared)
            else:
                found = opening.expanded(flavour, layer, function, symbols, symbolic, options)
        except opening.ClosedError as error:
            # It stays one call, and normalizations inside it are refused by name.
            self._reasons[id(layer)] = str(error)
            return None
        model = found.model
        if not losses and any(flavour.is_added_loss(n[0]) for n in flavour.nodes(model)):
            return None
        env = {id(t): ref for t, ref in zip(tf.nest.flatten(model.inputs), refs, strict=True)}
        if getattr(layer, "activity_regularizer", None) is not None:
            self.regularized.append(path)
        flag = {} if training is None else {"training": training}
        self.inline(model, path + "/", env, flag, found.flags, held)
        return [env[id(t)] for t in tf.nest.flatten(flavour.structure(model)[1])]

    def _nested(
        self, model: Any, path: str, args: tuple, kwargs: dict[str, Any], held: bool
    ) -> list[Ref]:
        # `training` and `mask` given to a nested model hold for the layers inside it.
        inherited = {k: v for k, v in kwargs.items() if k == "training" and v is not None}
        read = args[0] if args else kwargs.get("inputs")
        given = tf.nest.flatten(read)
        nested = model
        model, flags = models.functional(self.flavour, model)
        inputs, outputs = self.flavour.structure(model)
        if isinstance(inputs, Mapping) and isinstance(read, Mapping):
            given = [read[key] for key in sorted(inputs)]
        flat_inputs = tf.nest.flatten(inputs)
        if len(given) != len(flat_inputs):
            raise UnsupportedModelError(
                f"The nested model {path!r} takes {len(flat_inputs)} inputs. "
                f"Received: {len(given)}."
            )
        env = {id(tensor): ref for tensor, ref in zip(flat_inputs, given, strict=True)}
        for tensor, ref in zip(flat_inputs, given, strict=True):
            outer = self.calls[ref.call].shapes[ref.index]
            sizes = zip(tuple(tensor.shape)[1:], outer[1:], strict=False)
            self.reopened |= any(inner is None and size is not None for inner, size in sizes)
        before = len(self.calls)
        self.inline(model, path + "/", env, inherited, flags, held)
        self.nests.add(nested, range(before, len(self.calls)))
        return [env[id(t)] for t in tf.nest.flatten(outputs)]
