"""Build the new model, one call of the original's graph after the other."""

from __future__ import annotations

import collections
import functools
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import stack
from rewriter.kernels.codes import CLAMPS
from rewriter.reading import masks
from rewriter.reading.graph import UNQUANTIZED, Call, Graph, Ref, map_refs
from rewriter.reading.operations import Operation, is_floating
from rewriter.reading.roles import BatchNorm, Host, Input
from rewriter.rewriting import behaviours, layer_rules, left_behind, parts, placement, rules, ties
from rewriter.rewriting.jobs import Job, jobs
from rewriter.rewriting.layer_factory import LayerFactory
from rewriter.rewriting.recipe import Recipe

# What our layers take beside their input, of what the original was called with.
_ARGUMENTS: dict[type, tuple[str, ...]] = {
    Host: ("training",),
    BatchNorm: ("training", "mask"),
}


# Original and rewritten model may be parts of one: a teacher and its student.
_SUFFIX = "_quantized"


def _name(original: str) -> str:
    return original if original.endswith(_SUFFIX) else original + _SUFFIX


class Builder:
    """Makes a quantization-aware model of a graph and of what the rules decided."""

    def __init__(self, graph: Graph, decisions: list[rules.Decision], recipe: Recipe):
        self.graph = graph
        self.flavour = graph.flavour
        self.jobs = jobs(graph, decisions)
        outputs = graph.output_refs()
        self.names = self._names()
        self.placement = placement.place(
            [self._unit(job) for job in self.jobs],
            outputs,
            {job.call: self.names[id(job.layer)] for job in self.jobs},
        )
        self.calls_of = collections.Counter(id(job.layer) for job in self.jobs)
        groups = [*self.placement.after.values(), *self.placement.edges.values()]
        self.places = collections.Counter(id(group) for group in groups)
        self.new_layers: dict[int, Any] = {}  # id(original layer) -> new layer
        self.quantize_layers: dict[int, Any] = {}  # id(group) -> Quantize layer
        self.unnamed: set[int] = set()
        self.given: set[str] = set()  # the names of those
        self.factory = LayerFactory(graph.flavour, recipe)
        self.ends = layer_rules.ends(graph)
        self.floors = masks.floors(graph)
        self.ties = ties.Ties(self.graph, self.jobs, self.factory, self._named)
        self.tensors: dict[Ref, Any] = {}
        self.losses: list[tuple[Any, Any]] = []  # added to the model
        self.symbols: dict[Ref, Any] = {}  # the model's inputs, before they are quantized

    def _names(self) -> dict[int, str]:
        """A unique name for every layer: its own, or its path where that is taken."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for job in sorted(self.jobs, key=lambda job: "/" in job.path):
            if id(job.layer) in names:
                continue
            name = job.layer.name
            name = name if name not in taken else parts.unique(job.path.replace("/", "_"), taken)
            names[id(job.layer)] = name
            taken.add(name)
        self.taken = taken
        return names

    def _unit(self, job: Job) -> placement.Unit:
        call, behaviour = self.graph.calls[job.call], behaviours.behaviour(job.role)
        absorbs = behaviour.kind == behaviours.FREE
        if isinstance(job.role, Host):
            activation = behaviours.activation(job.role)
            if activation.kind == behaviours.FIXED:
                behaviour = activation
            absorbs = activation.kind in (behaviours.IDENTITY, behaviours.FREE)
        made = (Ref(job.call, i) for i, d in enumerate(call.dtypes) if is_floating(d))
        outputs = tuple(ref for ref in made if ref not in self.graph.whole)
        refs = Call.tensors((job.args, job.kwargs))
        if isinstance(job.role, Operation):
            refs = list(job.role.operands)
        own = id(job.layer), call.repeated
        return placement.Unit(job.call, behaviour, refs, outputs, absorbs, *own)

    @property
    def adds(self) -> bool:
        """Whether the new model has a layer of ours that the old one has not."""
        places = [*self.placement.after, *self.placement.edges]
        return bool(places) or any(
            isinstance(job.role, Host) or job.batch_norm is not None for job in self.jobs
        )

    # Building

    def build(self) -> Any:
        outputs = dict(zip(self.graph.output_refs(), self.graph.output_names, strict=True))
        # Layers that give their names to the Quantize layer after one of their calls.
        self.unnamed = {
            id(job.layer)
            for job in self.jobs
            if Ref(job.call) in self.placement.after
            and outputs.get(Ref(job.call)) == self.names[id(job.layer)]
        }
        handles = parts.Parts(self.graph, [job.call for job in self.jobs], self._named)
        for job in self.jobs:
            self._run(job, outputs)
            handles.mark(Ref(job.call), self.tensors)
            # Right away: a copied variable shares its memory with the original until one of them
            # changes, an initialised one has its own.
            self.factory.finish_copies()
        handles.name_members(self.new_layers)
        with stack.room_for(2 * len(self.jobs)):
            model = self.flavour.keras.Model(
                inputs=map_refs(self.graph.inputs, self.symbols.__getitem__),
                outputs=map_refs(self.graph.outputs, self.tensors.__getitem__),
                name=_name(self.graph.name),
            )
            for layer, value in self.losses:  # or metrics
                left_behind.add_again(model, layer, value)
        return model

    def _run(self, job: Job, outputs: dict[Ref, str]) -> None:
        ref = Ref(job.call)
        if self.flavour.is_added_loss(job.layer):
            self.tensors[ref] = self._arguments(job)[0][0]
            self.losses.append((job.layer, self.tensors[ref]))
            return
        output_name = outputs.get(ref)
        group = self.placement.after.get(ref)
        own_name = self.names[id(job.layer)]
        single = self.calls_of[id(job.layer)] == 1 and self.places[id(group)] == 1
        alone = group if single else None  # a quantizer that serves this call only
        clamp = self._clamp(job)
        hosted = isinstance(job.role, Host)
        if alone is not None and clamp != "none" and not hosted:
            # The activation and its quantizer in one layer, under the activation's name.
            args, kwargs = self._arguments(job)
            value = next(v for v in [*args, *kwargs.values()] if self.flavour.is_tensor(v))
            quantize = self._quantize_layer(alone, ref, own_name, clamp)
            quantize.activity_regularizer = getattr(job.layer, "activity_regularizer", None)
            self.tensors[ref] = quantize(value)
            return
        owned = None
        # What ties variables stands between the layer and the quantizer of its output.
        ends = (clamp != "none" or output_name == own_name) and not self.ties.stand_at(job)
        if alone is not None and hosted and ends:
            owned, group = self._quantize_layer(alone, ref, None, clamp), None
        # The name of an output belongs to the last layer before it.
        renamed = id(job.layer) in self.unnamed and owned is None
        last = self.ties.stand_at(job) and group is None and output_name == own_name
        rename = own_name + UNQUANTIZED if renamed or last else None
        layer = self._layer(job, owned, rename)
        lost = left_behind.regularizer(self.flavour, job.role, job.layer, layer)
        if isinstance(job.role, Input):
            tensor = self.symbols[ref] = layer.output
        else:
            args, kwargs = self._arguments(job)
            if lost is not None and alone is None:
                layer.activity_regularizer = lost
            tensor = layer(*args, **kwargs)
            if self.flavour.overrides_training and self.graph.calls[job.call].always is False:
                self.factory.freeze(layer)
        flat = self.ties.through(job, layer, tf.nest.flatten(tensor), own_name if last else None)
        for index, value in enumerate(flat):
            place = Ref(job.call, index)
            other = self.placement.after.get(place) if index else None
            if other is not None:
                value = self._quantize_layer(other, place)(value)
            self.tensors[place] = value
        if group is not None:
            name = output_name if output_name == own_name or self._free(output_name) else None
            if name in self.given:
                name = None  # a layer whose outputs are all called alike
            quantize = self._quantize_layer(group, ref, name)
            if alone is not None and lost is not None:
                quantize.activity_regularizer = lost
            self.tensors[ref] = quantize(flat[0])
        elif output_name and own_name != output_name and self._free(output_name):
            layers, whole = self.flavour.keras.layers, ref in self.graph.whole
            same = layers.Identity if whole else functools.partial(layers.Activation, "linear")
            self.taken.add(output_name)
            self.tensors[ref] = same(name=output_name)(self.tensors[ref])

    def _clamp(self, job: Job) -> str:
        """The fused activation that a layer applies last, or ``"none"``."""
        role, fused = job.role, behaviours.activation
        behaviour = fused(role) if isinstance(role, Host) else behaviours.behaviour(role)
        known = behaviour.kind == behaviours.CLAMP and behaviour.activation in CLAMPS
        return behaviour.activation or "none" if known else "none"

    def _free(self, name: str | None) -> bool:
        return name is not None and name not in self.taken

    def _arguments(self, job: Job) -> tuple[tuple, dict[str, Any]]:
        def tensor(ref: Ref) -> Any:
            group = self.placement.edges.get((job.call, ref))
            value, name = self.tensors[ref], self.names[id(job.layer)]
            value = value if group is None else self._quantize_layer(group, ref)(value)
            return self.factory.as_read(job.role, ref, value, name, self._named)

        args, kwargs = map_refs((job.args, dict(job.kwargs)), tensor)
        kept = _ARGUMENTS.get(type(job.role))
        if kept is not None:
            args = args or (kwargs["inputs"],)
            kwargs = {key: kwargs[key] for key in kept if kwargs.get(key) is not None}
        return args, kwargs

    def _quantize_layer(
        self, group: placement.Group, ref: Ref, name: str | None = None, clamp: str = "none"
    ) -> Any:
        layer = self.quantize_layers.get(id(group))
        if layer is None:
            name = name or self._unique(group.name)
            dtype = self.graph.calls[ref.call].dtypes[ref.index]
            given = ref in self.graph.input_refs()
            layer = self.factory.quantize(name, dtype, clamp, group.fixed, group.name, given)
            layer.floor = self.floors.get(ref)
            self.taken.add(layer.name)
            self.given.add(layer.name)
            self.quantize_layers[id(group)] = layer
        return layer

    def _unique(self, base: str) -> str:
        return parts.unique(f"{base}_quantize", self.taken)

    def _named(self, base: str) -> str:
        name = parts.unique(base, self.taken)
        self.taken.add(name)
        return name

    def _layer(self, job: Job, owned: Any, rename: str | None) -> Any:
        key = id(job.layer)
        if key not in self.new_layers:
            self.new_layers[key] = self._new_layer(job, owned, rename or self.names[key])
        return self.new_layers[key]

    def _new_layer(self, job: Job, owned: Any, name: str) -> Any:
        match job.role:
            case Host() as host:
                kind = behaviours.activation(host).kind
                fuses = kind in (behaviours.IDENTITY, behaviours.CLAMP)
                norm_path = self.graph.calls[job.call].path
                return self.factory.host(
                    host,
                    name,
                    job.path,
                    job.batch_norm,
                    norm_path,
                    owned,
                    fuses=fuses,
                    at_end=id(job.layer) in self.ends,
                )
            case BatchNorm():
                return self.factory.batch_norm(job.layer, name, job.path)
        new = self.factory.clone(job.layer, name)
        self.flavour.complete_shape(new, self.graph.calls[job.call].input_shapes)
        return new
