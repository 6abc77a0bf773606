"""Normalizations wherever they stand, and with whatever arguments."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

import rewriter
from checks import (
    KERASES,
    assert_close,
    assert_float_equal,
    assert_plan,
    both,
    call,
    everything,
    randomise,
    samples,
)
from norm_layers import bn


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with normalizations.

    Attributes:
      build: the model's output, given the Keras and its input.
      plan: what becomes of each; see ``checks.assert_plan``.
      shape: of the input, without the batch.
      refusal: what the export says, if it refuses.
      allow_float: whether it then succeeds with layers in float.
      only: the one Keras that has it.
      dtype: of the input.
    """

    build: Callable[[Any, Any], Any]
    plan: dict[str, str]
    shape: tuple[int, ...] = (6, 8, 4)
    refusal: str | None = None
    allow_float: bool = False
    only: str | None = None
    dtype: str = "float32"


def conv(k: Any, name: str = "host", **kwargs: Any) -> Any:
    """A small convolution called ``name``."""
    return k.layers.Conv2D(4, 3, padding="same", name=name, **kwargs)


def after(layer: Callable[[Any], Any], **kwargs: Any) -> Case:
    """A normalization after ``layer(keras)``, which follows a convolution."""
    return Case(lambda k, x: bn(k)(layer(k)(conv(k)(x))), {"bn": "standalone"}, **kwargs)


def _two_consumers(k: Any, x: Any) -> Any:
    y = conv(k)(x)
    return [k.layers.ReLU()(bn(k)(y)), k.layers.Add()([y, x])]


def _host_is_output(k: Any, x: Any) -> Any:
    y = conv(k)(x)
    return [y, bn(k)(y)]


def _shared_host(k: Any, x: Any) -> Any:
    host = conv(k)
    return [bn(k)(host(x)), host(k.layers.ReLU()(x))]


def _shared_norm(k: Any, x: Any) -> Any:
    norm = bn(k)
    return [norm(conv(k)(x)), norm(x)]


def _preactivation(k: Any, x: Any) -> Any:
    y = conv(k, "first")(k.layers.ReLU()(bn(k, "bn_1")(x)))
    y = conv(k, "second")(k.layers.ReLU()(bn(k, "bn_2")(y)))
    return bn(k, "bn_3")(k.layers.Add()([x, y]))


RANKS = {2: (6,), 3: (9, 4), 4: (6, 8, 4), 5: (3, 4, 5, 4)}

CASES: dict[str, Case] = {
    **{
        f"on_input_rank_{rank}": Case(
            lambda k, x: k.layers.ReLU()(bn(k)(x)), {"bn": "standalone"}, shape
        )
        for rank, shape in RANKS.items()
    },
    "as_output": Case(lambda k, x: bn(k)(k.layers.ReLU()(x)), {"bn": "standalone"}),
    "activation_inside": Case(
        lambda k, x: bn(k)(conv(k, activation="relu")(x)), {"bn": "standalone"}
    ),
    "gelu_inside": Case(lambda k, x: bn(k)(conv(k, activation="gelu")(x)), {"bn": "standalone"}),
    "activation": after(lambda k: k.layers.ReLU()),
    "sigmoid": after(lambda k: k.layers.Activation("sigmoid")),
    "max_pooling": after(lambda k: k.layers.MaxPooling2D()),
    "average_pooling": after(lambda k: k.layers.AveragePooling2D(2)),
    "global_pooling": after(lambda k: k.layers.GlobalAveragePooling2D()),
    "padding": after(lambda k: k.layers.ZeroPadding2D()),
    "dropout": after(lambda k: k.layers.Dropout(0.0)),
    "reshape": after(lambda k: k.layers.Reshape((8, 24))),
    "flatten": after(lambda k: k.layers.Flatten()),
    "lstm": Case(
        lambda k, x: bn(k)(k.layers.LSTM(4, "log_softmax", return_sequences=True, name="lstm")(x)),
        {"bn": "standalone"}, (5, 3), "'lstm' has no integer form.*log_softmax", True,
    ),
    "embedding": Case(
        lambda k, x: bn(k)(k.layers.Embedding(10, 4, name="embedding")(x)),
        {"bn": "standalone"}, (5,), dtype="int32",
    ),
    "add": Case(lambda k, x: bn(k)(k.layers.Add()([conv(k)(x), x])), {"bn": "standalone"}),
    "concatenate": Case(
        lambda k, x: bn(k)(k.layers.Concatenate()([conv(k)(x), x])), {"bn": "standalone"}
    ),
    "after_norm": Case(
        lambda k, x: bn(k, "bn_2")(bn(k, "bn_1")(conv(k)(x))),
        {"bn_1": "host", "bn_2": "standalone"},
    ),
    "two_consumers": Case(_two_consumers, {"bn": "standalone"}),
    "host_is_output": Case(_host_is_output, {"bn": "standalone"}),
    "shared_host": Case(_shared_host, {"bn": "standalone"}),
    "shared_norm": Case(_shared_norm, {"bn": "standalone"}),
    "preactivation": Case(
        _preactivation, {"bn_1": "standalone", "bn_2": "first", "bn_3": "standalone"}
    ),
    # Arguments
    "no_scale": Case(lambda k, x: bn(k, scale=False)(conv(k)(x)), {"bn": "host"}),
    "no_center": Case(lambda k, x: bn(k, center=False)(conv(k)(x)), {"bn": "host"}),
    "neither": Case(lambda k, x: bn(k, center=0, scale=0)(x), {"bn": "standalone"}),
    "integers": Case(lambda k, x: bn(k, center=1, scale=0)(conv(k)(x)), {"bn": "host"}),
    "epsilon": Case(lambda k, x: bn(k, epsilon=0.3, momentum=0.5)(x), {"bn": "standalone"}),
    "axis_1": Case(lambda k, x: bn(k, axis=1)(x), {"bn": "standalone"}),
    "axis_1_line": Case(lambda k, x: bn(k, axis=1)(x), {"bn": "standalone"}, (9, 4)),
    "axis_2_volume": Case(lambda k, x: bn(k, axis=2)(x), {"bn": "standalone"}, (3, 4, 5, 2)),
    "axis_1_after_host": Case(lambda k, x: bn(k, axis=1)(conv(k)(x)), {"bn": "standalone"}),
    "axis_3": Case(lambda k, x: bn(k, axis=3)(conv(k)(x)), {"bn": "host"}),
    "axis_list": Case(
        lambda k, x: bn(k, axis=[3])(conv(k)(x)), {"bn": "host"}, only="tf_keras"
    ),
    "synchronized": Case(lambda k, x: bn(k, synchronized=True)(conv(k)(x)), {"bn": "host"}),
    "frozen": Case(lambda k, x: bn(k, trainable=False)(conv(k)(x)), {"bn": "host"}),
}  # fmt: skip


