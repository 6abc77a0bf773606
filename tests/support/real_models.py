"""The six real models, and data for them: real where there is some, else of the same kind."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rewriter.reading.load import load_model


@dataclasses.dataclass(frozen=True)
class Real:
    """One model.

    Attributes:
      path: below ``models``.
      kerases: those in which it loads.
      data: ``data(shared, count, seed)`` gives that many calibration samples as the model takes
        them: an array, or a list of arrays.
      test: likewise, samples for verification (other ones).
      loss: to train with.
      rate: of SGD, small enough for five steps to stay well-behaved.
      classifier: whether the top-1 class of its output means something on ``test``.
    """

    path: str
    kerases: tuple[str, ...]
    data: Callable[[Path, int], Any]
    test: Callable[[Path, int], Any]
    loss: str
    rate: float
    classifier: bool = False


BOTH = ("tf_keras", "keras")
_KWS_SCALE, _KWS_ZERO = 0.5847029, 83


def spread(array: np.ndarray, count: int) -> np.ndarray:
    """``count`` samples, evenly over the array (which may be sorted), as float32."""
    count = min(count, len(array))
    return array[np.arange(count) * len(array) // count].astype(np.float32)


@functools.cache
def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files if arrays[key].dtype.kind in "iuf"}


def cifar(shared: Path) -> dict[str, np.ndarray]:
    """``x_train``, ``y_train``, ``x_test``, ``y_test``; images uint8."""
    return _npz(shared / "datasets/cifar10_subset/cifar10_subset.npz")


def kws_extra(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    """For calibration and fine-tuning: float32 features and classes."""
    arrays = _npz(shared / "datasets/kws_extra/speech_commands_mfcc_2400.npz")
    return arrays["x"], arrays["y"].astype(np.int64)


def kws_test(shared: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 1,000 test samples, as real values, and their classes."""
    arrays = _npz(shared / "datasets/mlperf_kws01/perf_kws01.npz")
    x = (arrays["x"].astype(np.float32) - _KWS_ZERO) * np.float32(_KWS_SCALE)
    return x, arrays["y"]


def _gray(shared: Path, part: str, count: int) -> np.ndarray:
    """CIFAR images as 64x64 gray ones between -1 and 1, which mini_XCEPTION takes."""
    gray = spread(cifar(shared)[part], count).mean(axis=-1, keepdims=True)
    return (gray.repeat(2, axis=1).repeat(2, axis=2) / 127.5 - 1).astype(np.float32)


def _spectrogram(shape: tuple[int, ...], low: float, high: float, count: int, seed: int) -> Any:
    """Smooth random fields between ``low`` and ``high``, as log-mel energies are."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, shape[0] // 4 + 2, shape[1] // 4 + 2))
    fine = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, : shape[0], : shape[1]]
    fine = fine + 0.3 * rng.normal(size=fine.shape) + rng.normal(size=(count, 1, 1))
    middle, half = (low + high) / 2, (high - low) / 2
    return np.clip(middle + half * fine / 3, low, high).astype(np.float32)


def _machine(shared: Path, count: int, seed: int) -> np.ndarray:
    # The input range of the reference int8 file: 0.391 * (-128 - 89) to 0.391 * (127 - 89).
    return _spectrogram((5, 128), -70, 10, count, seed).reshape(count, 640)


def _esc(shared: Path, count: int, seed: int) -> np.ndarray:
    # The input range of the reference int8 file: 0.3137 * (-128 - 127) to 0.
    return _spectrogram((64, 50), -80, 0, count, seed)[..., None]


def _gan(shared: Path, count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.eye(10, dtype=np.float32)[rng.integers(0, 10, count)]
    return [labels, rng.normal(size=(count, 50)).astype(np.float32)]


MODELS = {
    "ic01": Real(
        "mlperf_ic01/pretrainedResnet.h5",
        BOTH,
        lambda shared, count: spread(cifar(shared)["x_train"], count),
        lambda shared, count: spread(cifar(shared)["x_test"], count),
        "sparse_categorical_crossentropy",
        1e-4,
        classifier=True,
    ),
    "kws01": Real(
        "mlperf_kws01/kws_ref_model",
        ("tf_keras",),
        lambda shared, count: spread(kws_extra(shared)[0], count),
        lambda shared, count: spread(kws_test(shared)[0], count),
        "sparse_categorical_crossentropy",
        1e-3,
        classifier=True,
    ),
    "ad01": Real(
        "mlperf_ad01/ad01.h5",
        BOTH,
        lambda shared, count: _machine(shared, count, 0),
        lambda shared, count: _machine(shared, count, 1),
        "mse",
        1e-4,
    ),
    "mini_xception": Real(
        "mini_xception_gender/gender_mini_XCEPTION.21-0.95.hdf5",
        BOTH,
        lambda shared, count: _gray(shared, "x_train", count),
        lambda shared, count: _gray(shared, "x_test", count),
        "sparse_categorical_crossentropy",
        1e-4,
        classifier=True,
    ),
    "stackedgan": Real(
        "stackedgan_gen1/stackedgan_mnist-gen1.h5",
        BOTH,
        lambda shared, count: _gan(shared, count, 0),
        lambda shared, count: _gan(shared, count, 1),
        "mse",
        1e-3,
    ),
    "miniresnet": Real(
        "st_miniresnet_esc10/miniresnet_1stacks_64x50_tl.h5",
        BOTH,
        lambda shared, count: _esc(shared, count, 0),
        lambda shared, count: _esc(shared, count, 1),
        "sparse_categorical_crossentropy",
        1e-4,
        classifier=True,
    ),
}
CASES = [(name, keras) for name, real in MODELS.items() for keras in real.kerases]


def load(shared: Path, name: str, keras: str) -> Any:
    """A fresh copy of the model in the given Keras."""
    return load_model(shared / "models" / MODELS[name].path, flavour=keras)


def batches(shared: Path, name: str, model: Any, steps: int, size: int = 16) -> list[Any]:
    """Batches of inputs with random targets that fit the loss."""
    real, rng = MODELS[name], np.random.default_rng(0)
    data = real.data(shared, steps * size)
    arrays = data if isinstance(data, list) else [data]
    width = model.outputs[0].shape[-1]
    found = []
    for start in range(0, steps * size, size):
        x = [a[start : start + size] for a in arrays]
        if real.loss == "mse":
            scale = np.abs(np.asarray(model(x if len(x) > 1 else x[0]))).mean()
            y = rng.normal(0, scale, (size, width)).astype(np.float32)
        else:
            y = rng.integers(0, width, size)
        found.append((x if len(x) > 1 else x[0], y))
    return found
