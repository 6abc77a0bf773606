"""Training step: ours in every phase against the float model, TFMOT and BN made of moments.

All variants of one model live in one process and take turns, round by round, on the same batch;
the table gives medians and ratios to the float model of the same Keras.

    python benchmarks/step.py --keras tf_keras --models mobilenet_v2 resnet50_64 --rounds 15
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import rewriter

SHAPES = {  # name -> (input shape, batch, classes)
    "mobilenet_v2": ((96, 96, 3), 32, 10),
    "resnet50_64": ((64, 64, 3), 16, 10),
    "resnet50_128": ((128, 128, 3), 16, 10),
    "efficientnet_b0": ((96, 96, 3), 32, 10),
    "densenet121": ((64, 64, 3), 16, 10),
    "kws01": ((49, 10, 1), 32, 12),
    "conv1d": ((256, 16), 32, 10),
}


def build(keras: Any, name: str) -> Any:
    """A float model of this Keras with random weights."""
    shape, _, classes = SHAPES[name]
    apps = keras.applications
    options = {"weights": None, "classes": classes, "input_shape": shape}
    if name == "mobilenet_v2":
        return apps.MobileNetV2(alpha=0.5, **options)
    if name.startswith("resnet50"):
        return apps.ResNet50(**options)
    if name == "efficientnet_b0":
        return apps.EfficientNetB0(**options)
    if name == "densenet121":
        return apps.DenseNet121(**options)
    if name == "kws01":
        return _kws(keras, shape, classes)
    return _conv1d(keras, shape, classes)


def _kws(keras: Any, shape: tuple[int, ...], classes: int) -> Any:
    """The DS-CNN of MLPerf Tiny (same layers as kws01)."""
    k = keras.layers
    x = inputs = keras.Input(shape)

    def norm(x: Any) -> Any:
        return k.Activation("relu")(k.BatchNormalization()(x))

    x = norm(k.Conv2D(64, (10, 4), strides=2, padding="same")(x))
    for _ in range(4):
        x = norm(k.DepthwiseConv2D(3, padding="same")(x))
        x = norm(k.Conv2D(64, 1, padding="same")(x))
    x = k.Flatten()(k.AveragePooling2D((25, 5))(x))
    return keras.Model(inputs, k.Dense(classes, activation="softmax")(x))


def _conv1d(keras: Any, shape: tuple[int, ...], classes: int) -> Any:
    k = keras.layers
    x = inputs = keras.Input(shape)
    for filters in (32, 64, 64, 128):
        x = k.ReLU()(k.BatchNormalization()(k.Conv1D(filters, 5, strides=2, padding="same")(x)))
    x = k.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, k.Dense(classes, activation="softmax")(x))


def with_moments(keras: Any, model: Any) -> Any:
    """The model with every BatchNormalization made of ``tf.nn.moments``: the first version."""

    class MomentsBatchNormalization(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            add = self.add_weight
            size = (shape[-1],)
            self.gamma = add(name="gamma", shape=size, initializer="ones")
            self.beta = add(name="beta", shape=size, initializer="zeros")
            self.mean = add(name="mean", shape=size, initializer="zeros", trainable=False)
            self.var = add(name="var", shape=size, initializer="ones", trainable=False)

        def call(self, x: Any, training: bool = False) -> Any:
            gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
            mean, var = tf.convert_to_tensor(self.mean), tf.convert_to_tensor(self.var)
            if training:
                batch_mean, batch_var = tf.nn.moments(x, list(range(len(x.shape) - 1)))
                self.mean.assign(mean * 0.99 + batch_mean * 0.01)
                self.var.assign(var * 0.99 + batch_var * 0.01)
                mean, var = batch_mean, batch_var
            return tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3)

    def swap(layer: Any) -> Any:
        if isinstance(layer, keras.layers.BatchNormalization):
            return MomentsBatchNormalization(name=layer.name)
        return layer.__class__.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=swap)


def variants(keras: Any, name: str, data: Any) -> dict[str, Callable[[], Any]]:
    """Functions that build each variant."""

    def ours(phase: str, **options: Any) -> Callable[[], Any]:
        def make() -> Any:
            model = rewriter.rewrite(build(keras, name))
            rewriter.calibrate(model, data[:2], progress=False)
            rewriter.set_phase(model, phase, **options)
            return model

        return make

    found: dict[str, Callable[[], Any]] = {
        "float": lambda: build(keras, name),
        "ours float": ours("float"),
        "ours quantize": ours("quantize"),
        "ours frozen": ours("quantize", freeze_ranges=True),
        "moments": lambda: with_moments(keras, build(keras, name)),
    }
    if keras.__name__ == "tf_keras":
        found["tfmot"] = lambda: _tfmot(build(keras, name))
    return found


def _tfmot(model: Any) -> Any:
    import tensorflow_model_optimization as tfmot

    return tfmot.quantization.keras.quantize_model(model)


def measure(keras: Any, name: str, rounds: int, wanted: list[str] | None) -> dict[str, Any]:
    """Seconds per step of every variant, interleaved."""
    shape, batch, classes = SHAPES[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *shape)).astype("float32")
    y = rng.integers(0, classes, batch)
    steps, first = {}, {}
    for label, make in variants(keras, name, x).items():
        if wanted and label not in wanted:
            continue
        try:
            model = make()
            model.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy")
        except Exception as error:
            print(f"  {label}: {type(error).__name__}: {str(error)[:90]}")
            continue
        data = tf.data.Dataset.from_tensors((x, y)).repeat()
        function, iterator = model.make_train_function(), iter(data)
        function = function or model.train_function
        start = time.perf_counter()
        function(iterator)
        first[label] = time.perf_counter() - start
        steps[label] = (function, iterator)
    times: dict[str, list[float]] = {label: [] for label in steps}
    cpu: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(2):
        for function, iterator in steps.values():
            function(iterator)
    for _ in range(rounds):
        for label, (function, iterator) in steps.items():
            start, busy = time.perf_counter(), time.process_time()
            function(iterator)
            times[label].append(time.perf_counter() - start)
            cpu[label].append(time.process_time() - busy)
    base = times["float"]
    rows = {}
    for label, values in times.items():
        ratios = [a / b for a, b in zip(values, base, strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        rows[label] = {
            "milliseconds": 1e3 * statistics.median(values),
            "ratio": statistics.median(values) / statistics.median(base),
            "cpu": statistics.median(cpu[label]) / statistics.median(cpu["float"]),
            "low": quartiles[0],
            "high": quartiles[2],
            "first step": first[label],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keras", choices=["tf_keras", "keras"], default="tf_keras")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--variants", nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    args = parser.parse_args()
    keras = __import__(args.keras)
    # Processor seconds stand beside those of the clock: on a busy machine they say more.
    print(
        f"| {args.keras} | variant | ms/step | / float | quartiles | cpu / float | first step s |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in args.models:
        rows = measure(keras, name, args.rounds, args.variants)
        for label, row in rows.items():
            print(
                f"| {name} | {label} | {row['milliseconds']:.1f} | {row['ratio']:.2f} | "
                f"{row['low']:.2f}-{row['high']:.2f} | {row['cpu']:.2f} | "
                f"{row['first step']:.1f} |",
                flush=True,
            )
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps({"keras": args.keras, "model": name, **rows}) + "\n")


if __name__ == "__main__":
    main()
