"""One range for several tensors of a batch follows the smallest and the largest of them all.

The oracle is the moving average, in NumPy's float64, of the union of the batch's tensors.
"""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from builders import KERASES, fresh, keras_of
from rewriter import kernels, layers
from rewriter.quantization.quantizers import RangeQuantizer

MOMENTUM = 0.9
FACTORS = (1.0, 10.0, 0.1)


def _model(keras, factors=FACTORS):
    """The input times each factor, quantized by one layer in that order."""
    quantize = getattr(layers, keras.__name__).Quantize(RangeQuantizer(momentum=MOMENTUM))
    inputs = keras.Input((5,))
    outputs = [quantize(keras.layers.Rescaling(factor)(inputs)) for factor in factors]
    return keras.Model(inputs, keras.layers.Concatenate()(outputs)), quantize


def _batches(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 4, 5)).astype(np.float32)


def _followed(start, batches, factors=FACTORS):
    low, high = start
    for batch in batches.astype(np.float64):
        all_of_it = np.concatenate([batch * factor for factor in factors])
        new_low, new_high = min(all_of_it.min(), 0.0), max(all_of_it.max(), 0.0)
        if low > high:
            low, high = new_low, new_high
        low += (1 - MOMENTUM) * (new_low - low)
        high += (1 - MOMENTUM) * (new_high - high)
    return low, high


def _range(quantize):
    return [float(np.asarray(quantize.range_variables[name])) for name in ("min_var", "max_var")]


def _set(quantize, start):
    for name, value in zip(("min_var", "max_var"), start, strict=True):
        quantize.range_variables[name].assign(value)


@pytest.mark.parametrize("start", [(-30.0, 30.0), (-0.5, 0.5), (np.inf, -np.inf)])
@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("factors", [FACTORS, FACTORS[::-1], (1.0,)])
@pytest.mark.parametrize("kind", KERASES)
def test_the_union_is_followed(kind, factors, eagerly, start):
    model, quantize = _model(fresh(keras_of(kind)), factors)
    _set(quantize, start)
    rewriter.set_phase(model, "quantize")
    step = (lambda x: model(x, training=True)) if eagerly else tf.function(model)
    for batch in _batches():
        step(batch) if eagerly else step(batch, training=True)
    np.testing.assert_allclose(_range(quantize), _followed(start, _batches(), factors), rtol=1e-5)


@pytest.mark.parametrize("kind", KERASES)
def test_fit(kind):
    """Several steps in one call of the graph, too: each is a batch of its own."""
    model, quantize = _model(fresh(keras_of(kind)))
    _set(quantize, (-30.0, 30.0))
    rewriter.set_phase(model, "quantize")
    model.compile("sgd", "mse", steps_per_execution=3)
    batches = _batches()
    x = batches.reshape(-1, 5)
    model.fit(x, np.zeros((len(x), 15)), batch_size=4, shuffle=False, verbose=0)
    np.testing.assert_allclose(_range(quantize), _followed((-30.0, 30.0), batches), rtol=1e-5)


@pytest.mark.parametrize("kind", KERASES)
def test_a_frozen_range_stays_and_an_unset_one_becomes_the_union(kind):
    model, quantize = _model(fresh(keras_of(kind)))
    rewriter.set_phase(model, "quantize", freeze_ranges=True)
    first, *others = _batches()
    step = tf.function(lambda x: model(x, training=True))
    step(first)
    union = np.concatenate([np.float32(factor) * first for factor in FACTORS])
    np.testing.assert_allclose(_range(quantize), (union.min(), union.max()), rtol=1e-6)
    kept = _range(quantize)
    for batch in others:
        step(batch)
    assert _range(quantize) == kept


@pytest.mark.parametrize("kind", KERASES)
def test_inference_does_not_follow(kind):
    model, quantize = _model(fresh(keras_of(kind)))
    _set(quantize, (-3.0, 3.0))
    rewriter.set_phase(model, "quantize")
    tf.function(lambda x: model(x, training=False))(_batches()[0] * 100)
    assert _range(quantize) == [-3.0, 3.0]


@pytest.mark.parametrize("kind", KERASES)
def test_a_batch_is_quantized_within_its_range(kind):
    """Each tensor by the range so far: the moving average of all up to it."""
    model, quantize = _model(fresh(keras_of(kind)))
    _set(quantize, (-30.0, 30.0))
    rewriter.set_phase(model, "quantize")
    batch = _batches()[0]
    found = np.asarray(tf.function(lambda x: model(x, training=True))(batch))
    for index, factor in enumerate(FACTORS):
        low, high = _followed((-30.0, 30.0), batch[None], FACTORS[: index + 1])
        expected = tf.quantization.fake_quant_with_min_max_vars(
            batch * np.float32(factor), low, high
        )
        part = found[:, 5 * index : 5 * index + 5]
        np.testing.assert_allclose(part, expected, atol=1e-3 * (high - low) / 255)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KERASES)
def test_wide_and_narrow_tensors_of_a_concatenation(kind):
    """Training does not cut off what calibration has seen."""
    keras = fresh(keras_of(kind))
    inputs = keras.Input((6, 6, 3))
    parts = []
    for gamma in (10.0, 1.0):
        start = keras.initializers.Constant(gamma)
        x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
        parts.append(keras.layers.BatchNormalization(gamma_initializer=start)(x))
    x = keras.layers.Concatenate(name="joined")(parts)
    x = keras.layers.AveragePooling2D(2)(x)
    model = rewriter.rewrite(keras.Model(inputs, keras.layers.Conv2D(2, 1)(x)))
    x = np.random.default_rng(1).normal(size=(64, 6, 6, 3)).astype(np.float32)
    rewriter.calibrate(model, x, progress=False, method="minmax")
    shared = [q for q in model.layers if hasattr(q, "range_variables") and places(q) == 3]
    assert len(shared) == 1
    rewriter.set_phase(model, "quantize")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros((64, 2, 2, 2)), batch_size=64, epochs=600, verbose=0)
    low, high = _range(*shared)
    # A normalized batch times 10 has some 4 deviations to either side; the mean of both, half.
    assert low < -30 and high > 30


def places(layer):
    return layer.flavour.places(layer)


@pytest.mark.skipif(
    kernels.current() == "plain",
    reason="tf.custom_gradient keeps every graph that it was used in (plain kernels)",
)
def test_a_function_forgets_its_ranges():
    """What is remembered of a batch goes with the graph."""
    import gc
    import weakref

    model, _ = _model(keras_of("tf_keras"))
    function = tf.function(lambda x: model(x, training=True))
    concrete = function.get_concrete_function(tf.TensorSpec((4, 5)))
    graph = weakref.ref(concrete.graph)
    del function, concrete
    gc.collect()
    assert graph() is None
