"""The calls of the layers inside a layer, recorded while it builds a graph of TensorFlow.

Keras looks up ``call`` on the layer, so an attribute of that name is called in its place. It is
put there by ``object.__setattr__``: Keras would take note of any other way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

Recorder = Callable[[Any, Callable[..., Any], tuple, dict[str, Any]], Any]


@contextlib.contextmanager
def recorded(layers: Sequence[Any], recorder: Recorder) -> Iterator[None]:
    """Within, ``recorder(layer, call, args, kwargs)`` is called in place of each layer's ``call``.

    What the recorder returns is what the layer returns. Functions of ``tf.function`` run as plain
    Python within, so that all operators stand in one graph.
    """
    eager = tf.config.functions_run_eagerly()
    held = [(layer, vars(layer).get("call")) for layer in layers]
    try:
        tf.config.run_functions_eagerly(True)
        for layer in layers:
            object.__setattr__(layer, "call", _in_place_of(layer, layer.call, recorder))
        yield
    finally:
        tf.config.run_functions_eagerly(eager)
        for layer, own in held:
            if own is not None:
                object.__setattr__(layer, "call", own)
            elif "call" in vars(layer):
                object.__delattr__(layer, "call")


def _in_place_of(layer: Any, call: Callable[..., Any], recorder: Recorder) -> Callable[..., Any]:
    @tf.autograph.experimental.do_not_convert
    def instead(*args: Any, **kwargs: Any) -> Any:
        return recorder(layer, call, args, kwargs)

    return instead
