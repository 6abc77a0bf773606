"""Ranges where training sees other statistics than inference: they hold what either computes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both
from rewriter.keras_compat import flat_layers
from rewriter.training import calibrate as calibration

X = (0.02 * np.random.default_rng(0).normal(size=(64, 8, 8, 3)) + 0.3).astype(np.float32)
Ranges = dict[str, tuple[float, float]]


def small(flavour: str, momentum: float = 0.999) -> Any:
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(2)
    x = inputs = keras.Input((8, 8, 3), name="image")
    for number in range(3):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv_{number}")(x)
        x = layers.BatchNormalization(momentum=momentum, name=f"bn_{number}")(x)
        x = layers.ReLU(name=f"relu_{number}")(x)
    x = layers.Dense(3, name="dense")(layers.GlobalAveragePooling2D(name="mean")(x))
    return keras.Model(inputs, x, name="small")


def agreeing(flavour: str) -> Any:
    """The same after enough steps of training."""
    model = small(flavour, 0.7)
    model.compile(KERASES[flavour].optimizers.SGD(0.01), "mse")
    model.fit(X, np.zeros((64, 3), np.float32), epochs=8, batch_size=16, verbose=0)
    return model


def ranges(qat: Any) -> Ranges:
    found = [each for each in flat_layers(qat) if "min_var" in getattr(each, "range_variables", ())]
    return {
        f"{each.owner}/{each.name}": tuple(
            float(each.range_variables[key].numpy()) for key in ("min_var", "max_var")
        )
        for each in found
    }


def calibrated(qat: Any, data: Any = X, method: str = "minmax", **kwargs: Any) -> Ranges:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rewriter.calibrate(qat, data, method=method, progress=False, **kwargs)
    return ranges(qat)


def state(model: Any) -> list[np.ndarray]:
    """All variables but ranges and phases."""
    names = ("range", "phase", "min", "max")
    kept = [v for v in model.variables if not any(name in _path(v) for name in names)]
    return [np.array(v.numpy() if hasattr(v, "numpy") else v) for v in kept]


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name)).rsplit("/", 1)[-1]


def joined(one: Ranges, other: Ranges) -> Ranges:
    return {n: (min(one[n][0], other[n][0]), max(one[n][1], other[n][1])) for n in one}


def in_training(flavour: str, data: np.ndarray) -> Ranges:
    """The ranges of what phase float computes in training, by batches of 32."""
    qat = rewriter.rewrite(small(flavour))
    rewriter.set_phase(qat, "observe")
    for start in range(0, len(data), 32):
        qat(data[start : start + 32], training=True)
    return ranges(qat)


@both
def test_ranges_hold_both(flavour: str) -> None:
    """The union of what inference and training compute, and the model is as it was."""
    qat = rewriter.rewrite(small(flavour))
    before = state(qat)
    inference = calibrated(qat, for_training=False)
    found = calibrated(qat)
    expected = joined(inference, in_training(flavour, X))
    assert found.keys() == expected.keys() and found != inference
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
    for old, new in zip(before, state(qat), strict=True):
        np.testing.assert_array_equal(old, new)


@both
@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_methods(flavour: str, method: str) -> None:
    """Each sees the values of inference and of training apart: its range holds that of either."""
    qat = rewriter.rewrite(small(flavour))
    inference = calibrated(qat, method=method, for_training=False)
    found = calibrated(qat, method=method)
    extremes = calibrated(qat)
    wider = 0
    for name, (low, high) in found.items():
        assert low <= inference[name][0] and high >= inference[name][1]
        assert extremes[name][0] <= low and extremes[name][1] >= high
        wider += high > 2 * inference[name][1]
    assert wider


@both
def test_where_they_agree_nothing_changes(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and without a second look."""
    qat = rewriter.rewrite(agreeing(flavour))
    alone = {m: calibrated(qat, method=m, for_training=False) for m in ("minmax", "percentile")}

    def never(*_: Any) -> None:
        raise AssertionError("observed twice")

    monkeypatch.setattr(calibration, "_as_in_training", never)
    for method, expected in alone.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rewriter.calibrate(qat, X, method=method, progress=False)
        assert ranges(qat) == expected


