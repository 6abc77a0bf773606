"""Models inside models, shared layers, and subclassed models that are traced."""

from __future__ import annotations

import numpy as np
import pytest

import builders
import claims
import rewriter
from builders import KERASES, conv_bn_relu, keras_of, normal
from rewriter.errors import UnsupportedModelError


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


def test_shared_layers(keras):
    """Shared host and normalization, always in a pair: fused. A host that pairs only once: not."""
    layers = keras.layers
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    conv, norm = layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")
    second = layers.Conv2D(4, 1, name="second")
    norms = [layers.BatchNormalization(name=f"norm_{i}") for i in "ab"]
    left, right = norm(conv(a)), norm(conv(b))
    outputs = [n(second(x)) for n, x in zip(norms, (left, right), strict=True)]
    model = builders.randomise_all(keras.Model([a, b], outputs), 1)
    actions = {entry.name: entry.action for entry in rewriter.plan(model).entries}
    assert actions == {"norm": "fused", "norm_a": "standalone", "norm_b": "standalone"}
    qat = rewriter.rewrite(model)
    data = [normal(4, 8, 8, 3, seed=1), normal(4, 8, 8, 3, seed=2)]
    claims.check_float_phase(model, qat, data)
    claims.check_no_batch_norm(qat)
    assert len(builders.hosts(qat)) == 2
    model(data, training=True), qat(data, training=True)
    claims.check_float_phase(model, qat, data)


def test_nested_base_called_with_training_false(keras):
    """Transfer learning: ``base(x, training=False)`` keeps the base's statistics in training."""
    layers = keras.layers
    inner = keras.Input((8, 8, 3), name="inner")
    y = conv_bn_relu(layers, inner, "conv", momentum=0.5)
    y = layers.BatchNormalization(name="alone", momentum=0.5)(layers.MaxPooling2D()(y))
    base = keras.Model(inner, y, name="base")
    image = keras.Input((8, 8, 3), name="image")
    x = base(image, training=False)
    x = layers.Conv2D(4, 3, name="head")(x)
    x = layers.BatchNormalization(name="head_bn", momentum=0.5)(x)
    x = layers.Dense(3, name="scores")(layers.Flatten()(x))
    model = builders.randomise_all(keras.Model(image, x), 1)
    names = [entry.name for entry in rewriter.plan(model).entries]
    assert names == ["base/conv_bn", "base/alone", "head_bn"]
    qat = rewriter.rewrite(model)
    claims.check_no_batch_norm(qat)
    before = builders.weights_by_name(qat)
    batches = [(normal(8, 8, 8, 3, seed=i), normal(8, 3, seed=9 + i)) for i in range(3)]
    claims.check_training(model, qat, keras, batches, "mse", 1e-3)
    after = builders.weights_by_name(qat)
    for name in ("conv_bn/moving_mean", "alone/moving_variance"):
        # Keras 3 hands the outer model's flag on all the same; so does the rewritten model.
        if keras.__name__ == "tf_keras":
            assert np.array_equal(after[name], before[name])
    assert not np.array_equal(after["head_bn/moving_mean"], before["head_bn/moving_mean"])
    assert not np.array_equal(after["conv_bn/gamma"], before["conv_bn/gamma"])


def test_nested_twice_and_with_equal_names(keras):
    layers = keras.layers

    def block(name):
        inner = keras.Input((8, 8, 4), name="inner")
        y = conv_bn_relu(layers, inner, "conv", filters=4)
        return keras.Model(inner, y, name=name)

    image = keras.Input((8, 8, 4), name="image")
    shared = block("one")
    model = keras.Model(image, block("two")(shared(shared(image))))
    builders.randomise_all(model, 1)
    assert len(rewriter.plan(model).entries) == 2
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(4, 8, 8, 4))
    assert len({layer.name for layer in qat.layers}) == len(qat.layers)


def test_sequential(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((9,)),
            layers.Dense(6, name="first"),
            layers.BatchNormalization(name="first_bn"),
            layers.ReLU(),
            keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.BatchNormalization()]),
            layers.Dense(2, name="scores"),
        ]
    )
    builders.randomise_all(model, 1)
    assert [entry.action for entry in rewriter.plan(model).entries] == ["fused", "fused"]
    claims.check_float_phase(model, rewriter.rewrite(model), normal(4, 9))


def _subclassed(keras, python_branch=False):
    class Small(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(4, 3, name="conv")
            self.norm = keras.layers.BatchNormalization(name="conv_bn")
            self.scores = keras.layers.Dense(3, name="scores")
            self.flatten = keras.layers.Flatten()

        def call(self, x, training=None):
            x = self.norm(self.conv(x), training=training)
            if python_branch and np.asarray(x).max() > 0:
                x = -x
            return self.scores(self.flatten(x))

    return Small()


def test_subclassed_model_is_traced(keras):
    model = _subclassed(keras)
    model(normal(2, 8, 8, 3))
    builders.randomise_all(model, 1)
    (entry,) = rewriter.plan(model).entries
    assert entry.action == "fused" and entry.host == "conv"
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, normal(4, 8, 8, 3))
    batches = [(normal(8, 8, 8, 3, seed=i), normal(8, 3, seed=9 + i)) for i in range(2)]
    claims.check_training(model, qat, keras, batches, "mse", 1e-3)


def test_subclassed_model_that_cannot_be_traced(keras):
    model = _subclassed(keras, python_branch=True)
    model(normal(2, 8, 8, 3))
    with pytest.raises(
        UnsupportedModelError, match="trace.*(no Python control flow|functional API)"
    ):
        rewriter.plan(model)


def test_subclassed_model_that_was_never_called(keras):
    with pytest.raises(UnsupportedModelError, match="has not been built"):
        rewriter.rewrite(_subclassed(keras))


@pytest.mark.parametrize("sizes", [(8, 8, 3), (None, None, 3)])
def test_a_nested_model_has_a_handle(keras, sizes, tmp_path):
    """The second stage of transfer learning: ``q.get_layer("backbone").trainable = True``."""
    layers = keras.layers
    inner = keras.Input(sizes, name="inner")
    y = conv_bn_relu(layers, inner, "first")
    y = conv_bn_relu(layers, y, "second")
    backbone = keras.Model(inner, y, name="backbone")
    backbone.trainable = False
    image = keras.Input((8, 8, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(backbone(image, training=False))
    model = keras.Model(image, layers.Dense(3, name="scores")(x))
    builders.randomise_all(model, 1)
    qat = rewriter.rewrite(model)
    data = normal(8, 8, 8, 3)
    claims.check_float_phase(model, qat, data)
    qat.save(tmp_path / "qat.keras")
    for each in (qat, rewriter.load_model(tmp_path / "qat.keras")):
        handle = each.get_layer("backbone")
        assert not handle.trainable and len(each.trainable_variables) == 2
        assert {layer.name for layer in handle.layers} >= {"first", "second"}
        for second_stage in (True, False, True):
            handle.trainable = backbone.trainable = second_stage
            found, expected = each.trainable_variables, model.trainable_variables
            assert len(found) == len(expected)
        each.get_layer("first").trainable = False
        assert len(each.trainable_variables) == len(model.trainable_variables) - 4
        each.get_layer("first").trainable = True
        assert len(each.trainable_variables) == len(model.trainable_variables)
        backbone.trainable = False
    rewriter.calibrate(qat, data, progress=False)
    report = rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not report.float_tensors
