"""What may stand in a pipeline: functions, Keras layers and quantizers, and how they are saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from rewriter import keras_compat
from rewriter.errors import LoadError, RecipeError, short
from rewriter.keras_compat import Flavour, pure_functions, trust
from rewriter.quantization import quantizer_names

_registered: dict[str, Callable[..., Any]] = {}


def register_op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: lets models and recipes whose pipeline uses ``function`` be saved and loaded."""
    _registered[f"{function.__module__}.{function.__qualname__}"] = function
    return function


def is_quantizer(op: Any) -> bool:
    """Whether ``op`` speaks TFMOT's quantizer protocol."""
    return hasattr(op, "build") and hasattr(op, "get_config") and not is_layer(op)


def is_layer(op: Any) -> bool:
    """Whether ``op`` is a Keras layer (of either Keras)."""
    return hasattr(op, "get_config") and hasattr(op, "compute_output_shape")


def serialize_op(op: Any, field: str) -> dict[str, Any]:
    """JSON values from which :func:`deserialize_op` makes ``op`` again.

    Raises:
      RecipeError: if it is a function that cannot be found by name.
    """
    if is_layer(op):
        flavour = keras_compat.flavour_of(op)
        result = {"layer": flavour.name, **flavour.serialize(op)}
        if not flavour.exact_name(op):  # a user's own
            result["registered_name"] = flavour.keras.saving.get_registered_name(type(op))
        return result
    if is_quantizer(op):
        return {"quantizer": quantizer_names.serialize(op)}
    name = f"{getattr(op, '__module__', '')}.{getattr(op, '__qualname__', '')}"
    if _registered.get(name) is op:
        return {"function": name}
    for module in _PUBLIC:
        public = f"{module}.{getattr(op, '__name__', '')}"
        if _public(public) is op:
            return {"function": public}
    raise RecipeError(
        f"batch_norm_pipeline.{field}: the function {name!r} cannot be saved. Decorate a "
        "module-level function with @rewriter.register_op, or use a quantizer."
    )


def deserialize_op(config: Mapping[str, Any]) -> Any:
    """The operation that :func:`serialize_op` described.

    Raises:
      RecipeError: if it is not known here.
    """
    if "quantizer" in config:
        return quantizer_names.deserialize(config["quantizer"])
    if "layer" in config:
        for flavour in keras_compat.usable():
            if flavour.name != config["layer"]:
                continue
            names = config.get("registered_name"), config.get("class_name")
            if names[0] is None and flavour.layer_class(str(names[1])) is not None:
                return _checked(flavour, config, flavour.deserialize)
            classes = (flavour.user_object(name, {}) for name in names)
            cls = next((c for c in classes if flavour.is_layer_class(c)), None)
            if cls is not None and isinstance(config.get("config"), Mapping):
                return _checked(flavour, config["config"], cls.from_config)
        raise RecipeError(
            f"batch_norm_pipeline: the layer class {config.get('class_name')!r} is not known. "
            "Decorate it with keras.saving.register_keras_serializable() of its Keras and import "
            "its module before loading."
        )
    name = str(config.get("function", ""))
    found = _registered.get(name) or _public(name)
    if found is not None:
        return found
    raise RecipeError(
        f"batch_norm_pipeline: the operation {dict(config)!r} is not known. Decorate it with "
        "@rewriter.register_op and import its module before loading."
    )


def _checked(flavour: Flavour, config: Mapping[str, Any], make: Callable[[Any], Any]) -> Any:
    """What ``make`` makes of a configuration that names nothing which may not be called."""
    try:
        trust.check(config, flavour, "a pipeline")
        return make(dict(config))
    except LoadError as error:
        raise RecipeError(f"batch_norm_pipeline: {error}") from error
    except (TypeError, ValueError, KeyError) as error:  # Keras, about its arguments
        raise RecipeError(f"batch_norm_pipeline: a layer cannot be made: {short(error)}") from error


# Where functions are looked for by name; a name in a file reaches nothing else.
_PUBLIC = (
    "tensorflow",
    "tensorflow.math",
    "tensorflow.nn",
    "keras.ops",
    "keras.activations",
    "tf_keras.activations",
)


def _public(name: str) -> Any:
    """The function that only computes called ``name`` in one of the modules above, or None."""
    module, _, attribute = name.rpartition(".")
    if module not in _PUBLIC:
        return None
    root, _, rest = module.partition(".")
    if root == "tensorflow":
        if pure_functions.of_symbol(f"{rest}.{attribute}".lstrip(".")) is None:
            return None
        # The table has what is under its dispatchers, which is not what users write.
        return getattr(getattr(tf, rest) if rest else tf, attribute, None)
    for flavour in keras_compat.usable():
        found = vars(getattr(flavour.keras, rest)).get(attribute) if flavour.name == root else None
        if flavour.is_stock_function(found):
            return found
    return None


def copy_op(op: Any) -> Any:
    """An instance of its own for one layer: quantizers and layers may have variables."""
    if is_layer(op):
        return keras_compat.flavour_of(op).clone(op)
    if is_quantizer(op):
        build = getattr(type(op), "from_config", None)
        return type(op)(**op.get_config()) if build is None else build(op.get_config())
    return op
