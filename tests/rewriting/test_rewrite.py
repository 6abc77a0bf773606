"""What ``rewrite`` keeps: the model it is given, names, structures; and what it refuses."""

from __future__ import annotations

import copy
import json

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
    # Both may be parts of one model.
    assert qat.name == f"{model.name}_quantized"
    assert list(qat.output_names) == list(model.output_names)
    found, expected = ([t.name.split(":")[0] for t in m.inputs] for m in (qat, model))
    assert found == expected
    kinds = {"fused": "QuantizedHost", "standalone": "FusedBatchNormalization"}
    for entry in rewriter.plan(model).entries:
        layer = qat.get_layer(entry.host or entry.name)
        assert type(layer).__name__ == kinds[entry.action]
    # Whatever is not quantized away keeps its name.
    ours = {layer.name for layer in qat._flatten_layers()}
    assert {layer.name for layer in model._flatten_layers()} - ours <= {model.name}


def test_two_outputs_as_a_dict(keras):
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = conv_bn_relu(layers, image, "stem")
    scores = layers.Dense(4, name="scores")(layers.Flatten()(x))
    model = keras.Model({"image": image}, {"map": x, "scores": scores})
    builders.randomise_all(model, 1)
    qat = rewriter.rewrite(model)
    found = qat({"image": normal(4, 8, 8, 3)}, training=False)
    expected = model({"image": normal(4, 8, 8, 3)}, training=False)
    assert set(found) == {"map", "scores"}
    for key in expected:
        claims.assert_close(found[key], expected[key], 1e-5, key)
    rewriter.calibrate(qat, {"image": normal(16, 8, 8, 3)}, progress=False)
    twin = rewriter.fold(qat)
    assert set(twin({"image": normal(4, 8, 8, 3)})) == {"map", "scores"}


def test_fit_with_losses_by_output_name(keras):
    """The names under which losses and targets are given are those of the original."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = conv_bn_relu(layers, image, "stem")
    first = layers.Dense(4, activation="softmax", name="first")(layers.Flatten()(x))
    second = layers.BatchNormalization(name="second")(
        layers.Dense(2, name="d")(layers.Flatten()(x))
    )
    model = builders.randomise_all(keras.Model(image, [first, second]), 1)
    data = normal(16, 8, 8, 3)
    targets = {"first": np.zeros(16, np.int64), "second": normal(16, 2)}
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
    x = layers.Concatenate()([conv_bn_relu(layers, a, "left"), conv_bn_relu(layers, b, "right")])
    x = layers.BatchNormalization(name="joined")(x)
    model = builders.randomise_all(keras.Model([a, b], x), 1)
    qat = rewriter.rewrite(model)
    data = [normal(4, 8, 8, 2), normal(4, 8, 8, 3)]
    claims.check_float_phase(model, qat, data)
    assert [t.shape[-1] for t in qat.inputs] == [2, 3]


# Refusals


def test_refused_with_the_reason(keras):
    layers = keras.layers

    class Mine(layers.BatchNormalization):
        def call(self, inputs, training=False):
            return 2 * super().call(inputs, training=training)

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


def test_rewriting_a_twin(keras):
    """Its layers are of ours too: it is a model to be evaluated, not trained."""
    qat = rewriter.rewrite(builders.trained_residual(keras))
    x = np.random.default_rng(0).normal(size=(8, *qat.inputs[0].shape[1:])).astype(np.float32)
    rewriter.calibrate(qat, x, progress=False)
    with pytest.raises(UnsupportedModelError, match="a twin or a frozen copy.*original model"):
        rewriter.rewrite(rewriter.fold(qat))