@both
@pytest.mark.parametrize("name", CASES)
def test_standalone(name: str, flavour: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.only not in (None, flavour):
        pytest.skip(f"{case.only} only")

    def build(keras: Any) -> Any:
        inputs = keras.Input(case.shape, name="x", dtype=case.dtype)
        return keras.Model(inputs, case.build(keras, inputs))

    everything(
        flavour, build, case.plan, tmp_path, refusal=case.refusal, allow_float=case.allow_float
    )


@both
def test_frozen_statistics_do_not_move(flavour: str) -> None:
    keras = KERASES[flavour]
    rng = np.random.default_rng(0)
    inputs = keras.Input((6, 8, 4))
    model = keras.Model(inputs, bn(keras, trainable=False)(inputs))
    randomise(model, rng, samples(model, rng))
    rewritten = rewriter.rewrite(model)
    batch = samples(model, rng)
    before = call(rewritten, batch, training=False)
    assert_close(call(rewritten, batch, training=True), before, 1e-6)
    assert_close(call(rewritten, batch, training=False), before, 0)
    assert not rewritten.trainable_variables


# Masks


def _masked(keras: Any, dense: bool, masking: bool) -> Any:
    if masking:
        inputs = keras.Input((5, 4))
        x = keras.layers.Masking(0.0)(inputs)
    else:
        inputs = keras.Input((5,), dtype="int32")
        x = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    if dense:
        x = keras.layers.Dense(4, name="host")(x)
    x = keras.layers.BatchNormalization(name="bn", momentum=0.5)(x)
    x = keras.layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def _padded(model: Any, rng: np.random.Generator) -> list[np.ndarray]:
    (array,) = samples(model, rng)
    for row, length in zip(array, rng.integers(1, 6, len(array)), strict=True):
        row[0] = np.maximum(row[0], 1)
        row[length:] = 0
    return [array]


@both
@pytest.mark.parametrize("masking", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_masks(flavour: str, dense: bool, masking: bool, tmp_path: Path,
               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """The masked steps do not count in the statistics, nor in what reads them."""
    keras = KERASES[flavour]
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = _masked(keras, dense, masking)
    fused = dense and flavour == "tf_keras"  # Keras 3 hands the mask over as a tensor
    assert_plan(model, {"bn": "host" if fused else "standalone"})
    randomise(model, rng, _padded(model, rng))
    model.get_layer("bn").momentum = 0.5
    rewritten = rewriter.rewrite(model)
    monkeypatch.setattr("checks.samples", _padded)
    assert_float_equal(model, rewritten, rng)
    mean = _statistics(rewritten)
    np.testing.assert_allclose(mean, np.asarray(model.get_layer("bn").moving_mean), atol=1e-5)
    (array,) = _padded(model, rng)
    rewriter.calibrate(rewritten, array, progress=False)
    with pytest.raises(rewriter.errors.ExportError, match="'pool' works under a mask.*without"):
        rewriter.export_tflite(rewritten, tmp_path / "m.tflite", allow_float=True)


def _statistics(rewritten: Any) -> np.ndarray:
    (layer,) = [x for x in rewritten._flatten_layers() if hasattr(x, "moving_mean")]
    return np.asarray(layer.moving_mean)


# Replicas


def test_sync_batch_normalization() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm = tf_keras.layers.experimental.SyncBatchNormalization(name="bn")
    rng = np.random.default_rng(0)
    inputs = tf_keras.Input((6, 8, 4))
    model = tf_keras.Model(inputs, norm(conv(tf_keras)(inputs)))
    randomise(model, rng, samples(model, rng))
    assert_plan(model, {"bn": "host"})
    rewritten = rewriter.rewrite(model)
    assert_float_equal(model, rewritten, rng)
    (layer,) = [x for x in rewritten._flatten_layers() if hasattr(x, "moving_mean")]
    assert layer.synchronized
