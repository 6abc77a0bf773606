"""Train in float, then quantize in a second, fine-tuning phase: one fit, one compiled model.

    python samples/float_then_quantize.py --bits 8 --output float_then_quantize

Trains a small residual network twice from the same weights: with the stock BatchNormalization,
and rewritten. The rewritten one trains in float first; in mid-fit a condition in its graph starts
to quantize kernels, activations and, by the pipeline, gamma, beta, moving mean and variance to
fixed point of the chosen width; later the statistics are frozen. Then it is exported. Prints and
plots the accuracy by epoch.

Data: the subset of CIFAR-10 below the folder REWRITER_SHARED, or scikit-learn's handwritten
digits where there is none. Takes about five minutes (digits: one). Needs matplotlib.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import rewriter
from rewriter.cli import demo
from rewriter.keras_compat import flat_layers
from rewriter.quantization import phases

VARIABLES = ("gamma", "beta", "moving_mean", "moving_variance")
COLOURS = {"stock": "#8a8a8a", "ours": "#1f5fa8", "file": "#c4451c"}


@dataclasses.dataclass(frozen=True)
class Data:
    """Images float32 (N, H, W, C), labels int64 (N,)."""

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_data() -> Data:
    """CIFAR-10 images where they are, else digits; both between -1 and 1."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("REWRITER_SHARED", default))
    path = folder / "datasets" / "cifar10_subset" / "cifar10_subset.npz"
    if not path.is_file():
        digits = demo.digits()
        return Data(
            "digits",
            digits.x_train * 2 - 1,
            digits.y_train,
            digits.x_test * 2 - 1,
            digits.y_test,
        )
    with np.load(path) as arrays:
        x_train, x_test = (arrays[k].astype(np.float32) / 127.5 - 1 for k in ("x_train", "x_test"))
        y_train, y_test = (arrays[k].astype(np.int64).ravel() for k in ("y_train", "y_test"))
    return Data("CIFAR-10 subset", x_train, y_train, x_test, y_test)


def build(keras: Any, shape: tuple[int, ...], seed: int) -> Any:
    """Three residual blocks, with the stock BatchNormalization."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers

    def conv(x: Any, filters: int, size: int, stride: int = 1) -> Any:
        x = layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    image = keras.Input(shape)
    x = layers.ReLU()(conv(image, 16, 3))
    for filters in (16, 32, 64):
        stride = 1 if filters == 16 else 2
        shortcut = x if stride == 1 else conv(x, filters, 1, stride)
        x = layers.ReLU()(conv(x, filters, 3, stride))
        x = layers.ReLU()(layers.Add()([conv(x, filters, 3), shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10)(x))


def train(keras: Any, model: Any, data: Data, epochs: int, callbacks: list[Any]) -> list[float]:
    """Accuracy on the test images after every epoch, in percent."""
    keras.utils.set_random_seed(1)  # the same order of images for both models
    steps = epochs * -(-len(data.x_train) // 64)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    history = model.fit(
        data.x_train,
        data.y_train,
        batch_size=64,
        epochs=epochs,
        validation_data=(data.x_test, data.y_test),
        callbacks=callbacks,
        verbose=0,
    )
    return [100 * share for share in history.history["val_accuracy"]]


def distinct_values(model: Any) -> int:
    """The largest number of different values that a piped variable takes."""
    phase = tf.constant(phases.QUANTIZE)
    norms = [layer for layer in flat_layers(model) if hasattr(layer, "variables_in")]
    piped = [value for norm in norms for value in norm.variables_in(phase).values()]
    return max(len(np.unique(value)) for value in piped)


def plot(path: Path, curves: dict[str, list[float]], switches: dict[str, int], device: float,
         title: str) -> None:  # fmt: skip
    """Accuracy by epoch, with the switches marked."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    epochs = range(1, len(curves["ours"]) + 1)
    axes.plot(epochs, curves["stock"], color=COLOURS["stock"], lw=2, ls="--", label="stock, float")
    axes.plot(epochs, curves["ours"], color=COLOURS["ours"], lw=2, label="rewritten")
    axes.plot(epochs[-1], device, "o", color=COLOURS["file"], ms=8, label="the integer file")
    low = min(min(values) for values in curves.values())
    top = max(*map(max, curves.values()), device)
    axes.set_ylim(low - 0.05 * (top - low), top + 0.12 * (top - low))
    for index, (what, epoch) in enumerate(switches.items()):
        axes.axvline(epoch + 0.5, color="black", lw=1, ls=":")
        place = (epoch + 0.5, 0.04 + 0.07 * (index % 3))
        axes.annotate(what, place, xycoords=("data", "axes fraction"), xytext=(4, 0),
                      textcoords="offset points", fontsize=9)  # fmt: skip
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title=title)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=int, default=8, help="width of the four variables")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--keras", choices=["tf_keras", "keras"], default="tf_keras")
    parser.add_argument("--output", type=Path, default=Path("float_then_quantize"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    keras = importlib.import_module(args.keras)
    data = load_data()
    shape = data.x_train.shape[1:]

    pipeline = {name: rewriter.FixedPoint(args.bits) for name in VARIABLES}
    quantize, freeze = args.epochs * 3 // 5, args.epochs * 4 // 5
    schedule = rewriter.QuantizationSchedule(
        quantize, freeze, unit="epoch", observe_for=1, verbose=1
    )
    stock = build(keras, shape, seed=0)
    qat = rewriter.rewrite(stock, rewriter.Recipe(batch_norm_pipeline=pipeline))
    print(f"{data.name}: {len(data.x_train)} images to train, {len(data.x_test)} to test")
    curves = {
        "stock": train(keras, stock, data, args.epochs, []),
        "ours": train(keras, qat, data, args.epochs, [schedule]),
    }

    path = args.output / "model.tflite"
    print(rewriter.export_tflite(qat, path))
    found = rewriter.verify(qat, path, data.x_test[:256], progress=False).comparison
    device = rewriter.fold(qat).predict(data.x_test, verbose=0).argmax(-1) == data.y_test
    device = 100 * float(device.mean())

    print("\nepoch  stock  rewritten")
    said = {epoch: what for epoch, what in schedule.history if epoch}
    for epoch, (a, b) in enumerate(zip(*curves.values(), strict=True)):
        print(f"{epoch + 1:5d}  {a:5.1f}  {b:9.1f}  {said.get(epoch, '')}".rstrip())
    print(f"  the integer file: {device:.1f} %, the twin's in {100 * found.worst.identical:.2f} % "
          f"of the elements of the worst operator")  # fmt: skip
    print(f"  gamma, beta, mean and variance: at most {distinct_values(qat)} values a variable "
          f"({args.bits} bits)")  # fmt: skip
    switches = {"observe ranges": quantize - 1, f"quantize, {args.bits}-bit variables": quantize,
                "freeze statistics": freeze}  # fmt: skip
    title = f"Float, then quantized, in one fit ({data.name}, {args.keras})"
    plot(args.output / "accuracy.png", curves, switches, device, title)
    print(f"  {args.output / 'accuracy.png'}")


if __name__ == "__main__":
    main()
