"""Build the quantization-aware model: read -> plan -> build."""

from __future__ import annotations

import warnings
from typing import Any

from rewriter.errors import RecipeError, UnsupportedModelError
from rewriter.layers import preserved
from rewriter.quantization.phases import set_phase
from rewriter.reading.graph import Graph
from rewriter.reading.roles import Ours
from rewriter.rewriting import left_behind, retracing, rules, sizes
from rewriter.rewriting.build import Builder
from rewriter.rewriting.recipe import Recipe
from rewriter.training.calibrate import calibrate


def rewrite(
    model: Any,
    recipe: Recipe | str | None = None,
    *,
    calibration_data: Any = None,
    input_shape: Any = None,
) -> Any:
    """A quantization-aware model with the trained weights of ``model`` and no BatchNormalization.

    Every BatchNormalization is fused into the linear layer before it, or replaced by a layer of
    its own on the fused kernel (see :func:`rewriter.plan`). In phase ``float``, in which the
    model comes back, it computes what ``model`` computes, in inference and in training. Layers with
    the channels first compute with the channels last; inputs and outputs stay as they are.

    Args:
      model: a tf_keras or Keras 3 model: Sequential, functional, nested, or subclassed where its
        ``call`` can be traced. It is left as it is. Parts of it may have been rewritten before:
        they stay so, and what was added is rewritten.
      recipe: how to quantize, or the name of a recipe (:meth:`Recipe.named`); None for LiteRT's
        8-bit specification.
      calibration_data: if given, :func:`rewriter.calibrate` is run on it, and the model comes
        back in phase ``quantize``.
      input_shape: sizes of the inputs, without the batch, for a model that leaves some open:
        ``(224, 224, 3)``; for several inputs a list of such, or a dict by name.

    Returns:
      A functional model of the same Keras, not compiled. What it lacks of ``model``, such as a
      ``train_step`` of its own, a warning names.

    Raises:
      UnsupportedModelError: if the graph cannot be read, or a BatchNormalization is refused; the
        message names each and says what to do. Also for an ``input_shape`` that does not fit.
      RecipeError: there is no recipe of that name, a rule of it is about no layer, or no kernel has
        what it preserves.
    """
    recipe = Recipe.named(recipe) if isinstance(recipe, str) else recipe or Recipe()
    original, model = model, sizes.settled(model, input_shape)
    model, graph = retracing.channels_last(model)
    recipe.check_names({name for call in graph.calls for name in (call.path, call.layer.name)})
    decisions = rules.decide(graph)
    refused = [d for d in decisions if d.action == rules.REFUSED]
    if refused:
        reasons = "; ".join(f"{d.path!r}: {d.reason}" for d in refused)
        raise UnsupportedModelError(
            f"{len(refused)} BatchNormalization of {graph.name!r} cannot be rewritten: {reasons}."
        )
    for note in left_behind.notes(original, graph, model):
        warnings.warn(note, stacklevel=2)
    builder = Builder(graph, decisions, recipe)
    _refuse_rewritten(graph, builder)
    built = builder.build()
    lacking = sorted(set(recipe.preserve) - builder.factory.preserved)
    if lacking:
        raise RecipeError(
            f"preserve: no kernel of {graph.name!r} has {' or '.join(lacking)}: none is "
            f"{preserved.MEANINGS[lacking[0]]}. Prune or cluster the model first, or leave it out."
        )
    if any(isinstance(call.role, Ours) for call in graph.calls):
        set_phase(built, "float")  # what has been there came with the phase that it had
    if not model.trainable:
        built.trainable = False  # so that setting it to True later reaches the layers
    if calibration_data is not None:
        calibrate(built, calibration_data)
    return built


def _refuse_rewritten(graph: Graph, builder: Builder) -> None:
    """Raise UnsupportedModelError where nothing is left to do, or nothing can be done."""
    # A model may be built with our batch normalization; the other layers only we put in.
    ours = [call for call in graph.calls if isinstance(call.role, Ours)]
    final = any(isinstance(call.role, Ours) and call.role.final for call in ours)
    if final or (ours and not builder.adds):
        raise UnsupportedModelError(
            f"The model {graph.name!r} is quantization-aware already, a twin or a frozen copy: "
            f"{ours[0].path!r} is one of {len(ours)} layers that only rewriting puts into a model. "
            "Fine-tune, calibrate or export it as it is (a twin and a frozen copy can only be "
            "evaluated), or rewrite the original model."
        )
