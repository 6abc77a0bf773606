"""How models and recipes name quantizers, and what such a name may stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewriter.errors import RecipeError
from rewriter.quantization import fixed_point
from rewriter.quantization.learned import LearnedKernelQuantizer, LearnedRangeQuantizer
from rewriter.quantization.powers_of_two import PowerOfTwoRangeQuantizer
from rewriter.quantization.quantizers import (
    FixedQuantizer,
    PerChannelQuantizer,
    PerTensorQuantizer,
    RangeQuantizer,
)

_registered: dict[str, type] = {}


def register_quantizer(cls: type) -> type:
    """Class decorator: lets models and recipes that name ``cls`` be loaded again."""
    _registered[f"{cls.__module__}.{cls.__qualname__}"] = cls
    return cls


def serialize(quantizer: Any) -> dict[str, Any]:
    """``{"class": dotted name, "config": get_config()}``, JSON values only.

    The dotted name of one of ours stays what it was in the first files, wherever the class lies.
    """
    cls = type(quantizer)
    return {
        "class": _NAMES.get(cls, f"{cls.__module__}.{cls.__qualname__}"),
        "config": dict(quantizer.get_config()),
    }


def given(quantizer: Any) -> Any:
    """A quantizer, or the one that :func:`serialize` described.

    Raises:
      RecipeError: as :func:`deserialize`.
    """
    return deserialize(quantizer) if isinstance(quantizer, dict) else quantizer


def deserialize(config: Mapping[str, Any]) -> Any:
    """The quantizer that :func:`serialize` described.

    Raises:
      RecipeError: if the class is not ours, TFMOT's, or one given to ``register_quantizer``, or
        cannot be made of that configuration.
    """
    name = config.get("class") if isinstance(config, Mapping) else None
    if not isinstance(name, str):
        raise RecipeError(
            f'A quantizer is written as {{"class": dotted name, "config": {{...}}}}. '
            f"Received: {config!r}."
        )
    cls = _registered.get(name) or _OURS.get(name) or _of_tfmot(name)
    if cls is None:
        raise RecipeError(
            f"The quantizer class {name!r} is not known. Decorate it with "
            "@rewriter.register_quantizer and import its module before loading."
        )
    arguments = config.get("config", {})
    if not isinstance(arguments, Mapping):
        raise RecipeError(
            f"The quantizer {name!r} needs a config of names and values. Received: {arguments!r}."
        )
    build = getattr(cls, "from_config", None)
    try:
        return cls(**arguments) if build is None else build(dict(arguments))
    except (TypeError, ValueError, KeyError) as error:  # an argument too many, too few, or wrong
        raise RecipeError(
            f"The quantizer {name!r} cannot be made of the config {dict(arguments)}: {error}."
        ) from error


# The names of our classes in models and recipes. They do not follow the modules: files stay.
_OURS: dict[str, type] = {
    **{
        f"rewriter.quantizers.{cls.__name__}": cls
        for cls in (
            PerChannelQuantizer,
            PerTensorQuantizer,
            RangeQuantizer,
            FixedQuantizer,
            LearnedKernelQuantizer,
            LearnedRangeQuantizer,
            PowerOfTwoRangeQuantizer,
        )
    },
    **{
        f"rewriter.fixed_point.{cls.__name__}": cls
        for cls in (fixed_point.FixedPoint, fixed_point.PowerOfTwo, fixed_point.Clip)
    },
}
_NAMES = {cls: name for name, cls in _OURS.items()}


def _of_tfmot(name: str) -> type | None:
    """TFMOT's quantizer class of that dotted name, looked for among those that it defines."""
    if not name.startswith("tensorflow_model_optimization."):
        return None
    try:
        import tensorflow_model_optimization as tfmot
    except ImportError:
        return None  # then its classes are not known
    todo = [tfmot.quantization.keras.quantizers.Quantizer]
    while todo:
        cls = todo.pop()
        if f"{cls.__module__}.{cls.__qualname__}" == name:
            return cls
        todo += cls.__subclasses__()
    return None


def check(quantizer: Any, field: str) -> Any:
    """``quantizer`` itself if it speaks the protocol.

    Raises:
      RecipeError: otherwise, naming ``field``.
    """
    missing = [m for m in ("build", "__call__", "get_config") if not hasattr(quantizer, m)]
    if missing or isinstance(quantizer, type):
        raise RecipeError(
            f"{field}: expected a quantizer object with build, __call__ and get_config "
            f"(TFMOT's Quantizer protocol). Received: {quantizer!r}."
        )
    return quantizer