@both
def test_statistics_that_training_would_not_use(flavour: str) -> None:
    """Frozen normalizations; in part, and calls with ``training=False``, as transfer learning has."""
    keras = KERASES[flavour]
    qat = rewriter.rewrite(small(flavour))
    rewriter.freeze_batch_norm(qat)
    assert calibrated(qat) == calibrated(qat, for_training=False)
    inputs = keras.Input((8, 8, 3))
    base = small(flavour)
    if flavour == "keras":
        base.trainable = False  # a model of it gives every layer its own flag
    x = keras.layers.Dense(3)(base(inputs, training=False))
    fixed = rewriter.rewrite(keras.Model(inputs, x))
    assert calibrated(fixed) == calibrated(fixed, for_training=False)


@both
def test_small_batches_are_gathered(flavour: str) -> None:
    """A generator of single samples: the statistics are those of 32."""

    def singly(data: np.ndarray = X) -> Iterator[np.ndarray]:
        for sample in data:
            yield sample[None]

    qat = rewriter.rewrite(small(flavour))
    expected = calibrated(qat)
    for name, value in calibrated(qat, singly()).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    # Of one sample with one pixel there is no variance: it says nothing of the model.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rewriter.calibrate(rewriter.rewrite(agreeing(flavour)), singly, progress=False)


@both
def test_batches_of_several_sizes(flavour: str) -> None:
    keras = KERASES[flavour]
    layers = keras.layers
    x = inputs = keras.Input((None, None, 3))
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.999)(layers.Conv2D(4, 3)(x)))
    qat = rewriter.rewrite(keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    batches = [X[:5], X[5:10, :6], X[10:20, :, :6], X[20:]]
    inference = calibrated(qat, iter(batches), for_training=False)
    assert calibrated(qat, iter(batches)) != inference


@both
def test_a_few_samples_do_not_decide(flavour: str) -> None:
    """Their statistics are not those of training: a warning, and the ranges of inference."""
    qat = rewriter.rewrite(small(flavour))
    with pytest.warns(rewriter.RewriterWarning, match="are those of inference alone"):
        rewriter.calibrate(qat, X[:31], method="minmax", progress=False)
    assert ranges(qat) == calibrated(qat, X[:31], for_training=False)
    assert calibrated(qat, X[:32]) != calibrated(qat, X[:32], for_training=False)


@both
def test_what_is_said(flavour: str) -> None:
    qat = rewriter.rewrite(small(flavour))
    with pytest.warns(UserWarning, match="observed with both.*coarser.*reestimate_batch_norm"):
        rewriter.calibrate(qat, X, progress=False)
    with pytest.warns(UserWarning, match="of inference alone.*clipped.*reestimate_batch_norm"):
        rewriter.calibrate(qat, X, progress=False, for_training=False)


@both
def test_training_goes_on(flavour: str) -> None:
    """With ranges of inference alone all of this is clipped: gradients of 1e23, and NaN soon."""
    keras = KERASES[flavour]
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 64)
    x = rng.normal(size=(4, 4, 4, 3))[y].repeat(8, 1).repeat(8, 2)
    x = (128 + 50 * (x + 0.7 * rng.normal(size=x.shape))).clip(0, 255).astype(np.float32)
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), weights=None, classes=4, dropout_rate=0.0
    )
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, batch_size=16, verbose=0)
    qat = rewriter.rewrite(model)
    variables = [v if isinstance(v, tf.Variable) else v.value for v in qat.variables]
    weights = [v if isinstance(v, tf.Variable) else v.value for v in qat.trainable_variables]
    entropy = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = entropy(y[:16], qat(x[:16], training=True))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, weights)]
        return loss, tf.reduce_max([tf.reduce_max(tf.abs(g)) for g in gradients])

    before = [np.array(v) for v in variables]
    loss, gradient = (float(value) for value in step())
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    calibrated(qat, x, "percentile")
    quantized = [float(value) for value in step()]
    assert abs(quantized[0] - loss) < 0.5
    assert gradient / 5 < quantized[1] < 5 * gradient
    qat.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    history = qat.fit(x, y, epochs=5, batch_size=16, verbose=0).history["loss"]  # 20 steps
    assert np.isfinite(history).all() and history[-1] < 1.2
    assert all(np.isfinite(v.numpy()).all() for v in weights)
