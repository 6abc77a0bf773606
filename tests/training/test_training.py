"""What training sees of a rewritten model: flags, losses, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from builders import KERASES, conv_bn_relu, keras_of, normal


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


@pytest.mark.parametrize(
    "frozen", [["conv_bn"], ["conv"], ["conv", "conv_bn"], ["alone"], []], ids=str
)
def test_trainable_flags(keras, frozen):
    """A frozen normalization on a trainable host and the other way round, through training."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = conv_bn_relu(layers, image, "conv", momentum=0.6)
    x = layers.BatchNormalization(name="alone", momentum=0.6)(layers.MaxPooling2D()(x))
    x = layers.Dense(3, name="scores")(layers.Flatten()(x))
    model = builders.randomise_all(keras.Model(image, x), 1)
    for name in frozen:
        builders.freeze(model, name)
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_weights) == len(model.trainable_weights)
    batches = [(normal(8, 8, 8, 3, seed=i), normal(8, 3, seed=9 + i)) for i in range(3)]
    before = builders.weights_by_name(qat)
    claims.check_training(model, qat, keras, batches, "mse", 1e-3, must_move=())
    after = builders.weights_by_name(qat)
    for name in before:
        layer, _, variable = name.rpartition("/")
        if variable == "bias" and layer == "conv":
            continue  # the normalization takes it out again: no gradient
        assert np.array_equal(before[name], after[name]) == (layer in frozen), name
    for layer in qat._flatten_layers():
        if layer.name in frozen and type(layer).__name__ == "FusedBatchNormalization":
            assert not layer.trainable


def test_flags_can_be_changed_afterwards(keras):
    model = builders.trained_residual(keras)
    model.trainable = False
    qat = rewriter.rewrite(model)
    assert not qat.trainable_weights
    qat.trainable = True
    assert len(qat.trainable_weights) == len(builders.trained_residual(keras).trainable_weights)


def test_regularizers_and_constraints(keras):
    layers, l2 = keras.layers, keras.regularizers.L2
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(
        4,
        3,
        name="conv",
        kernel_regularizer=l2(0.01),
        bias_regularizer=keras.regularizers.L1(0.02),
        kernel_constraint=keras.constraints.MaxNorm(0.5),
    )(image)
    x = layers.BatchNormalization(
        name="conv_bn",
        gamma_regularizer=l2(0.03),
        beta_regularizer=l2(0.04),
        gamma_constraint=keras.constraints.NonNeg(),
        momentum=0.6,
    )(x)
    x = layers.ReLU()(x)
    x = layers.Conv2D(4, 3, name="second", activity_regularizer=l2(1e-3))(x)
    x = layers.BatchNormalization(name="second_bn", momentum=0.6)(x)
    x = layers.ActivityRegularization(l2=1e-3)(x)
    x = layers.Dense(3, name="scores", activity_regularizer=l2(1e-2))(layers.Flatten()(x))
    model = builders.randomise_all(keras.Model(image, x), 1)
    qat = rewriter.rewrite(model)
    data = normal(8, 8, 8, 3)
    model(data, training=True), qat(data, training=True)
    assert len(qat.losses) == len(model.losses) > 5
    found = float(tf.add_n([tf.convert_to_tensor(v) for v in qat.losses]))
    expected = float(tf.add_n([tf.convert_to_tensor(v) for v in model.losses]))
    assert found == pytest.approx(expected, rel=1e-5)
    batches = [(normal(8, 8, 8, 3, seed=i), normal(8, 3, seed=9 + i)) for i in range(3)]
    claims.check_training(model, qat, keras, batches, "mse", 1e-3)
    assert (builders.weights_by_name(qat)["conv_bn/gamma"] >= 0).all()


def test_gradients(keras):
    """Of every trainable variable, in phase float, in training."""
    model = builders.trained_residual(keras, softmax=False)
    qat = rewriter.rewrite(model)
    x = tf.constant(builders.residual_data())
    gradients = []
    for m in (model, qat):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(m(x, training=True) - 0.3))
        variables = [getattr(v, "_value", v) for v in m.trainable_variables]
        gradients.append([np.asarray(g) for g in tape.gradient(loss, variables)])
    assert len(gradients[0]) == len(gradients[1]) > 10
    # The order of the variables is the order of the layers in both. What should be 0 is rounding
    # noise, measured by the largest gradient of all; or it is 0, where a bias is taken out again
    # by the batch's mean.
    largest = max(np.abs(g).max() for g in gradients[0])
    fused = [h.bias for h in builders.hosts(qat) if h.batch_norm is not None]
    biases = {id(getattr(bias, "_value", bias)) for bias in fused}
    assert biases & {id(v) for v in variables}
    for variable, found, expected in zip(variables, gradients[1], gradients[0], strict=True):
        if id(variable) in biases:
            assert not found.any()
            assert np.abs(expected).max() <= 1e-3 * largest
            continue
        bound = 2e-4 * np.abs(expected).max() + 1e-5 * largest
        assert np.abs(found - expected).max() <= bound


def test_regularized_output_of_a_host_is_not_fused_away(keras):
    """An activity regularizer sees the convolution's own output."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv", activity_regularizer=keras.regularizers.L2(1e-2))(image)
    model = builders.randomise_all(
        keras.Model(image, layers.BatchNormalization(name="conv_bn")(x)), 1
    )
    (entry,) = rewriter.plan(model).entries
    assert entry.action == "standalone" and "activity regularizer" in entry.reason
