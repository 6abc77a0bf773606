"""One batch normalization: the stock layer, ours, ours with a pipeline, and one made by hand.

All variants of one shape live in one process and take turns, round by round, on the same data.
``forward`` is inference; ``training`` is the output, the new moving statistics and the gradients
for the input, gamma and beta. The table gives medians and ratios to the stock layer of the same
Keras; quartiles of the ratio in a round tell how far to trust them.

    python benchmarks/layer.py --rounds 60 --results benchmarks/RESULTS.md
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tensorflow as tf

import rewriter
from benchmarks import report
from rewriter import layers
from rewriter.quantization import phases

SHAPES = {
    "32x56x56x64": (32, 56, 56, 64),
    "32x28x28x128": (32, 28, 28, 128),
    "32x14x14x256": (32, 14, 14, 256),
    "32x7x7x512": (32, 7, 7, 512),
    "32x112x112x16": (32, 112, 112, 16),
    "32x128x64": (32, 128, 64),
    "512x256": (512, 256),
}
VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
MINIMUM = 0.01  # seconds that one measurement takes at least


def by_hand(keras: Any) -> Any:
    """The asker's first version: the moments by hand."""

    class MomentsBatchNormalization(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            size, add = (shape[-1],), self.add_weight
            self.gamma = add(name="gamma", shape=size, initializer="ones")
            self.beta = add(name="beta", shape=size, initializer="zeros")
            self.mean = add(name="mean", shape=size, initializer="zeros", trainable=False)
            self.var = add(name="var", shape=size, initializer="ones", trainable=False)

        def call(self, x: Any, training: bool = False, mask: Any = None) -> Any:
            gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
            mean, var = tf.convert_to_tensor(self.mean), tf.convert_to_tensor(self.var)
            if training:
                batch_mean, batch_var = tf.nn.moments(x, list(range(len(x.shape) - 1)))
                self.mean.assign(mean * 0.99 + batch_mean * 0.01)
                self.var.assign(var * 0.99 + batch_var * 0.01)
                mean, var = batch_mean, batch_var
            return tf.nn.batch_normalization(x, mean, var, beta, gamma, 1e-3)

    return MomentsBatchNormalization()


def variants(name: str) -> dict[str, Any]:
    """The layers, not built."""
    keras = importlib.import_module(name)
    ours = getattr(layers, name).FusedBatchNormalization
    return {
        "stock": keras.layers.BatchNormalization(),
        "ours float": ours(),
        "ours pipeline": ours(pipeline={v: rewriter.FixedPoint(8) for v in VARIABLES}),
        "moments by hand": by_hand(keras),
    }


def functions(layer: Any, x: Any) -> dict[str, Callable[[], Any]]:
    """What is timed."""
    layer.build(x.shape)
    layer.built = True
    raw = [v if isinstance(v, tf.Variable) else v.value for v in (layer.gamma, layer.beta)]
    upstream = tf.constant(np.random.default_rng(1).normal(size=x.shape).astype("float32"))

    @tf.function
    def forward() -> Any:
        return layer(x, training=False)

    @tf.function
    def training() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, [x, *raw], output_gradients=upstream)

    return {"forward": forward, "training": training}


def measure(name: str, shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, Any]]:
    """Medians and ratios for one shape, every variant, forward and training."""
    x = tf.constant(np.random.default_rng(0).normal(0.5, 2, shape).astype("float32"))
    timed: dict[str, dict[str, Callable[[], Any]]] = {"forward": {}, "training": {}}
    for label, layer in variants(name).items():
        for what, function in functions(layer, x).items():
            timed[what][label] = function
        if label == "ours pipeline":
            layer.phase.assign(phases.QUANTIZE)
    rows = {}
    for what, candidates in timed.items():
        for function in candidates.values():
            for _ in range(3):
                function()
        start = time.perf_counter()
        candidates["stock"]()
        repeats = max(1, round(MINIMUM / (time.perf_counter() - start)))
        times: dict[str, list[float]] = {label: [] for label in candidates}
        for index in range(rounds):
            # Nobody always comes first, or after the same other one.
            order = list(candidates.items())
            order = order[index % len(order) :] + order[: index % len(order)]
            for label, function in order[:: 1 if index % 2 else -1]:
                start = time.perf_counter()
                for _ in range(repeats):
                    function()
                times[label].append((time.perf_counter() - start) / repeats)
        rows[what] = {label: _row(values, times["stock"]) for label, values in times.items()}
    return rows


def _row(values: list[float], base: list[float]) -> dict[str, float]:
    ratios = [a / b for a, b in zip(values, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    median = statistics.median(values)
    return {
        "milliseconds": 1e3 * median,
        "ratio": median / statistics.median(base),
        "paired": middle,
        "low": low,
        "high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keras", nargs="+", choices=["tf_keras", "keras"],
                        default=["tf_keras", "keras"])  # fmt: skip
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--results", type=Path, help="replace this benchmark's sections there")
    args = parser.parse_args()
    header = ("shape", "", "variant", "ms", "/ stock", "in a round", "quartiles")
    for name in args.keras:
        busy, lines = report.load(), []
        for shape in args.shapes:
            for what, rows in measure(name, SHAPES[shape], args.rounds).items():
                for label, row in rows.items():
                    lines.append(
                        (
                            shape,
                            what,
                            label,
                            f"{row['milliseconds']:.3f}",
                            f"{row['ratio']:.2f}",
                            f"{row['paired']:.2f}",
                            f"{row['low']:.2f}-{row['high']:.2f}",
                        )
                    )
                    print(name, *lines[-1], flush=True)
        text = (
            f"`{report.command()}`; at the start: {busy}.\n\n*/ stock*: of the medians; "
            f"*in a round*: the median of the rounds' ratios.\n\n{report.table(header, lines)}"
        )
        if args.results:
            report.replace_section(args.results, f"One layer ({name})", text)


if __name__ == "__main__":
    main()
