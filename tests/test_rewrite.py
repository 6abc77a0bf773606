"""What ``rewrite`` keeps: the model it is given, names, structures, flags, losses, gradients."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import rewriter
from builders import KERASES, keras_of
from rewriter.errors import UnsupportedModelError


@pytest.fixture(params=KERASES)
def keras(request):
    return builders.fresh(keras_of(request.param))


def _x(*shape, seed=0):
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype(np.float32)


def _conv_bn_relu(layers, x, name, filters=6, **norm):
    x = layers.Conv2D(filters, 3, padding="same", name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn", **norm)(x)
    return layers.ReLU(name=f"{name}_relu")(x)


# The model that is given


def _snapshot(model):
    """All that a user could see of a model."""
    layers = list(model._flatten_layers())
    return {
        "weights": [np.asarray(v).copy() for v in model.weights],
        "config": json.dumps(copy.deepcopy(model.get_config()), default=str, sort_keys=True),
        "trainable": [(layer.name, layer.trainable) for layer in layers],
        "nodes": [
            (len(layer._inbound_nodes), len(getattr(layer, "_outbound_nodes", ())))
            for layer in layers
            if hasattr(layer, "_inbound_nodes")
        ],
        "built": [layer.built for layer in layers],
        "dtypes": [str(getattr(layer, "compute_dtype", "")) for layer in layers],
        "losses": len(model.losses),
        "attributes": [sorted(vars(layer)) for layer in layers],
    }


def test_the_given_model_stays_as_it_is(keras, tmp_path):
    model = builders.trained_residual(keras)
    model.get_layer("dw_bn").trainable = False
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    x = builders.residual_data()
    predictions = model.predict(x, verbose=0)
    before = _snapshot(model)
    qat = rewriter.rewrite(model, calibration_data=x)
    y = np.zeros(len(x), np.int64)
    qat.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    qat.fit(x, y, epochs=1, verbose=0)
    rewriter.plan(model)
    rewriter.fold(qat)
    rewriter.export_tflite(qat, tmp_path / "model.tflite")
    after = _snapshot(model)
    for key in before:
        if key == "weights":
            continue
        assert after[key] == before[key], key
    for a, b in zip(after["weights"], before["weights"], strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(model.predict(x, verbose=0), predictions)
    assert model.optimizer is not None
    model.fit(x, y, epochs=1, verbose=0)  # and it still trains


def test_a_variable_is_never_shared_with_the_original(keras):
    model = builders.trained_residual(keras)
    qat = rewriter.rewrite(model)
    theirs = {id(getattr(v, "_value", v)) for v in model.weights}
    assert not theirs & {id(getattr(v, "_value", v)) for v in qat.weights}


# Names and structures


def test_names(keras):
    model = builders.trained_residual(keras)
    qat = rewriter.rewrite(model)
    assert qat.name == model.name
    assert list(qat.output_names) == list(model.output_names)
    assert list(qat.input_names) == list(model.input_names) if hasattr(model, "input_names") else 1
    for entry in rewriter.plan(model).entries:
        assert qat.get_layer(entry.host or entry.name) is not None
    # Whatever is not quantized away keeps its name.
    ours = {layer.name for layer in qat._flatten_layers()}
    assert {layer.name for layer in model._flatten_layers()} - ours <= {model.name}


def test_two_outputs_as_a_dict(keras):
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = _conv_bn_relu(layers, image, "stem")
    scores = layers.Dense(4, name="scores")(layers.Flatten()(x))
    model = keras.Model({"image": image}, {"map": x, "scores": scores})
    builders.randomise_all(model, 1)
    qat = rewriter.rewrite(model)
    found = qat({"image": _x(4, 8, 8, 3)}, training=False)
    expected = model({"image": _x(4, 8, 8, 3)}, training=False)
    assert set(found) == {"map", "scores"}
    for key in expected:
        claims.assert_close(found[key], expected[key], 1e-5, key)
    rewriter.calibrate(qat, {"image": _x(16, 8, 8, 3)}, progress=False)
    twin = rewriter.fold(qat)
    assert set(twin({"image": _x(4, 8, 8, 3)})) == {"map", "scores"}


def test_fit_with_losses_by_output_name(keras):
    """The names under which losses and targets are given are those of the original."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = _conv_bn_relu(layers, image, "stem")
    first = layers.Dense(4, activation="softmax", name="first")(layers.Flatten()(x))
    second = layers.BatchNormalization(name="second")(
        layers.Dense(2, name="d")(layers.Flatten()(x))
    )
    model = builders.randomise_all(keras.Model(image, [first, second]), 1)
    data = _x(16, 8, 8, 3)
    targets = {"first": np.zeros(16, np.int64), "second": _x(16, 2)}
    losses = []
    for m in (model, rewriter.rewrite(model)):
        m.compile(
            keras.optimizers.SGD(1e-3),
            {"first": "sparse_categorical_crossentropy", "second": "mse"},
        )
        losses.append(
            m.fit(data, targets, epochs=2, batch_size=8, shuffle=False, verbose=0).history
        )
    assert losses[0].keys() == losses[1].keys()
    assert {"first_loss", "second_loss"} <= losses[0].keys()
    for key, values in losses[0].items():
        np.testing.assert_allclose(losses[1][key], values, rtol=1e-4)


