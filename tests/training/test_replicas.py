"""Training on several devices: statistics and ranges are those of all replicas together.

Logical devices have to be asked for before TensorFlow starts, so each test has its own process.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

_DEVICES = """
import importlib
import sys
import tempfile

import numpy as np
import tensorflow as tf

import rewriter
from rewriter.quantization.quantizers import RangeQuantizer
from rewriter.keras_compat import variables
from rewriter.quantization import phases

keras = importlib.import_module(sys.argv[1])
layers = keras.layers
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
"""

_STATISTICS = """
data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
results = []
for synchronized in (True, False):
    with strategy.scope():
        inputs = keras.Input((4,))
        norm = layers.BatchNormalization(synchronized=synchronized)
        model = keras.Model(inputs, norm(inputs))
        models = [model, rewriter.rewrite(model)]
    for each in models:
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
        batch = next(iter(strategy.experimental_distribute_dataset(dataset)))
        output = strategy.run(lambda x, m=each: m(x, training=True), args=(batch,))
        parts = strategy.experimental_local_results(output)
        results.append(np.concatenate([np.asarray(part) for part in parts]))
together, alone = results[:2], results[2:]
np.testing.assert_allclose(together[1], together[0], atol=1e-5)
np.testing.assert_allclose(alone[1], alone[0], atol=1e-5)
assert np.abs(together[0] - alone[0]).max() > 0.1
"""

_RANGES = """
with strategy.scope():
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    qat = rewriter.rewrite(keras.Model(inputs, layers.ReLU()(x)))
    qat.compile("sgd", "mse")
images = np.random.default_rng(1).normal(size=(8, 6, 6, 3)).astype(np.float32)
images[4:] *= 3  # what the second replica sees
targets = np.zeros((8, 4, 4, 4), np.float32)
(first, *_) = kept = [layer for layer in qat.layers if hasattr(layer, "range_variables")]
ranges = lambda: [layer.range_variables["max_var"].numpy() for layer in kept]
replicas = lambda: [each.numpy() for each in first.range_variables["max_var"].values]

rewriter.calibrate(qat, images, progress=False, method="minmax")
assert replicas() == [images.max()] * 2, (replicas(), images.max())
rewriter.set_phase(qat, "observe")
tf.function(lambda x: qat(x))(images * 1.5)  # outside of the strategy, too
assert replicas() == [1.5 * images.max()] * 2, (replicas(), images.max())
for phase, moves in (("float", False), ("quantize", True)):
    before = ranges()
    rewriter.set_phase(qat, phase)
    qat.fit(images * 2, targets, batch_size=8, shuffle=False, verbose=0)
    assert all((a != b) == moves for a, b in zip(before, ranges())), (phase, before, ranges())
wanted = [0.99 * 1.5 * images.max() + 0.01 * 2 * part.max() for part in (images[:4], images[4:])]
np.testing.assert_allclose(first.range_variables["max_var"].numpy(), np.mean(wanted), rtol=1e-6)
if keras.__name__ == "tf_keras":  # as its statistics: a mean when it is read
    np.testing.assert_allclose(replicas(), wanted, rtol=1e-6)
before = ranges()
rewriter.set_phase(qat, "quantize", freeze_ranges=True)
assert {int(np.asarray(layer.phase)) for layer in kept} == {phases.QUANTIZE_FIXED}
qat.fit(images * 3, targets, batch_size=8, shuffle=False, verbose=0)
assert ranges() == before
for variable in qat.variables:  # each replica may have a value of its own
    np.testing.assert_array_equal(variables.read(variable), variable.numpy(), variable.name)
with tempfile.TemporaryDirectory() as folder:
    rewriter.export_tflite(qat, folder + "/model.tflite")
    report = rewriter.verify(qat, folder + "/model.tflite", images, progress=False)
    qat.save(folder + "/model.keras")
    loaded = rewriter.load_model(folder + "/model.keras")
assert report.comparison.worst.identical == 1, report
(again, *_) = [layer for layer in loaded.layers if hasattr(layer, "range_variables")]
assert again.range_variables["max_var"].numpy() == first.range_variables["max_var"].numpy()
"""

_SHARED_RANGES = """
data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
data[4:] *= 3  # what the second replica sees
with strategy.scope():
    quantizer = RangeQuantizer(momentum=0.9)
    quantize = getattr(rewriter.layers, sys.argv[1]).Quantize(quantizer)
    inputs = keras.Input((4,))
    outputs = [quantize(layers.Rescaling(factor)(inputs)) for factor in (10.0, 1.0)]
    model = keras.Model(inputs, layers.Concatenate()(outputs))
maximum = quantize.range_variables["max_var"]
maximum.assign(50.0)
quantize.range_variables["min_var"].assign(-50.0)
rewriter.set_phase(model, "quantize")
dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
batch = next(iter(strategy.experimental_distribute_dataset(dataset)))
tf.function(lambda x: strategy.run(lambda x: model(x, training=True), (x,)))(batch)
wanted = [0.9 * 50 + 0.1 * 10 * part.max() for part in (data[:4], data[4:])]
np.testing.assert_allclose(maximum.numpy(), np.mean(wanted), rtol=1e-6)
"""

_OTHERS = """
import tensorflow_model_optimization as tfmot

quantizers = tfmot.quantization.keras.quantizers
kind = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}
kernel = {"num_bits": 8, "per_axis": False, "symmetric": True, "narrow_range": True}
inputs = keras.Input((6, 6, 3))
model = keras.Model(inputs, layers.BatchNormalization()(layers.Conv2D(4, 3, name="c")(inputs)))
recipes = {
    "LastValueQuantizer": {"kernel_quantizer": quantizers.LastValueQuantizer(**kernel)},
    "MovingAverageQuantizer": {"activation_quantizer": quantizers.MovingAverageQuantizer(**kind)},
}
for name, options in recipes.items():
    rewriter.rewrite(model, rewriter.Recipe(**options))
    try:
        with strategy.scope():
            rewriter.rewrite(model, rewriter.Recipe(**options))
    except rewriter.errors.RecipeError as error:
        assert name in str(error) and "one device" in str(error), error
    else:
        raise AssertionError(name)
"""


def _run(script: str, keras: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DEVICES + script, keras],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_statistics_are_shared_only_if_asked() -> None:
    _run(_STATISTICS, "tf_keras")


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_ranges(keras: str) -> None:
    """Calibrated outside of the strategy, trained inside, exported, saved and loaded."""
    _run(_RANGES, keras)


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_ranges_of_several_tensors(keras: str) -> None:
    """Every replica follows the union of its own."""
    _run(_SHARED_RANGES, keras)


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_quantizers_of_tfmot(keras: str) -> None:
    """They assign their ranges in every call, which replicas cannot share: refused by name."""
    _run(_OTHERS, keras)
