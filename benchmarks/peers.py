"""One trained model as LiteRT files: ours, TensorFlow's, and TensorFlow Model Optimization's.

Every file has batch size 1, and int8 inputs and outputs unless it is the float one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import rewriter


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the converter's notes off the terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def ours(model: Any, data: np.ndarray) -> bytes:
    """rewrite, calibrate, export."""
    qat = rewriter.rewrite(model)
    rewriter.calibrate(qat, data, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        rewriter.export_tflite(qat, path)
        return path.read_bytes()


def _converter(model: Any) -> Any:
    spec = tf.TensorSpec((1, *model.inputs[0].shape[1:]), tf.float32)
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    if not type(model).__module__.startswith("tf_keras"):
        # The way through a saved model leaves the variables of Keras 3 in the file.
        converter.experimental_lower_to_saved_model = False
    return converter


def floating(model: Any, data: np.ndarray) -> bytes:
    """The converter without quantization."""
    with quiet():
        return _converter(model).convert()


def _int8(converter: Any) -> bytes:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    with quiet():
        return converter.convert()


def post_training(model: Any, data: np.ndarray) -> bytes:
    """TensorFlow's own post-training quantization; an operator without int8 is an error."""
    converter = _converter(model)
    converter.representative_dataset = lambda: ([data[i : i + 1]] for i in range(len(data)))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return _int8(converter)


def post_training_folded(model: Any, data: np.ndarray) -> bytes:
    """The same of :func:`folded`."""
    return post_training(folded(model), data)


def tfmot(model: Any, data: np.ndarray) -> bytes:
    """quantize_model, ranges from batches in training mode (it knows no calibration), convert."""
    import tensorflow_model_optimization

    qat = tensorflow_model_optimization.quantization.keras.quantize_model(model)
    for _ in range(4):
        qat(data, training=True)
    return converted(qat)


def converted(qat: Any) -> bytes:
    """A model of TFMOT's as an int8 file."""
    return _int8(_converter(qat))


def folded(model: Any) -> Any:
    """The float model with every fusable normalization in the kernel and bias before it.

    In float64 by the definition; normalizations after anything else stay as they are.
    """
    keras = sys.modules[type(model).__module__.partition(".")[0]]
    hosts = {e.host: e.name for e in rewriter.plan(model).entries if e.action == "fused"}
    norms = set(hosts.values())

    class Nothing(keras.layers.Layer):
        def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            return inputs

    def clone(layer: Any) -> Any:
        if layer.name in norms:
            return Nothing(name=layer.name)
        config = layer.get_config()
        if layer.name in hosts:
            config["use_bias"] = True
        return type(layer).from_config(config)

    result = keras.models.clone_model(model, clone_function=clone)
    for layer in model.layers:
        if not layer.weights or layer.name in norms:
            continue
        weights = layer.get_weights()
        if layer.name in hosts:
            weights = folded_weights(layer, model.get_layer(hosts[layer.name]))
        result.get_layer(layer.name).set_weights(weights)
    return result


def folded_weights(host: Any, norm: Any) -> list[np.ndarray]:
    """Kernels and bias of a linear layer and the normalization after it, as float32."""
    values = [np.asarray(value, np.float64) for value in host.get_weights()]
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    factor = 1 / np.sqrt(variance + norm.epsilon)
    if norm.gamma is not None:
        factor = factor * np.asarray(norm.gamma, np.float64)
    shift = 0.0 if norm.beta is None else np.asarray(norm.beta, np.float64)
    kernels, bias = (values[:-1], values[-1]) if host.use_bias else (values, 0.0)
    kind = type(host).__name__
    last, shape = kernels[-1], factor
    if kind.startswith("Depthwise"):
        shape = factor.reshape(last.shape[-2:])
    elif kind.endswith("Transpose"):
        shape = factor[:, None]
    kernels = [*kernels[:-1], last * shape]
    return [v.astype(np.float32) for v in (*kernels, (bias - mean) * factor + shift)]


OURS, FOLDED, TFMOT, FLOAT = "rewriter", "TF PTQ, folded", "TFMOT", "float"
FILES: dict[str, Callable[[Any, np.ndarray], bytes]] = {
    OURS: ours,
    FOLDED: post_training_folded,
    "TF PTQ": post_training,
    TFMOT: tfmot,
    FLOAT: floating,
}
