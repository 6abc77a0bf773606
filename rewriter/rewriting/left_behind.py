"""What the original model has beside its graph, and the rewritten one has not."""

from __future__ import annotations

import inspect
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.reading.graph import Graph
from rewriter.reading.roles import Host, Input, Role
from rewriter.rewriting import ties

# What a subclass of Model may define to train, evaluate or predict in another way.
_METHODS = (
    "train_step",
    "test_step",
    "predict_step",
    "compute_loss",
    "compute_metrics",
    "make_train_function",
    "make_test_function",
    "make_predict_function",
    "fit",
)


def notes(model: Any, graph: Graph, read: Any) -> tuple[str, ...]:
    """One sentence for each thing that is not carried over, with what to do.

    Args:
      model: the original.
      graph: what was read of it.
      read: the model that it was read of: the original, or one with the channels last.
    """
    of_model, untied = _of_model(graph.flavour, model), _untied(read, graph)
    read_on = _read_by_functions(graph)
    found = (of_model, _of_layers(graph), untied, read_on, _unsaved(graph))
    return tuple(note for kind in found for note in kind)


def _of_model(flavour: Flavour, model: Any) -> list[str]:
    own = [name for name in _METHODS if _is_users(flavour, model, name)]
    if not own:
        return []
    cls = type(model).__name__
    remedy = (
        f"Make one that has: {cls}(inputs=qat.inputs, outputs=qat.outputs), with the attributes "
        "that these methods use, or train it in a loop of your own."
    )
    if isinstance(model, flavour.keras.Sequential):
        remedy = (
            f"Make a model that has: derive {cls} from Model in the place of Sequential, and call "
            "it with inputs=qat.inputs, outputs=qat.outputs, or train it in a loop of your own."
        )
    elif not _takes_tensors(type(model)):
        remedy = (
            f"{cls} is not made of inputs and outputs: what these methods do beside training, such "
            "as preparing the data, do before you call the rewritten model's."
        )
    return [
        f"The model {model.name!r} is of the class {cls!r} with its own {', '.join(own)}, which "
        "the rewritten model has not: it is a functional model of Keras, and trains as those do. "
        f"{remedy}"
    ]


def _takes_tensors(cls: Any) -> bool:
    """Whether ``cls(inputs=..., outputs=...)`` may be meant, not arguments of its own."""
    try:
        parameters = inspect.signature(cls.__init__).parameters
    except (TypeError, ValueError):
        return True
    own = {"inputs", "outputs"} <= set(parameters)
    others = [
        p
        for p in list(parameters.values())[1:]
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return own or not others


def _is_users(flavour: Flavour, model: Any, name: str) -> bool:
    """Whether a method of a model is not Keras's."""
    for cls in type(model).__mro__:
        if name in vars(cls):
            return cls.__module__.split(".")[0] != flavour.keras.__name__
    return False


def _of_layers(graph: Graph) -> list[str]:
    found = [
        f"The activity regularizer of the layer {path!r} is not carried over: the layer is taken "
        "apart, and its output is computed by others. Add a layer "
        "ActivityRegularization after it, or the term to your loss."
        for path in graph.regularized
    ]
    return list(dict.fromkeys(found))


def _untied(model: Any, graph: Graph) -> list[str]:
    """The variables that layers have in common, and of which the rewritten model has several."""
    return [
        f"The layers {' and '.join(map(repr, names))} have the variable {variable!r} in common. "
        "The rewritten model has one for each of them, with the same values, which training moves "
        "apart: one of the layers is taken apart, and uses the variable in another shape or order "
        "of axes. Give the variable the shape in which both use it; or, while training, assign the "
        "one to the other after each step."
        for variable, names in ties.apart(model, graph)
    ]


def _read_by_functions(graph: Graph) -> list[str]:
    """The calls that read the original's variables, also in the rewritten model."""
    return [
        f"The call {path!r} reads the variable {name!r} by an argument or a function, not by a "
        "layer that holds it: that is the original's variable, not the rewritten model's, and "
        "training does not move it. Make a layer of the call that has the variable, or the layer "
        "that owns it, as an attribute."
        for path, name in ties.by_functions(graph)
    ]


def _unsaved(graph: Graph) -> list[str]:
    """The layers that stay as they are, and that no file can hold."""
    layers = {id(call.layer): call.layer for call in graph.calls}
    reasons = [graph.flavour.unsaved(layer) for layer in layers.values()
               if not graph.flavour.is_ours(layer)]  # fmt: skip
    return [reason for reason in reasons if reason]


def add_again(model: Any, layer: Any, value: Any) -> None:
    """Add to a model the loss or the metric that ``layer`` of the original is."""
    if hasattr(layer, "metric_name"):
        model.add_metric(value, name=layer.metric_name, aggregation=layer.aggregation)
    else:
        model.add_loss(value)


def regularizer(flavour: Flavour, role: Role, original: Any, new: Any) -> Any:
    """That of the activity, if the copy of a stock layer lacks it: tf_keras keeps none.

    The layer of its output's range saves it, so that it belongs there where there is one.
    """
    own = isinstance(role, (Host, Input)) or flavour.is_ours(new)
    found = None if own else getattr(original, "activity_regularizer", None)
    return found if getattr(new, "activity_regularizer", None) is None else None
