"""What happens to every batch normalization of a graph: fused, standalone or refused, and why.

Each rule looks at one thing and either returns None or explains itself; the plan shows the
explanation to the user. One sweep over the calls; every call is claimed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.reading.graph import Call, Graph, Ref
from rewriter.reading.roles import BatchNorm, Host, Ours

FUSED, STANDALONE, REFUSED = "fused", "standalone", "refused"


@dataclasses.dataclass(eq=False)
class Decision:
    """What happens to one BatchNormalization layer.

    Attributes:
      layer: the stock layer.
      path: its name with the models around it.
      calls: the indices of its calls.
      action: ``"fused"``, ``"standalone"`` or ``"refused"``.
      reason: why; for a refusal with the remedy.
      hosts: for fused: call index of the host for each call in ``calls``.
    """

    layer: Any
    path: str
    calls: list[int]
    action: str
    reason: str
    hosts: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class _Scene:
    graph: Graph
    consumers: dict[Ref, list[int]]
    outputs: set[Ref]
    calls_of: dict[int, list[int]]  # id(layer) -> call indices


def decide(graph: Graph) -> list[Decision]:
    """One decision for every BatchNormalization layer, in the order of their first calls."""
    calls_of: dict[int, list[int]] = {}
    for index, call in enumerate(graph.calls):
        calls_of.setdefault(id(call.layer), []).append(index)
    scene = _Scene(graph, graph.consumers(), set(graph.output_refs()), calls_of)
    decisions = []
    for indices in calls_of.values():
        first = graph.calls[indices[0]]
        if isinstance(first.role, Ours):
            continue  # done
        if isinstance(first.role, BatchNorm):
            decisions.append(_decide(scene, first, indices))
        else:
            decisions += _hidden(graph.flavour, first, indices)
    return decisions


def _hidden(flavour: Flavour, first: Call, indices: list[int]) -> list[Decision]:
    """The normalizations inside a layer whose call cannot be seen: a wrapper, or a user's."""
    return [
        Decision(
            inner,
            f"{first.path}/{inner.name}",
            indices,
            REFUSED,
            f"it is inside {type(first.layer).__name__} {first.path!r}, whose call "
            + (f"cannot be opened: {first.closed}" if first.closed else "is not part of the graph")
            + "; make that layer a model, or call the normalization in the model itself",
        )
        for inner in flavour.sublayers(first.layer)
        if flavour.is_batch_norm(inner)
    ]


def _decide(scene: _Scene, first: Call, indices: list[int]) -> Decision:
    decision = Decision(first.layer, first.path, indices, STANDALONE, "")
    refusal = _first(
        rule(scene.graph.flavour, first.layer, [scene.graph.calls[i] for i in indices])
        for rule in _REFUSALS
    )
    if refusal:
        decision.action, decision.reason = REFUSED, refusal
        return decision
    hosts = [_producer(scene, index) for index in indices]
    reason = _first(rule(scene, first, indices, hosts) for rule in _OBSTACLES)
    if reason:
        decision.reason = reason
        return decision
    host = scene.graph.calls[hosts[0]]
    decision.action = FUSED
    decision.hosts = hosts
    decision.reason = f"follows {type(host.layer).__name__} {host.path!r}, its only consumer"
    return decision


def _first(reasons: Iterable[str | None]) -> str | None:
    return next((reason for reason in reasons if reason), None)


def _host(call: Call) -> Host:
    if not isinstance(call.role, Host):
        raise LookupError(f"{call.path!r} is not a host.")
    return call.role


def _producer(scene: _Scene, index: int) -> int:
    return scene.graph.calls[index].refs[0].call


# Refusals: arguments that our layer does not compute.


def _refuse_axes(flavour: Flavour, layer: Any, calls: list[Call]) -> str | None:
    axis = layer.axis
    if isinstance(axis, int) or len(axis) == 1:
        return None
    return f"it normalizes over several axes ({list(axis)}); reshape to a single channel axis"


def _refuse_variants(flavour: Flavour, layer: Any, calls: list[Call]) -> str | None:
    for argument in ("renorm", "virtual_batch_size", "adjustment"):
        if getattr(layer, argument, None):
            return f"{argument}={getattr(layer, argument)!r} is not supported; train with it unset"
    return None


