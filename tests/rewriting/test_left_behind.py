"""What a model has beside its graph: carried over, or said in the plan and by a warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import tensorflow as tf

import builders
import rewriter
from builders import KERASES, fresh, keras_of
from rewriter.errors import ExportError, UnsupportedModelError

both = pytest.mark.parametrize("kind", KERASES)
X = builders.normal(8, 6)


def _losses(model):
    model(X)
    return float(sum(float(np.asarray(loss)) for loss in model.losses))


def _regularized(keras):
    """Every layer has an activity regularizer of its own strength."""
    layers, l2 = keras.layers, keras.regularizers.L2
    x = image = keras.Input((6,), name="image")
    x = layers.Dense(4, activity_regularizer=l2(0.1), name="first")(x)
    x = layers.BatchNormalization(activity_regularizer=l2(0.2), name="alone")(x)
    x = layers.Dense(4, name="second")(x)
    x = layers.BatchNormalization(activity_regularizer=l2(0.3), name="after")(x)
    x = layers.ReLU(activity_regularizer=l2(0.4), name="relu")(x)
    x = layers.LayerNormalization(activity_regularizer=l2(0.5), name="norm")(x)
    x = layers.Add(name="sum")([x, x])
    x = layers.ReLU(activity_regularizer=l2(0.6), name="relu_2")(x)
    return keras.Model(image, layers.Dense(2, activity_regularizer=l2(0.7), name="last")(x))


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
def test_activity_regularizers(kind, suffix, tmp_path):
    if kind == "keras" and not suffix:
        pytest.skip("Keras 3 writes no SavedModel that has layers")
    model = builders.randomise_all(_regularized(fresh(keras_of(kind))), 0)
    expected = _losses(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qat = rewriter.rewrite(model)
    assert expected > 1 and _losses(qat) == pytest.approx(expected, rel=1e-5)
    assert not [w for w in caught if "carried over" in str(w.message)]
    path = tmp_path / f"m{suffix}"
    qat.save(path)
    assert _losses(rewriter.load_model(path)) == pytest.approx(expected, rel=1e-5)


def _subclass(keras):
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.dense, self.norm = keras.layers.Dense(4), keras.layers.BatchNormalization()

        def call(self, x):
            y = self.norm(self.dense(x))
            self.add_loss(3.5 + 0 * tf.reduce_mean(y))
            return y

    model = Own()
    model(X)
    return model


def _nested(keras):
    inputs = keras.Input((6,))
    return keras.Model(inputs, _functional(keras)(inputs))


def _functional(keras):
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, x, name="inner")
    model.add_loss(keras.backend.mean(x**2) + 3.5)
    return model


@pytest.mark.parametrize("make", [_functional, _nested, _subclass])
def test_added_losses(make, tmp_path):
    """Of tf_keras; Keras 3 has none for functional models, and refuses to trace others."""
    model = make(fresh(keras_of("tf_keras")))
    expected = _losses(model)
    qat = rewriter.rewrite(model)
    assert expected >= 3.5 and _losses(qat) == pytest.approx(expected, rel=1e-5)
    assert _losses(model) == pytest.approx(expected, rel=1e-6)
    qat.save(tmp_path / "m.keras")
    assert _losses(rewriter.load_model(tmp_path / "m.keras")) == pytest.approx(expected, rel=1e-5)
    rewriter.calibrate(qat, X, progress=False)
    qat.compile("sgd", "mse")
    assert np.isfinite(qat.fit(X, np.zeros((8, 4)), verbose=0).history["loss"]).all()
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert rewriter.verify(qat, tmp_path / "m.tflite", X, progress=False).training.fault is None


def test_losses_of_a_call_that_is_taken_apart():
    """Keras 3 has no layer for them: refused by name."""
    keras = fresh(keras_of("keras"))

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="block")
            self.dense, self.norm = keras.layers.Dense(4), keras.layers.BatchNormalization()

        def build(self, shape):
            self.dense.build(shape)
            self.norm.build((None, 4))

        def call(self, x):
            self.add_loss(3.5 + 0 * keras.ops.sum(x))
            return self.norm(self.dense(x))

    inputs = keras.Input((6,))
    for model in (keras.Model(inputs, Block()(inputs)), _subclass(keras)):
        with pytest.raises(UnsupportedModelError, match="adds losses of its own"):
            rewriter.rewrite(model)


@both
def test_losses_of_a_layer_that_stays(kind):
    keras = fresh(keras_of(kind))

    class Costs(keras.layers.Layer):
        def call(self, x):
            self.add_loss(3.5 + 0 * tf.reduce_sum(x))
            return x * 2.0

    inputs = keras.Input((6,))
    x = Costs()(keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs)))
    x = keras.layers.ActivityRegularization(l2=0.1)(x)
    model = keras.Model(inputs, x)
    expected = _losses(model)
    assert expected > 3.5 and _losses(rewriter.rewrite(model)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sizes", [None, (6,)])
def test_added_metrics(sizes, tmp_path):
    """Of tf_keras; a metric that is a number of the whole batch, and one of each sample."""
    keras = fresh(keras_of("tf_keras"))
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, keras.layers.ReLU()(x))
    model.add_metric(tf.reduce_mean(x), name="all", aggregation="mean")
    model.add_metric(tf.reduce_max(x, axis=-1), name="each", aggregation="mean")
    qat = rewriter.rewrite(model, input_shape=sizes)
    qat.save(tmp_path / "m.keras")
    results = []
    for each in (model, qat, rewriter.load_model(tmp_path / "m.keras")):
        each.compile("sgd", "mse")
        results.append(each.evaluate(X, np.zeros((8, 4)), verbose=0, return_dict=True))
    assert set(results[0]) == {"loss", "all", "each"}
    for found in results[1:]:
        assert found == pytest.approx(results[0], rel=1e-5)
    rewriter.calibrate(qat, X, progress=False)
    assert not rewriter.export_tflite(qat, tmp_path / "m.tflite").float_tensors


@both
def test_a_number_of_the_whole_batch(kind, tmp_path):
    """It trains as it did, and no file computes it."""
    keras = fresh(keras_of(kind))
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    mean = keras.ops.mean(x) if kind == "keras" else tf.reduce_mean(x)
    model = keras.Model(inputs, x * mean)
    qat = rewriter.rewrite(model)
    np.testing.assert_allclose(np.asarray(qat(X)), np.asarray(model(X)), rtol=1e-5, atol=1e-6)
    rewriter.calibrate(qat, X, progress=False)
    name = "mean" if kind == "keras" else "tf.math.reduce_mean"
    with pytest.raises(ExportError, match=rf"Layer '{name}\w*': it computes one number for all"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)
    assert not list(tmp_path.iterdir())


@both
def test_methods_of_a_sequential(kind):
    """It is not made of tensors: the remedy says what is."""
    keras = fresh(keras_of(kind))

    class Own(keras.Sequential):
        def train_step(self, *args, **kwargs):
            return super().train_step(*args, **kwargs)

    norm = keras.layers.BatchNormalization()
    (note,) = rewriter.plan(Own([keras.Input((6,)), keras.layers.Dense(4), norm])).notes
    assert "derive Own from Model in the place of Sequential" in note


@both
@pytest.mark.parametrize("method", ["train_step", "test_step", "compute_loss"])
def test_methods_of_a_subclass(kind, method):
    keras = fresh(keras_of(kind))

    def own(self, *args, **kwargs):
        return getattr(super(Own, self), method)(*args, **kwargs)

    Own = type("Own", (keras.Model,), {method: own})
    inputs = keras.Input((6,))
    outputs = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    model = Own(inputs, outputs)
    (note,) = rewriter.plan(model).notes
    assert method in note and "Own(inputs=qat.inputs" in note
    assert note in str(rewriter.plan(model)) and note in rewriter.plan(model).to_dict()["notes"]
    with pytest.warns(UserWarning, match=f"its own {method}"):
        qat = rewriter.rewrite(model)
    again = Own(inputs=qat.inputs, outputs=qat.outputs)  # the remedy
    again.compile("sgd", "mse")
    again.fit(X, np.zeros((8, 4)), verbose=0)
    plain = keras.Model(inputs, outputs)
    assert rewriter.plan(plain).notes == ()


@both
def test_a_class_that_is_not_made_of_tensors(kind):
    """As keras-hub's tasks are: the remedy above would only fail."""
    keras = fresh(keras_of(kind))

    class Task(keras.Model):
        def __init__(self, width, **kwargs):
            inputs = keras.Input((6,))
            x = keras.layers.BatchNormalization()(keras.layers.Dense(width)(inputs))
            super().__init__(inputs=inputs, outputs=x, **kwargs)

        def fit(self, x, y, **kwargs):
            return super().fit(x / 2, y, **kwargs)

    (note,) = rewriter.plan(Task(4)).notes
    assert "its own fit" in note and "Task is not made of inputs and outputs" in note
    assert "qat.inputs" not in note


@both
def test_a_layer_that_is_taken_apart(kind):
    keras = fresh(keras_of(kind))

    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense, self.norm = keras.layers.Dense(4), keras.layers.BatchNormalization()

        def build(self, shape):
            self.dense.build(shape)
            self.norm.build((None, 4))
            self.built = True

        def call(self, x):
            return self.norm(self.dense(x))

        def compute_output_shape(self, shape):
            return (shape[0], 4)

    inputs = keras.Input((6,))
    block = Block(activity_regularizer=keras.regularizers.L2(1.0), name="block")
    model = keras.Model(inputs, block(inputs))
    with pytest.warns(UserWarning, match="activity regularizer of the layer 'block'"):
        rewriter.rewrite(model)
