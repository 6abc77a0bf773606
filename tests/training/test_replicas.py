"""Training on several devices: statistics and ranges are those of all replicas together.

Logical devices have to be asked for before TensorFlow starts, so each test has its own process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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

_QUANTIZERS_OF_OTHERS = """
import tfmot_recipes as recipes

moving = recipes.tfmot_quantizers.MovingAverageQuantizer(**recipes.KERNEL)
images = np.random.default_rng(1).normal(size=(8, 6, 6, 3)).astype(np.float32)
targets = np.zeros((8, 4, 4, 4), np.float32)
for options in (
    {"activation_quantizer": recipes.moving_average(), "kernel_quantizer": moving},
    {"activation_quantizer": recipes.last_value(),
     "kernel_quantizer": recipes.last_value(**recipes.KERNEL)},
):
    with strategy.scope():
        inputs = keras.Input((6, 6, 3))
        x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
        model = keras.Model(inputs, layers.ReLU()(x))
        qat = rewriter.rewrite(model, rewriter.Recipe(**options))
        qat.compile("sgd", "mse")
    kept = [layer.range_variables for layer in qat.layers if hasattr(layer, "range_variables")]
    kept += [w for layer in qat.layers for w in getattr(layer, "kernel_weights", [])]
    found = [v for weights in kept for v in weights.values()]
    assert all(isinstance(v, tf.distribute.DistributedValues) for v in found) and len(found) > 4
    values = lambda: [[float(each.numpy()) for each in v.values] for v in found]
    start = values()
    rewriter.calibrate(qat, images, progress=False)  # outside of the strategy
    assert values() != start and all(first == second for first, second in values())
    for phase, moves in (("float", False), ("quantize", True)):
        before = values()
        rewriter.set_phase(qat, phase)
        history = qat.fit(images * 2, targets, batch_size=8, epochs=2, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        assert (values() != before) == moves, (phase, before, values())
    if "Moving" in type(options["activation_quantizer"]).__name__:
        assert all(first == second for first, second in values())
    rewriter.set_phase(qat, "quantize", freeze_ranges=True)
    layer = next(layer for layer in qat.layers if hasattr(layer, "range_variables"))
    before = [each.numpy() for v in layer.range_variables.values() for each in v.values]
    qat.fit(images * 3, targets, batch_size=8, verbose=0)
    assert [each.numpy() for v in layer.range_variables.values() for each in v.values] == before
    with tempfile.TemporaryDirectory() as folder:
        qat.save(folder + "/model.keras")
        loaded = rewriter.load_model(folder + "/model.keras")
        rewriter.export_tflite(loaded, folder + "/model.tflite")
        report = rewriter.verify(loaded, folder + "/model.tflite", images, progress=False)
    assert report.comparison.worst.identical == 1
"""

_COUNTERS = """
from rewriter.quantization import replicated


class Counting:
    # The largest value, and of how many batches, which is no floating point number.
    def build(self, tensor_shape, name, layer):
        def add(suffix, **kwargs):
            return layer.add_weight(name + suffix, shape=(), trainable=False, **kwargs)

        return {"largest": add("_largest", initializer="zeros"),
                "seen": add("_seen", initializer="zeros", dtype="int32")}

    def __call__(self, inputs, training, weights, **kwargs):
        if training:
            weights["largest"].assign(tf.maximum(weights["largest"], tf.reduce_max(inputs)))
            weights["seen"].assign(weights["seen"] + 1)
        return inputs

    def get_config(self):
        return {}


data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
with strategy.scope():
    quantize = getattr(rewriter.layers, sys.argv[1]).Quantize(Counting())
    inputs = keras.Input((4,))
    model = keras.Model(inputs, quantize(inputs))
found = quantize.range_variables
assert all(isinstance(v, tf.distribute.DistributedValues) for v in found.values())
values = lambda: {name: [each.numpy() for each in v.values] for name, v in found.items()}
rewriter.set_phase(model, "observe")
for number in (1, 2):  # outside of the strategy
    model(data * number)
    assert values() == {"largest": [number * data.max()] * 2, "seen": [number] * 2}, values()
# As kernels are quantized; and where nothing is learned, nothing is written.
replicated.called(quantize.quantizer, data * 3, True, found)
assert values() == {"largest": [3 * data.max()] * 2, "seen": [3] * 2}, values()
replicated.called(quantize.quantizer, data * 4, False, found)
assert values() == {"largest": [3 * data.max()] * 2, "seen": [3] * 2}, values()
"""

_USERS_LAYERS = """
class Product(layers.Layer):
    # By a kernel that it is given, standardized if ``centred``.
    def __init__(self, kernel, centred, **kwargs):
        super().__init__(**kwargs)
        self.kernel, self.centred = kernel, centred

    def call(self, x):
        kernel = tf.convert_to_tensor(self.kernel)
        return tf.matmul(x, kernel - tf.reduce_mean(kernel, 0) if self.centred else kernel)

    def compute_output_shape(self, shape):
        return shape


data = np.random.default_rng(0).normal(size=(2, 8, 6)).astype(np.float32)
with strategy.scope():
    kernel = getattr(keras, "Variable", tf.Variable)(data[0, :6] / 2)
    inputs = keras.Input((6,))
    x = layers.BatchNormalization(synchronized=True)(Product(kernel, False, name="one")(inputs))
    model = keras.Model(inputs, Product(kernel, True, name="two")(x))
    qat = rewriter.rewrite(model)
    assert not rewriter.plan(model).float_layers
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    for each in (model, qat):
        each.compile(keras.optimizers.SGD(0.05), "mse")
fit = lambda m: m.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
np.testing.assert_allclose(fit(qat), fit(model), rtol=1e-5)
"""


def _run(script: str, keras: str) -> None:
    support = f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", support + _DEVICES + script, keras],
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
def test_quantizers_of_others(keras: str) -> None:
    """TFMOT's, calibrated outside of the strategy and trained inside, kernels' included."""
    _run(_QUANTIZERS_OF_OTHERS, keras)


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_quantizers_of_others_write_to_all_replicas(keras: str) -> None:
    """What a quantizer keeps beside its range, and what it is given outside of a layer."""
    _run(_COUNTERS, keras)


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_users_layers(keras: str) -> None:
    """Their variables are read, computed with and held in common as on one device."""
    _run(_USERS_LAYERS, keras)
