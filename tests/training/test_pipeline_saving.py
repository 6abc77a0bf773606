"""Pipelines are saved and loaded: operations by name, layers with their variables."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_model_optimization.python.core.quantization.keras import quantizers as tfmot

import builders
import rewriter
from pipelines import LEARNED, QUANTIZE, compiled, halved, norms, recipe, train, trained_small
from rewriter import Clip, FixedPoint, PowerOfTwo
from rewriter.errors import RecipeError
from small_models import VARIABLES, batches

both = pytest.mark.parametrize("kind", builders.KERASES)


def unregistered(value: Any) -> Any:
    return value * 0.5


def public_functions(kind: str) -> list[Any]:
    keras = builders.keras_of(kind)
    ours = [tf.math.tanh, tf.abs, tf.nn.softplus, tf.identity, halved]
    return [*ours, keras.activations.tanh, *([keras.ops.abs] if kind == "keras" else [])]


@both
def test_functions_are_saved_by_name(kind):
    for function in public_functions(kind):
        values = recipe({"gamma": function}).to_dict()
        (again,) = rewriter.Recipe.from_json(json.dumps(values)).batch_norm_pipeline
        assert again.gamma is function


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_and_functions_train_and_are_saved(kind, suffix, tmp_path):
    """A layer's own variables learn with the model, in a copy for each normalization."""
    keras = builders.keras_of(kind)
    model = trained_small(keras)
    x = builders.residual_data(32)
    learned = LEARNED[kind]()
    pipeline = {"gamma": learned, "beta": halved, "moving_variance": tf.math.abs}
    qat = compiled(kind, builders.calibrated(model, x, recipe(pipeline)))
    assert not learned.built
    own = {name: norm.pipeline_variables for name, norm in norms(qat).items()}
    assert {len(v) for v in own.values()} == {2} and len({id(v[0]) for v in own.values()}) == 2
    train(qat, batches(3, 16))
    for name, (factor, offset) in own.items():
        assert (np.asarray(factor) != 1).any() and (np.asarray(offset) != 0).any(), name
    qat.save(tmp_path / f"m{suffix}")
    again = keras.models.load_model(tmp_path / f"m{suffix}")
    assert np.array_equal(again.predict(x, verbose=0), qat.predict(x, verbose=0))
    assert norms(again)["alone"].pipeline.beta is halved


@both
@pytest.mark.parametrize(
    ("op", "name"), [(lambda v: v * 0.5, "<lambda>"), (unregistered, "unregistered")]
)
def test_other_functions_train_but_are_not_saved(kind, op, name, tmp_path):
    model = trained_small(builders.keras_of(kind))
    x = builders.residual_data(16)
    qat = compiled(kind, builders.calibrated(model, x, recipe({"beta": op})))
    assert np.isfinite(train(qat, batches(2, 16))).all()
    rewriter.export_tflite(qat, tmp_path / "m.tflite")  # the file holds numbers only
    with pytest.raises(RecipeError, match=f"beta: the function .*{name}.* cannot be saved.*regis"):
        qat.save(tmp_path / "m.keras")
    with pytest.raises(RecipeError, match="register_op"):
        qat.get_config()


def test_unknown_names_in_a_file():
    values = recipe({"gamma": halved}).to_dict()
    values["batch_norm_pipeline"][0]["gamma"]["function"] += "_once"
    with pytest.raises(RecipeError, match="halved_once.*register_op"):
        rewriter.Recipe.from_dict(values)


@both
def test_unregistered_layers_in_a_file(kind):
    keras = builders.keras_of(kind)

    class Private(keras.layers.Layer):
        pass

    values = recipe({"gamma": Private()}).to_dict()
    with pytest.raises(RecipeError, match="Private.*register_keras_serializable"):
        rewriter.Recipe.from_dict(values)
    with keras.saving.custom_object_scope({"Private": Private}):
        (pipeline,) = rewriter.Recipe.from_dict(values).batch_norm_pipeline
    assert type(pipeline.gamma) is Private


# Four pipelines for two layers, saved and loaded


def four_for_two(kind: str) -> rewriter.Recipe:
    """Different operations on all four variables of two layers; the others have none."""
    average = tfmot.MovingAverageQuantizer(
        num_bits=7, per_axis=False, symmetric=False, narrow_range=False
    )
    return recipe(
        {
            "gamma": FixedPoint(6),
            "beta": tf.math.tanh,
            "moving_mean": PowerOfTwo(5),
            "moving_variance": Clip(1e-2, 1e2),
            "layers": "stem_bn",
        },
        {
            "gamma": LEARNED[kind](name="learned"),
            "beta": FixedPoint(5, fraction_bits=2),
            "moving_mean": average,
            "moving_variance": halved,
            "layers": ["alone"],
            "phases": ["observe", "quantize"],
        },
    )


@both
def test_json_round_trip(kind):
    first = four_for_two(kind)
    again = rewriter.Recipe.from_json(first.to_json())
    assert again.to_dict() == first.to_dict()
    assert again.batch_norm_pipeline[1].phases == ("observe", "quantize")
    model = trained_small(builders.keras_of(kind))
    x = builders.residual_data(16)
    outputs = [np.asarray(builders.calibrated(model, x, r)(x)) for r in (first, again)]
    assert np.array_equal(*outputs)


@both
@pytest.mark.parametrize("suffix", [".keras", ".h5", "", ".weights.h5"])
def test_file_round_trips(kind, suffix, tmp_path):
    if kind == "keras" and not suffix:
        pytest.skip("Keras 3 loads no SavedModel")
    keras = builders.keras_of(kind)
    model = trained_small(keras)
    x = builders.residual_data(32)
    qat = compiled(kind, builders.calibrated(model, x, four_for_two(kind)), 0.005)
    train(qat, batches(3, 16))
    path = tmp_path / f"m{suffix}"
    if suffix == ".weights.h5":
        qat.save_weights(path)
        again = rewriter.rewrite(model, four_for_two(kind))
        again.load_weights(path)
    else:
        qat.save(path)
        again = keras.models.load_model(path, compile=False)
    assert rewriter.get_phase(again) == "quantize"
    assert np.array_equal(again.predict(x, verbose=0), qat.predict(x, verbose=0))
    for name in ("stem_bn", "alone"):
        found, expected = norms(again)[name], norms(qat)[name]
        assert found.pipeline.to_dict() == expected.pipeline.to_dict()
        for a, b in zip(found.pipeline_variables, expected.pipeline_variables, strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))
        for variable in VARIABLES:
            assert np.array_equal(
                found.variables_in(QUANTIZE)[variable], expected.variables_in(QUANTIZE)[variable]
            )
