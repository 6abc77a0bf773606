"""Give new layers the variables of the originals that they stand for.

A variable starts from the original's value where the layer says which initializer is whose: no
value is made that the copy replaces, and the two share their memory until one of them changes.
What has no such initializer is assigned after the layer has been built.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from rewriter.keras_compat import Flavour, flat_layers

_SUFFIX = "_initializer"


class _Original:
    """An initializer: the value of an original variable."""

    def __init__(self, flavour: Flavour, source: Any):
        self.source = source
        self.calls = 0
        self._flavour = flavour

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> Any:
        self.calls += 1
        value = tf.convert_to_tensor(self._flavour.tf_variable(self.source))
        wanted = tf.as_dtype(dtype or value.dtype)
        if value.dtype != wanted or tuple(value.shape) != tuple(shape):
            self.calls += 1  # not the source's value, so that it is assigned later
            return tf.zeros(shape, wanted)
        return value


@dataclasses.dataclass(eq=False)
class Copy:
    """A new layer that is to have the variables of an original one."""

    flavour: Flavour
    new: Any
    original: Any
    initializers: dict[str, Any] = dataclasses.field(default_factory=dict)  # the layer's own
    started: dict[str, _Original] = dataclasses.field(default_factory=dict)

    def start(self) -> None:
        """Before ``new`` is built: have its variables start from the original's, or from zeros.

        Drawing random values that nobody sees was a fifth of the time.
        """
        name = self.flavour.exact_name(self.original)
        if not name:
            return  # a layer of a user's
        variables = {id(variable) for variable in getattr(self.original, "variables", ())}
        found = {key: value for key, value in vars(self.new).items() if key.endswith(_SUFFIX)}
        for key in found:
            variable = key.removesuffix(_SUFFIX)
            kernel = self.flavour.kernel_attribute(name, f"{variable}_kernel")
            for attribute in (variable, kernel):
                source = getattr(self.original, attribute, None)
                if id(source) in variables:
                    self.started[attribute] = _Original(self.flavour, source)
                    setattr(self.new, key, self.started[attribute])
                    break
            else:
                # An object: MultiHeadAttention makes copies for the layers inside it.
                setattr(self.new, key, self.flavour.keras.initializers.Zeros())
        self.initializers = found

    def finish(self) -> None:
        """After ``new`` has been built: everything else, ``trainable`` flags included."""
        self._copy()
        for key, initializer in self.initializers.items():
            setattr(self.new, key, initializer)

    def pairs(self) -> list[tuple[Any, Any]]:
        """The new layer's variables, each with the original's; an operation has none."""
        return _pairs(self.new, self.original) if hasattr(self.original, "variables") else []

    def _copy(self) -> None:
        new, original = self.new, self.original
        done = {
            (id(getattr(new, name, None)), id(initializer.source))
            for name, initializer in self.started.items()
            if initializer.calls == 1
        }
        for target, source in self.pairs():
            if (id(target), id(source)) not in done:
                target.assign(source)
        if hasattr(new, "finalize_state"):
            new.finalize_state()  # Normalization keeps constants made from its variables
        sublayers = zip(flat_layers(new), flat_layers(original), strict=False)
        for target, source in sublayers:
            if target.trainable != source.trainable:
                target.trainable = source.trainable


def _pairs(new: Any, original: Any) -> list[tuple[Any, Any]]:
    """The variables of both, those that belong together side by side (seeds and counters too)."""
    if not hasattr(original, "moving_variance"):
        return list(zip(new.variables, original.variables, strict=True))
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    pairs = [(getattr(new, n, None), getattr(original, n, None)) for n in names]
    pairs = [(a, b) for a, b in pairs if b is not None]
    if getattr(original, "pipeline", None) is not None and new.pipeline is original.pipeline:
        own = new.pipeline_variables, original.pipeline_variables
        pairs += list(zip(*own, strict=True))
    return pairs