def test_two_inputs_in_a_list(keras):
    layers = keras.layers
    a, b = keras.Input((8, 8, 2), name="z_first"), keras.Input((8, 8, 3), name="a_second")
    x = layers.Concatenate()([_conv_bn_relu(layers, a, "left"), _conv_bn_relu(layers, b, "right")])
    x = layers.BatchNormalization(name="joined")(x)
    model = builders.randomise_all(keras.Model([a, b], x), 1)
    qat = rewriter.rewrite(model)
    data = [_x(4, 8, 8, 2), _x(4, 8, 8, 3)]
    claims.check_float_phase(model, qat, data)
    assert [t.shape[-1] for t in qat.inputs] == [2, 3]


# Flags, losses, gradients


@pytest.mark.parametrize(
    "frozen", [["conv_bn"], ["conv"], ["conv", "conv_bn"], ["alone"], []], ids=str
)
def test_trainable_flags(keras, frozen):
    """A frozen normalization on a trainable host and the other way round, through training."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = _conv_bn_relu(layers, image, "conv", momentum=0.6)
    x = layers.BatchNormalization(name="alone", momentum=0.6)(layers.MaxPooling2D()(x))
    x = layers.Dense(3, name="scores")(layers.Flatten()(x))
    model = builders.randomise_all(keras.Model(image, x), 1)
    for name in frozen:
        builders.freeze(model, name)
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_weights) == len(model.trainable_weights)
    batches = [(_x(8, 8, 8, 3, seed=i), _x(8, 3, seed=9 + i)) for i in range(3)]
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
    data = _x(8, 8, 8, 3)
    model(data, training=True), qat(data, training=True)
    assert len(qat.losses) == len(model.losses) > 5
    found = float(tf.add_n([tf.convert_to_tensor(v) for v in qat.losses]))
    expected = float(tf.add_n([tf.convert_to_tensor(v) for v in model.losses]))
    assert found == pytest.approx(expected, rel=1e-5)
    batches = [(_x(8, 8, 8, 3, seed=i), _x(8, 3, seed=9 + i)) for i in range(3)]
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


# Topologies


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
    data = [_x(4, 8, 8, 3, seed=1), _x(4, 8, 8, 3, seed=2)]
    claims.check_float_phase(model, qat, data)
    claims.check_no_batch_norm(qat)
    assert len(builders.hosts(qat)) == 2
    model(data, training=True), qat(data, training=True)
    claims.check_float_phase(model, qat, data)


def test_nested_base_called_with_training_false(keras):
    """Transfer learning: ``base(x, training=False)`` keeps the base's statistics in training."""
    layers = keras.layers
    inner = keras.Input((8, 8, 3), name="inner")
    y = _conv_bn_relu(layers, inner, "conv", momentum=0.5)
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
    batches = [(_x(8, 8, 8, 3, seed=i), _x(8, 3, seed=9 + i)) for i in range(3)]
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
        y = _conv_bn_relu(layers, inner, "conv", filters=4)
        return keras.Model(inner, y, name=name)

    image = keras.Input((8, 8, 4), name="image")
    shared = block("one")
    model = keras.Model(image, block("two")(shared(shared(image))))
    builders.randomise_all(model, 1)
    assert len(rewriter.plan(model).entries) == 2
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, _x(4, 8, 8, 4))
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
    claims.check_float_phase(model, rewriter.rewrite(model), _x(4, 9))


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
    model(_x(2, 8, 8, 3))
    builders.randomise_all(model, 1)
    (entry,) = rewriter.plan(model).entries
    assert entry.action == "fused" and entry.host == "conv"
    qat = rewriter.rewrite(model)
    claims.check_float_phase(model, qat, _x(4, 8, 8, 3))
    batches = [(_x(8, 8, 8, 3, seed=i), _x(8, 3, seed=9 + i)) for i in range(2)]
    claims.check_training(model, qat, keras, batches, "mse", 1e-3)


