"""The pipeline on the variables of a batch normalization.

Any operation may be put on gamma, beta, the moving mean and the moving variance before they
normalize: in training and in inference, in the phases asked for. What is exported comes from the
piped variables.

The moving mean and variance take part where they are used: in inference, and in training once
the statistics are frozen. While the batch's statistics are used, the moving ones are only updated.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from rewriter import flavours, phases, quantizers
from rewriter.errors import RecipeError
from rewriter.switch import connect

VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")


class FixedPoint:
    """Signed fixed point: ``clip(round(x / step), -2**(b-1), 2**(b-1)-1) * step``.

    Rounding is half to even. Without ``fraction_bits`` the step is the smallest power of two
    with which the variable's largest magnitude still fits. Gradient: straight through.

    Args:
      num_bits: width with the sign, 2 to 32.
      fraction_bits: the step is ``2**-fraction_bits``; None: chosen from the values.
    """

    def __init__(self, num_bits: int = 8, fraction_bits: int | None = None):
        if not isinstance(num_bits, int) or not 2 <= num_bits <= 32:
            raise RecipeError(f"FixedPoint: num_bits must be in 2..32. Received: {num_bits!r}.")
        if fraction_bits is not None and not isinstance(fraction_bits, int):
            raise RecipeError(
                f"FixedPoint: fraction_bits must be a whole number or None. "
                f"Received: {fraction_bits!r}."
            )
        self.num_bits = num_bits
        self.fraction_bits = fraction_bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        x = tf.stop_gradient(inputs)
        top = 2.0 ** (self.num_bits - 1)
        if self.fraction_bits is None:
            largest = tf.maximum(tf.reduce_max(tf.abs(x)), 2.0**-90)
            step = _power_of_two(_ceil_log2(largest / (top - 1.0)), x.dtype)
        else:
            step = tf.constant(2.0**-self.fraction_bits, x.dtype)
        # Wider than a float32's digits, top - 1 would be rounded to top.
        high = min(top - 1.0, float(np.nextafter(np.float32(top), np.float32(0))))
        value = tf.clip_by_value(tf.round(x / step), -top, high) * step
        return connect(value, lambda upstream: (upstream,), inputs)

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits, "fraction_bits": self.fraction_bits}


class PowerOfTwo:
    """Signed powers of two: ``sign(x) * 2**clip(round(log2|x|), low, high)``; 0 stays 0.

    ``high`` is the exponent of the largest magnitude, ``low`` follows from the width: one bit of
    sign, the others count exponents, and one code is 0. Values that would round below the
    smallest power become 0. Rounding is half to even in the exponent. Gradient: straight through.

    Args:
      num_bits: width with the sign, 2 to 8.
    """

    def __init__(self, num_bits: int = 4):
        if not isinstance(num_bits, int) or not 2 <= num_bits <= 8:
            raise RecipeError(f"PowerOfTwo: num_bits must be in 2..8. Received: {num_bits!r}.")
        self.num_bits = num_bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        x = tf.stop_gradient(inputs)
        magnitude = tf.abs(x)
        exponent = tf.round(_log2(tf.maximum(magnitude, 2.0**-120)))
        high = tf.reduce_max(exponent)
        low = high - float(2 ** (self.num_bits - 1) - 2)
        power = tf.sign(x) * _power_of_two(tf.cast(exponent, tf.int32), x.dtype)
        value = tf.where(exponent < low, tf.zeros_like(power), power)
        return connect(value, lambda upstream: (upstream,), inputs)

    def get_config(self) -> dict[str, Any]:
        return {"num_bits": self.num_bits}


class Clip:
    """``clip(x, minimum, maximum)``; the gradient is 0 where it clips.

    Args:
      minimum, maximum: the bounds; None for none.
    """

    def __init__(self, minimum: float | None = None, maximum: float | None = None):
        if minimum is not None and maximum is not None and not minimum <= maximum:
            raise RecipeError(
                f"Clip: minimum must not exceed maximum. Received: {minimum!r} and {maximum!r}."
            )
        self.minimum = minimum
        self.maximum = maximum

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        low = inputs.dtype.min if self.minimum is None else self.minimum
        high = inputs.dtype.max if self.maximum is None else self.maximum
        return tf.clip_by_value(inputs, low, high)

    def get_config(self) -> dict[str, Any]:
        return {"minimum": self.minimum, "maximum": self.maximum}


def _log2(x: Any) -> Any:
    return tf.math.log(x) / tf.math.log(tf.constant(2.0, x.dtype))


# The exponent field of a float is exact where logarithms and powers are a rounding off.


def _ceil_log2(x: Any) -> Any:
    """``ceil(log2(x))`` of a positive, normal float32, int32."""
    bits = tf.bitcast(tf.cast(x, tf.float32), tf.int32)
    return bits // 2**23 - 127 + tf.cast(bits % 2**23 > 0, tf.int32)


def _power_of_two(exponent: Any, dtype: tf.DType) -> Any:
    """``2**exponent`` for int32 from -126 to 127."""
    return tf.cast(tf.bitcast((exponent + 127) * 2**23, tf.float32), dtype)


@dataclasses.dataclass(frozen=True)
class BatchNormPipeline:
    """Operations on the variables of some batch normalizations.

    Attributes:
      gamma, beta, moving_mean, moving_variance: a TensorFlow callable, a Keras layer of the
        model's Keras, or a quantizer of TFMOT's protocol; None leaves the variable as it is.
      layers: names or patterns (``fnmatch``) of BatchNormalization layers, or of the hosts that
        they are fused into.
      phases: in which phases it acts.

    Raises:
      RecipeError: on construction, naming the bad field.
    """

    gamma: Any = None
    beta: Any = None
    moving_mean: Any = None
    moving_variance: Any = None
    layers: str | Sequence[str] = "*"
    phases: Sequence[str] = ("quantize",)

    def __post_init__(self) -> None:
        for name in VARIABLES:
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, deserialize_op(value))
            elif value is not None and not callable(value):
                raise RecipeError(
                    f"batch_norm_pipeline.{name} must be callable, a layer or a quantizer. "
                    f"Received: {value!r}."
                )
        wrong = [phase for phase in self.phases if phase not in phases.PHASES]
        if wrong or isinstance(self.phases, str) or not self.phases:
            raise RecipeError(
                f"batch_norm_pipeline.phases must be some of {sorted(phases.PHASES)}. "
                f"Received: {self.phases!r}."
            )
        patterns = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        if not all(isinstance(pattern, str) for pattern in patterns):
            raise RecipeError(
                f"batch_norm_pipeline.layers must be patterns. Received: {self.layers!r}."
            )
        object.__setattr__(self, "layers", patterns)
        object.__setattr__(self, "phases", tuple(self.phases))

    def applies_to(self, *names: str | None) -> bool:
        """Whether one of a layer's names matches."""
        return any(
            fnmatch.fnmatchcase(name, pattern) for name in names if name for pattern in self.layers
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values only.

        Raises:
          RecipeError: if an operation has no name to be found by (see :func:`register_op`).
        """
        result: dict[str, Any] = {"layers": list(self.layers), "phases": list(self.phases)}
        for name in VARIABLES:
            value = getattr(self, name)
            if value is not None:
                result[name] = serialize_op(value, name)
        return result


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
        flavour = flavours.flavour_of(op)
        result = {"layer": flavour.name, **flavour.serialize(op)}
        if not flavour.class_name(op):  # a user's own
            result["registered_name"] = flavour.keras.saving.get_registered_name(type(op))
        return result
    if is_quantizer(op):
        return {"quantizer": quantizers.serialize(op)}
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
        return quantizers.deserialize(config["quantizer"])
    if "layer" in config:
        for flavour in flavours.usable():
            if flavour.name != config["layer"]:
                continue
            if "registered_name" not in config:
                return flavour.deserialize(config)
            find = flavour.keras.saving.get_registered_object
            cls = find(config["registered_name"]) or find(config["class_name"])
            if cls is not None:
                return cls.from_config(dict(config["config"]))
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
    """The public function called ``name`` in one of the modules above, or None."""
    module, _, attribute = name.rpartition(".")
    if module not in _PUBLIC or attribute.startswith("_"):
        return None
    root, _, rest = module.partition(".")
    try:
        owner: Any = importlib.import_module(root)
    except ImportError:
        return None
    for part in filter(None, rest.split(".")):
        owner = getattr(owner, part, None)
    found = getattr(owner, attribute, None)
    return found if callable(found) else None


def copy_op(op: Any) -> Any:
    """An instance of its own for one layer: quantizers and layers may have variables."""
    if is_layer(op) or is_quantizer(op):
        build = getattr(type(op), "from_config", None)
        return type(op)(**op.get_config()) if build is None else build(op.get_config())
    return op


class Pipe:
    """One operation on one variable of one layer, with the operation's own variables.

    Args:
      op: the operation.
      phases: names of the phases in which it acts.
    """

    def __init__(self, op: Any, phase_names: Sequence[str]):
        self.op = op
        codes = {phases.PHASES[name] for name in phase_names}
        if phases.QUANTIZE in codes:
            codes.add(phases.QUANTIZE_FROZEN)
        self._acts = [code in codes for code in range(4)]
        self._weights: dict[str, Any] = {}
        self._where = ""

    def build(self, shape: Any, name: str, adapter: Any) -> None:
        """Create the operation's variables in the layer behind ``adapter``."""
        self._where = f"{name} of {adapter.name!r}"
        if is_layer(self.op):
            self.op.build(tuple(shape))
            self.op.built = True
        elif is_quantizer(self.op):
            self._weights = self.op.build(tuple(shape), f"{name}_pipe", adapter)

    @property
    def variables(self) -> list[Any]:
        """The operation's own variables."""
        if is_layer(self.op):
            return list(self.op.variables)
        return [v for v in self._weights.values() if hasattr(v, "assign")]

    def __call__(self, value: Any, phase: Any, training: bool) -> Any:
        """``value`` piped where ``phase`` (int32 scalar) says so.

        Raises:
          RecipeError: if the operation changes the shape.
        """

        def act() -> Any:
            if is_layer(self.op):
                result = self.op(value)
            elif is_quantizer(self.op):
                result = self.op(value, training=training, weights=self._weights)
            else:
                result = self.op(value)
            result = tf.cast(result, value.dtype)
            if not value.shape.is_compatible_with(result.shape):
                raise RecipeError(
                    f"batch_norm_pipeline: the operation on {self._where} must keep the shape "
                    f"{tuple(value.shape)}. Received: {tuple(result.shape)}."
                )
            return tf.ensure_shape(result, value.shape)

        return tf.cond(tf.gather(tf.constant(self._acts), phase), act, lambda: value)
