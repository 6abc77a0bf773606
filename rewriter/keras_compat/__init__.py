"""The two Kerases: tf_keras (Keras 2) and Keras 3. All that differs between them lives here.

Everything else in the package receives a :class:`Flavour` and asks it; no other module looks at
which Keras a model belongs to, or touches what is private to one. What names in a file may stand
for is decided here too, before a Keras looks them up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat.base import Flavour
from rewriter.keras_compat.calls import flat_layers
from rewriter.keras_compat.keras3 import Keras3
from rewriter.keras_compat.tf_keras import TfKeras

__all__ = ["KERAS3", "TF_KERAS", "Flavour", "callback_bases", "flat_layers", "flavour_of",
           "input_of", "keras3_backend", "require_tensorflow_backend", "usable"]  # fmt: skip


def _load(name: str, cls: Callable[[ModuleType], Flavour]) -> Flavour | None:
    try:
        return cls(importlib.import_module(name))
    except ImportError:
        # A Keras that cannot be imported has no models in this process.
        return None


TF_KERAS = _load("tf_keras", TfKeras)
KERAS3 = _load("keras", Keras3)
if KERAS3 is not None and int(KERAS3.keras.__version__.split(".")[0]) < 3:
    KERAS3 = None


def keras3_backend() -> str:
    """The backend that Keras 3 runs on in this process."""
    return KERAS3.keras.config.backend() if KERAS3 is not None else "absent"


def usable() -> list[Flavour]:
    """The Kerases whose models can be rewritten in this process."""
    found = [TF_KERAS] if TF_KERAS is not None else []
    if KERAS3 is not None and keras3_backend() == "tensorflow":
        found.append(KERAS3)
    return found


def callback_bases() -> tuple[type, ...]:
    """The callback classes of the Kerases, for a callback that serves all of them."""
    # Keras 3 first: its `model` is a property that its own set_model fills.
    found = [flavour.keras.callbacks.Callback for flavour in reversed(usable())]
    return tuple(found) or (object,)


def flavour_of(model: Any) -> Flavour:
    """The flavour of a Keras model or layer.

    Raises:
      UnsupportedModelError: if it is neither tf_keras nor Keras 3, or Keras 3 does not run on
        TensorFlow.
    """
    if TF_KERAS is not None and isinstance(model, TF_KERAS.keras.layers.Layer):
        return TF_KERAS
    if KERAS3 is not None and isinstance(model, KERAS3.keras.layers.Layer):
        require_tensorflow_backend()
        return KERAS3
    raise UnsupportedModelError(
        "Expected a tf_keras or Keras 3 model. "
        f"Received: {model!r} of type {type(model).__module__}.{type(model).__qualname__}. "
        "Load it with rewriter.load_model, or build it with tf_keras or keras."
    )


def input_of(model: Any) -> Any:
    """The symbolic inputs of a model, nested as its user gave them.

    ``model.input`` is not there for a Sequential of Keras 3 that begins with a model.
    """
    flavour = flavour_of(model)
    return flavour.structure(model)[0] if flavour.is_functional(model) else model.input


def require_tensorflow_backend() -> None:
    """Raise UnsupportedModelError unless Keras 3 runs on TensorFlow."""
    backend = keras3_backend()
    if backend != "tensorflow":
        raise UnsupportedModelError(
            f"Keras 3 models are rewritten on the TensorFlow backend only. Received: "
            f"backend {backend!r}. Set KERAS_BACKEND=tensorflow before Keras is imported, "
            "load the model there, and rewrite it."
        )