def test_subclassed_model_that_cannot_be_traced(keras):
    model = _subclassed(keras, python_branch=True)
    model(_x(2, 8, 8, 3))
    with pytest.raises(
        UnsupportedModelError, match="trace.*(no Python control flow|functional API)"
    ):
        rewriter.plan(model)


def test_subclassed_model_that_was_never_called(keras):
    with pytest.raises(UnsupportedModelError, match="has not been built"):
        rewriter.rewrite(_subclassed(keras))


# Refusals


def test_refused_with_the_reason(keras):
    layers = keras.layers

    class Mine(layers.BatchNormalization):
        pass

    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, Mine(name="mine")(layers.Conv2D(4, 3, name="conv")(image)))
    (entry,) = rewriter.plan(model).entries
    assert entry.action == "refused" and "subclass" in entry.reason
    with pytest.raises(UnsupportedModelError, match="'mine'.*subclass.*stock BatchNormalization"):
        rewriter.rewrite(model)


@pytest.mark.parametrize("what", ["a layer", "an array", "None"])
def test_not_a_model(keras, what):
    value = {"a layer": keras.layers.Dense(3), "an array": np.zeros(3), "None": None}[what]
    with pytest.raises(UnsupportedModelError, match="Expected a"):
        rewriter.rewrite(value)


def test_plan_reads_and_prints(keras):
    model = builders.trained_residual(keras)
    plan = rewriter.plan(model)
    text = str(plan)
    for entry in plan.entries:
        assert entry.name in text and entry.reason in text
    again = json.loads(plan.to_json())
    assert [e["name"] for e in again["entries"]] == [e.name for e in plan.entries]
    assert [(e.name, e.action, e.host) for e in plan.entries] == [
        ("stem_bn", "fused", "stem"),
        ("dw_bn", "fused", "dw"),
        ("pw_bn", "fused", "pw"),
        ("alone", "standalone", None),
    ]


# A rewritten model is a model


def test_callbacks_and_optimizers_as_before(keras, tmp_path):
    """The whole of ``fit``: Adam, callbacks, validation, a checkpoint, evaluate."""
    qat = rewriter.rewrite(
        builders.trained_residual(keras), calibration_data=builders.residual_data()
    )
    x, y = builders.residual_data(), np.arange(48) % 5
    qat.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    path = tmp_path / "best.weights.h5"
    history = qat.fit(
        x,
        y,
        epochs=3,
        batch_size=16,
        validation_data=(x, y),
        callbacks=[
            keras.callbacks.ModelCheckpoint(str(path), save_weights_only=True),
            keras.callbacks.EarlyStopping(patience=5),
        ],
        verbose=0,
    ).history
    assert np.isfinite(history["loss"]).all() and history["loss"][-1] < history["loss"][0]
    last = qat.evaluate(x, y, verbose=0)[0]
    qat.load_weights(str(path))
    assert qat.evaluate(x, y, verbose=0)[0] == pytest.approx(last, rel=1e-6)


def test_rewriting_a_rewritten_model(keras):
    qat = rewriter.rewrite(builders.trained_residual(keras))
    with pytest.raises(UnsupportedModelError, match="quantization-aware already"):
        rewriter.rewrite(qat)
