"""Layers that are read as the calls inside them: whole models in them, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewriter
from checks import KERASES, both, everything, samples, train


def _small(k: Any) -> Any:
    layers = k.layers
    return k.Sequential(
        [
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            layers.GlobalAveragePooling2D(name="pool"),
        ],
        name="small",
    )


def _film(k: Any) -> Any:
    inputs = k.Input((3, 6, 5, 2), name="film")
    x = k.layers.TimeDistributed(_small(k), name="steps")(inputs)
    x = k.layers.TimeDistributed(k.layers.BatchNormalization(name="own"), name="norm")(x)
    return k.Model(inputs, k.layers.Dense(3, name="end")(x))


@pytest.mark.slow
@both
def test_a_model_for_every_step(flavour: str, tmp_path: Path) -> None:
    """Its normalization is fused; float phase, file and twin as everywhere.

    Trained, it has the original's losses. Moving statistics are not compared: tf_keras updates those
    of a model in ``TimeDistributed`` twice, in a second run of it to find a mask, and Keras 3 takes
    the steps of a batch in another order.
    """
    plan = everything(
        flavour,
        _film,
        {"steps/small/bn": "steps/small/conv", "norm/own": "standalone"},
        tmp_path,
        dead=False,
        steps=0,
    )
    assert not plan.float_layers
    model = _film(KERASES[flavour])
    qat, rng = rewriter.rewrite(model), np.random.default_rng(1)
    rewriter.set_phase(qat, "float")
    batches = [samples(model, rng) for _ in range(3)]
    np.testing.assert_allclose(train(qat, batches), train(model, batches), rtol=1e-5)


def _weights(k: Any, given: Any) -> Any:
    x = k.Input((6, 4))
    if given.get("attention_mask") is True:
        seen = k.layers.Lambda(lambda x: x > 0.0, output_shape=(6, 4), name="seen")(x)
        given = {"attention_mask": seen[:, :, :1]}
    y = k.layers.MultiHeadAttention(2, 3, name="attention")(x, x, **given)
    return k.Model(x, y)


@both
@pytest.mark.parametrize("kind", ["of samples", "that is data"])
def test_masked_attention_stays_in_float(kind: str, flavour: str) -> None:
    """Unless the mask is known, and the same for all samples."""
    k = KERASES[flavour]
    k.backend.clear_session()
    given: dict[str, Any] = {"attention_mask": np.tri(6, dtype=bool)[None].repeat(4, 0)}
    if kind == "that is data":
        given = {"attention_mask": True}
    model = _weights(k, given)
    assert "attention" in rewriter.plan(model).float_layers
    x = np.random.default_rng(0).normal(size=(4, 6, 4)).astype(np.float32)
    qat = rewriter.rewrite(model)
    np.testing.assert_allclose(np.asarray(qat(x)), np.asarray(model(x)), rtol=1e-5, atol=1e-6)
    assert not np.allclose(np.asarray(qat(x)), np.asarray(_weights(k, {})(x)))


@both
@pytest.mark.parametrize("keyword", [True, False])
def test_a_softmax_with_a_mask_stays_in_float(keyword: bool, flavour: str) -> None:
    k = KERASES[flavour]
    k.backend.clear_session()
    x, mask = k.Input((6, 4)), k.Input((6, 4), dtype="bool")
    softmax = k.layers.Softmax(name="softmax")
    y = softmax(x, mask=mask) if keyword else softmax(x, mask)
    assert rewriter.plan(k.Model([x, mask], y)).float_layers == ("softmax",)


@both
def test_attention_is_saved_and_loaded(flavour: str, tmp_path: Path) -> None:
    k = KERASES[flavour]
    k.backend.clear_session()
    x = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    qat = rewriter.calibrate(rewriter.rewrite(_weights(k, {})), x, progress=False)
    qat.save(tmp_path / "m.keras")
    loaded = rewriter.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(qat(x)))
