"""Batch normalizations under stress: the layer against float64, and in models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import builders
import claims
import oracles
import rewriter
from rewriter import layers
from rewriter.training import schedule
from small_models import VARIABLES, batches, compiled, with_dropout

both = pytest.mark.parametrize("kind", builders.KERASES)


def stressed(kind: str, shape: tuple[int, ...], **values: Any) -> Any:
    layer = getattr(layers, kind).FusedBatchNormalization(name="norm")
    layer.build((None, *shape[1:]))
    builders.set_statistics(layer, **{k: np.resize(v, shape[-1]) for k, v in values.items()})
    return layer


SHAPES = ((1, 1, 1, 4), (1, 3, 3, 4), (8, 1, 1, 4), (1, 4), (6, 4))
VARIANCES = (0.0, 1e-8, 1e-3, 1e6)


@pytest.mark.wide
@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("mode", ["inference", "frozen", "batch"])
def test_layer_under_stress(kind, shape, variance, mode):
    """Batch size 1, one-pixel maps, gamma 0, tiny and huge variances: nothing but numbers."""
    rng = np.random.default_rng(0)
    spread = max(np.sqrt(variance), 1e-4)
    x = (0.5 * spread + spread * rng.normal(size=shape)).astype(np.float32)
    layer = stressed(
        kind, shape, gamma=[0.0, -1.5, 1e-7, 2.0], beta=[0.5, -0.1, 3.0, 0.0],
        moving_mean=[0.25 * spread], moving_variance=[variance],
    )  # fmt: skip
    layer.frozen.assign(int(mode == "frozen"))
    before = [np.asarray(getattr(layer, n)).astype(np.float64) for n in VARIABLES]
    raw = [v if isinstance(v, tf.Variable) else v.value for v in (layer.gamma, layer.beta)]
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        y = layer(tensor, training=mode != "inference")
        loss = tf.reduce_sum(tf.square(y - 1.0))
    wide, axes = x.astype(np.float64), tuple(range(len(shape) - 1))
    mean, var = before[2:]
    if mode == "batch":
        mean, var = wide.mean(axes), wide.var(axes)
    expected = oracles.Norm(before[0], before[1], mean, var, layer.epsilon)(wide)
    # Terms that cancel leave float32's rounding of them.
    factor = np.abs(before[0]) / np.sqrt(var + layer.epsilon)
    terms = factor * (np.abs(wide).max(axes) + np.abs(mean)) + np.abs(before[1])
    assert (np.abs(np.asarray(y) - expected) <= 3e-6 * terms + 1e-12).all()
    for gradient in tape.gradient(loss, [tensor, *raw]):
        assert np.isfinite(np.asarray(gradient)).all()
    for name in claims.STATISTICS:
        value = np.asarray(getattr(layer, name))
        assert np.isfinite(value).all() and (name == "moving_mean" or (value >= 0).all())


@both
def test_model_under_stress(kind, tmp_path):
    """A model with all of it, in phase quantize: trains without a NaN, and the file agrees."""
    keras = builders.keras_of(kind)
    model = with_dropout(keras)
    x = builders.residual_data(48)
    builders.set_statistics(
        model.get_layer("stem_bn"),
        gamma=[0.0, 1e-8, -1.0, 1.0, 0.5, -1e-3],
        moving_variance=[1e-8, 1e6, 1.0, 1e-8, 1e6, 1.0],
        moving_mean=[0.0, 10.0, 0.1, 1e-4, -900.0, 0.0],
    )
    builders.set_statistics(
        model.get_layer("alone"),
        gamma=[1.0, 0.0, -1.0, 1e-6, 2.0, -2.0],
        moving_variance=[1e-8, 1.0, 1e6, 1.0, 1e-8, 1e6],
    )
    for frozen in (False, True):
        qat = compiled(kind, builders.calibrated(model, x), 1e-3)
        rewriter.freeze_batch_norm(qat, frozen)
        losses = [float(np.ravel(qat.train_on_batch(*b))[0]) for b in batches(5)]
        losses += [float(np.ravel(qat.train_on_batch(*b))[0]) for b in batches(3, 1)]
        assert np.isfinite(losses).all()
        for name, value in builders.weights_by_name(qat).items():
            assert np.isfinite(value).all(), name
        path = tmp_path / f"{frozen}.tflite"
        assert not rewriter.export_tflite(qat, path).float_tensors
        found = rewriter.verify(qat, path, x, progress=False).comparison
        assert found.worst.identical >= 0.999 and found.worst.maximum <= 1, found.worst


@both
@pytest.mark.parametrize("pipeline", [False, True], ids=["", "pipeline"])
def test_gamma_crosses_zero_while_training(kind, pipeline, tmp_path):
    """Driven from +0.3 to -0.3 and exactly to 0 on the way; the file agrees at each stop."""
    keras = builders.keras_of(kind)
    model = with_dropout(keras)
    x = builders.residual_data(48)
    ops = {name: rewriter.FixedPoint(8) for name in VARIABLES} if pipeline else None
    qat = builders.calibrated(model, x, rewriter.Recipe(batch_norm_pipeline=ops))
    norms = schedule.batch_norms(qat)
    for norm in norms:
        norm.gamma.assign(np.linspace(0.2, 0.4, 6, dtype=np.float32))
    raw = [n.gamma if isinstance(n.gamma, tf.Variable) else n.gamma.value for n in norms]

    @tf.function
    def step(images: Any) -> Any:
        with tf.GradientTape() as tape:
            y = qat(images, training=True)
            # Pulls every gamma down by the same amount, whatever the scores say.
            pull = tf.add_n([tf.reduce_sum(g) for g in raw])
            loss = 1e-3 * tf.reduce_sum(y * y) + pull
        gradients = tape.gradient(loss, raw)
        for variable, gradient in zip(raw, gradients, strict=True):
            variable.assign_sub(0.025 * gradient)
        return loss, gradients

    signs = set()
    for index, (images, _) in enumerate(batches(30)):
        if index == 12:
            norms[0].gamma.assign(np.zeros(6, np.float32))
            norms[1].gamma.assign(np.array([0, 0, 0, 0.1, 0.1, -0.1], np.float32))
        if index in (0, 12, 29):
            path = tmp_path / f"{index}.tflite"
            rewriter.export_tflite(qat, path)
            found = rewriter.verify(qat, path, x, progress=False).comparison
            assert found.worst.identical >= 0.999 and found.worst.maximum <= 1, found.worst
            emulated = np.asarray(qat(x, training=False))
            assert np.abs(emulated - np.asarray(rewriter.fold(qat)(x))).max() <= 3 / 256
        loss, gradients = step(tf.constant(images))
        assert np.isfinite(float(loss)) and all(np.isfinite(g).all() for g in gradients)
        signs |= set(np.sign(np.asarray(norms[0].gamma)).tolist())
    assert signs >= {-1.0, 1.0}


@both
def test_ranges_that_are_almost_nothing(kind, tmp_path):
    """The converter widens ranges below 1e-6; the twin must know."""
    k = builders.keras_of(kind)
    image = k.Input((6, 6, 3))
    x = k.layers.Conv2D(4, 3, name="tiny")(image)
    x = k.layers.Conv2D(4, 1, name="large")(x)
    model = builders.randomise_all(k.Model(image, k.layers.Add()([x, x])), 3)
    for name, factor in (("tiny", 1e-8), ("large", 1e8)):
        layer = model.get_layer(name)
        layer.set_weights([weight * factor for weight in layer.get_weights()])
    data = np.random.default_rng(0).normal(size=(32, 6, 6, 3)).astype(np.float32)
    qat = builders.calibrated(model, data)
    claims.check_file(qat, rewriter.fold(qat), data, tmp_path)
    found = rewriter.verify(qat, tmp_path / "model.tflite", data, progress=False).comparison
    assert not found.missing and not found.differences
    assert all(tensor.identical == 1 for tensor in found.operator_by_operator)
