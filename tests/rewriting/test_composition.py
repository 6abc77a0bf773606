"""A rewritten model as a part of another one: new heads, students and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError, UnsupportedModelError
from saved_models import save

X = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype(np.float32)


def backbone(flavour: str, *, classifier: str | None = "softmax") -> Any:
    keras = KERASES[flavour]
    layers = keras.layers
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, name="stem")(inputs)))
    y = layers.BatchNormalization()(layers.Conv2D(4, 1, name="side")(x))
    x = layers.Add(name="sum")([x, y])
    x = layers.BatchNormalization(name="alone")(x)
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    x = layers.Dense(6, activation=classifier, name="classes")(x)
    return keras.Model(inputs, x, name="backbone")


def exported(model: Any, path: Path, least: float = 25.0) -> Any:
    """Export, and hold the file against the twin and the trained model."""
    report = rewriter.export_tflite(model, path)
    assert not report.float_tensors
    result = rewriter.verify(model, path, X, progress=False)
    assert result.comparison.worst is None or result.comparison.worst.identical == 1.0
    assert not result.comparison.differences and result.parts_at is None
    assert result.snr is not None and result.snr > least
    return report


def fit(model: Any, keras: Any) -> None:
    outputs = tf.nest.flatten(model.outputs)
    targets = [np.zeros((len(X), *tensor.shape[1:]), np.float32) for tensor in outputs]
    model.compile(keras.optimizers.SGD(0.01), "mse")
    history = model.fit(X, targets if len(targets) > 1 else targets[0], verbose=0, batch_size=16)
    assert np.isfinite(history.history["loss"]).all()


# Where a head may begin: layers of the rewritten model.
HEADS = {"pooled": "mean", "before_pooling": "alone", "sum": "sum", "convolution": "side"}


@both
@pytest.mark.parametrize("where", HEADS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_new_head(flavour: str, where: str, calibrated: bool, tmp_path: Path) -> None:
    """On a layer of a rewritten model: rewriting again rewrites what was added."""
    keras = KERASES[flavour]
    layers = keras.layers
    data = X if calibrated else None
    q = rewriter.rewrite(backbone(flavour), calibration_data=data)
    before = {id(v): np.array(v) for v in q.variables}
    found = [layer for layer in q.layers if layer.name.startswith(HEADS[where])]
    x = found[-1].output
    if len(x.shape) == 4:
        y = layers.MaxPooling2D(2)(x)
        x = layers.Concatenate()([layers.AveragePooling2D(2)(x), y])
        x = layers.ReLU()(
            layers.BatchNormalization(name="new_bn")(layers.Conv2D(5, 1, name="new")(x))
        )
        x = layers.Flatten()(x)
    made = keras.Model(q.input, layers.Dense(3, name="head")(layers.Dropout(0.1)(x)))
    again = rewriter.rewrite(made)
    np.testing.assert_allclose(np.asarray(again(X)), _in_float(made), atol=1e-5)
    rewriter.calibrate(again, X, progress=False)
    exported(again, tmp_path / "m.tflite")
    fit(again, keras)
    exported(again, tmp_path / "n.tflite")
    loaded = rewriter.load_model(save(again, tmp_path / "again.keras"))
    np.testing.assert_allclose(np.asarray(loaded(X)), np.asarray(again(X)), atol=1e-6)
    for variable in q.variables:
        np.testing.assert_array_equal(np.array(variable), before[id(variable)])
    # Once, not twice.
    names = [layer.name for layer in again.layers]
    assert len(names) == len(set(names))


def _in_float(model: Any) -> np.ndarray:
    phase = rewriter.get_phase(model)
    rewriter.set_phase(model, "float")
    result = np.asarray(model(X))
    rewriter.set_phase(model, phase if isinstance(phase, str) else "float")
    return result


@both
def test_a_head_in_a_sequential(flavour: str, tmp_path: Path) -> None:
    """A softmax, and a Dense, on top of logits."""
    keras = KERASES[flavour]
    q = rewriter.rewrite(backbone(flavour, classifier=None), calibration_data=X)
    exported(keras.Sequential([q, keras.layers.Softmax()]), tmp_path / "a.tflite")
    again = rewriter.rewrite(
        keras.Sequential([q, keras.layers.Dense(3), keras.layers.Softmax()]), calibration_data=X
    )
    exported(again, tmp_path / "b.tflite")


@both
def test_teacher_and_student(flavour: str, tmp_path: Path) -> None:
    """Original and rewritten model in one, which trains the second by the first."""
    keras = KERASES[flavour]
    teacher = backbone(flavour)
    teacher.trainable = False
    student = rewriter.rewrite(teacher, calibration_data=X)
    student.trainable = True
    assert student.name != teacher.name
    inputs = keras.Input((8, 8, 3))
    both_of_them = keras.Model(inputs, [teacher(inputs), student(inputs)])
    fit(both_of_them, keras)
    exported(student, tmp_path / "m.tflite")


@both
def test_a_new_trunk_before_it(flavour: str, tmp_path: Path) -> None:
    keras = KERASES[flavour]
    layers = keras.layers
    q = rewriter.rewrite(backbone(flavour), calibration_data=X)
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same", name="before")(inputs))
    again = rewriter.rewrite(keras.Model(inputs, q(layers.ReLU()(x))), calibration_data=X)
    exported(again, tmp_path / "m.tflite")


@both
def test_a_model_that_is_rewritten_already(flavour: str) -> None:
    q = rewriter.rewrite(backbone(flavour), calibration_data=X)
    twin = rewriter.fold(q)
    keras = KERASES[flavour]
    headed = keras.Model(twin.input, keras.layers.Dense(2)(twin.output))
    for model in (q, twin, headed):
        with pytest.raises(UnsupportedModelError, match="quantization-aware already, a twin"):
            rewriter.rewrite(model)


@both
@pytest.mark.parametrize("kind", ["head", "softmax", "norm"])
@pytest.mark.parametrize("quantized_before", [True, False])
def test_a_head_that_was_not_rewritten(
    flavour: str, kind: str, quantized_before: bool, tmp_path: Path
) -> None:
    """The export says what to do; after that it is as any model."""
    keras = KERASES[flavour]
    quantized = rewriter.rewrite(backbone(flavour))
    pooled = quantized.layers[-2].output if quantized_before else quantized.get_layer("mean").output
    added = {
        "head": keras.layers.Dense(3, name="added"),
        "softmax": keras.layers.Dense(3, activation="softmax", name="added"),
        "norm": keras.layers.BatchNormalization(name="added"),
    }[kind]
    model = keras.Model(quantized.inputs, added(pooled))
    rewriter.calibrate(model, X)
    said = "'added' is not quantization-aware" if quantized_before else "'mean' has no quantization"
    with pytest.raises(ExportError, match=rf"{said}.*rewriter\.rewrite"):
        rewriter.export_tflite(model, tmp_path / "model.tflite")
    again = rewriter.rewrite(model)
    rewriter.calibrate(again, X)
    exported(again, tmp_path / "model.tflite")