def _refuse_training(flavour: Flavour, layer: Any, calls: list[Call]) -> str | None:
    for call in calls:
        flags = [call.kwargs.get("training"), *call.args[1:2]]
        if any(isinstance(flag, Ref) for flag in flags):
            return "it is called with a symbolic training flag; call it with True, False or none"
    return None


def _refuse_always(flavour: Flavour, layer: Any, calls: list[Call]) -> str | None:
    if not flavour.overrides_training or all(call.always is None for call in calls):
        return None
    flags = {call.always for call in calls}
    if flags == {False}:
        return None
    given = "True" if flags == {True} else "different flags in several calls"
    return (
        f"the layer around it calls it with training={given}, which a functional model of Keras 3 "
        "would not keep; call it without the argument, or always with False"
    )


def _refuse_subclass(flavour: Flavour, layer: Any, calls: list[Call]) -> str | None:
    known = (flavour.keras.__name__.split(".")[0], __name__.split(".")[0])
    if type(layer).__module__.split(".")[0] in known or flavour.class_name(layer):
        return None
    return (
        f"{type(layer).__qualname__} is a subclass that computes in a way of its own; "
        "use the stock BatchNormalization"
    )


_REFUSALS: tuple[Callable[[Flavour, Any, list[Call]], str | None], ...] = (
    _refuse_subclass,
    _refuse_axes,
    _refuse_variants,
    _refuse_training,
    _refuse_always,
)


# Obstacles to fusing: the normalization stands alone, with the fused kernel.


def _no_host(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    for index in hosts:
        call = scene.graph.calls[index]
        if not isinstance(call.role, Host):
            return f"follows {type(call.layer).__name__} {call.path!r}, which is not a linear host"
    return None


def _nonlinear(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    call = scene.graph.calls[hosts[0]]
    found = _host(call)
    activation = getattr(found.layer.activation, "__name__", type(found.layer.activation).__name__)
    if found.layer.activation is not None and activation != "linear":
        return f"follows {call.path!r}, which applies the activation {activation!r} first"
    return None


def _shared(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    host = scene.graph.calls[hosts[0]]
    if any(scene.graph.calls[i].layer is not host.layer for i in hosts):
        return "it is shared by calls that follow different layers"
    if sorted(scene.calls_of[id(host.layer)]) != sorted(set(hosts)):
        return f"its host {host.path!r} is also called where no normalization follows"
    return None


def _used_elsewhere(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    for index in hosts:
        call = scene.graph.calls[index]
        ref = Ref(index)
        if len(scene.consumers.get(ref, [])) != 1:
            return f"the output of {call.path!r} has other consumers"
        if ref in scene.outputs:
            return f"the output of {call.path!r} is also an output of the model"
    return None


def _wrong_axis(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    call = scene.graph.calls[hosts[0]]
    rank = len(call.shapes[0])
    if _host(call).row.name == "EinsumDense" and len(_host(call).row.kernels[0].channel_axes) > 1:
        return f"the kernel of {call.path!r} has its channels on several axes"
    axis = first.layer.axis
    axis = axis if isinstance(axis, int) else axis[0]
    expected = _host(call).channel_axis(rank)
    if axis % rank != expected:
        return f"it normalizes axis {axis}, but the channels of {call.path!r} are on {expected}"
    return None


def _masked(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    if any(len(scene.graph.calls[i].refs) > 1 for i in indices):
        return "it is called with a mask"
    return None


def _regularized(scene: _Scene, first: Call, indices: list[int], hosts: list[int]) -> str | None:
    call = scene.graph.calls[hosts[0]]
    if getattr(call.layer, "activity_regularizer", None) is not None:
        return f"{call.path!r} has an activity regularizer on its own output"
    if any(getattr(scene.graph.calls[i].layer, "activity_regularizer", None) for i in indices):
        return "it has an activity regularizer"
    return None


_OBSTACLES: tuple[Callable[[_Scene, Call, list[int], list[int]], str | None], ...] = (
    _no_host,
    _nonlinear,
    _shared,
    _used_elsewhere,
    _wrong_axis,
    _masked,
    _regularized,
)
