"""Pruned kernels stay pruned, and clustered ones clustered, through training to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import rewriter
from checks import KERASES, both
from rewriter.errors import RecipeError
from rewriter.keras_compat import flavour_of
from rewriter.layers import preserved

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(96, 8, 8, 3)).astype(np.float32), RNG.integers(0, 4, 96)


def model(flavour: str) -> Any:
    """Kernels of every shape of gradient: dense, depthwise, two in one layer, shared by calls."""
    keras = KERASES[flavour]
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="conv")(inputs)))
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, name="depth")(x)))
    x = layers.SeparableConv2D(8, 3, activation="relu", name="separable")(x)
    x = layers.GlobalAveragePooling2D()(x)
    shared = layers.Dense(8, activation="relu", name="shared")
    return keras.Model(inputs, layers.Dense(4, name="head")(shared(shared(x))))


def kernels(model: Any) -> dict[str, np.ndarray]:
    """Of the linear layers, by the layer's name."""
    found = {}
    for layer in model.layers:
        inner = getattr(layer, "host", layer)
        for variable in inner.weights:
            if "kernel" in getattr(variable, "path", variable.name).rsplit("/", 1)[-1]:
                found[f"{layer.name}/{len(found)}"] = np.array(variable)
    assert len(found) == 6
    return found


def pruned(model: Any) -> Any:
    """Half of the weights, the smallest, are 0."""
    for layer in model.layers:
        values = layer.get_weights()
        if values and "batch_normalization" not in layer.name:
            layer.set_weights(
                [w * (abs(w) > np.median(abs(w))) if w.ndim > 1 else w for w in values]
            )
    return model


def clustered(model: Any, count: int = 6) -> Any:
    """Few distinct values for a kernel."""
    for layer in model.layers:
        values = layer.get_weights()
        if values and "batch_normalization" not in layer.name:
            ends = [np.linspace(w.min(), w.max(), count, dtype=np.float32) for w in values]
            layer.set_weights(
                [
                    e[abs(w[..., None] - e).argmin(-1)] if w.ndim > 1 else w
                    for w, e in zip(values, ends, strict=True)
                ]
            )
    return model


def fitted(qat: Any, optimizer: Any) -> Any:
    keras = flavour_of(qat).keras
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qat.compile(optimizer, loss)
    qat.fit(X, Y, batch_size=16, epochs=3, verbose=0)
    return qat


def optimizers(flavour: str) -> list[Any]:
    made = KERASES[flavour].optimizers
    return [
        made.Adam(1e-2),
        made.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-3, clipnorm=1.0),
        made.RMSprop(1e-3, momentum=0.9, centered=True),
        made.AdamW(1e-2, weight_decay=1e-2, use_ema=True),
    ]


@both
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("phase", ["float", "quantize"])
def test_zeros_stay(flavour: str, number: int, phase: str) -> None:
    original = pruned(model(flavour))
    qat = rewriter.rewrite(original, rewriter.Recipe(preserve="sparsity"))
    rewriter.calibrate(qat, X, progress=False)
    rewriter.set_phase(qat, phase)
    fitted(qat, optimizers(flavour)[number])
    for name, before in kernels(original).items():
        after = kernels(qat)[name]
        assert 0.4 < (before == 0).mean() < 0.6
        np.testing.assert_array_equal(after == 0, before == 0, err_msg=name)
        assert abs(after - before)[before != 0].max() > 1e-3, name  # the others were trained


@both
@pytest.mark.parametrize("kinds", ["clusters", ["sparsity", "clusters"]])
def test_clusters_stay(flavour: str, kinds: Any) -> None:
    original = clustered(model(flavour), 7)  # an odd number: one of them is 0 in most kernels
    if "sparsity" in kinds:
        pruned(original)
    qat = rewriter.rewrite(original, rewriter.Recipe(preserve=kinds))
    rewriter.calibrate(qat, X, progress=False)
    fitted(qat, optimizers(flavour)[0])
    for name, before in kernels(original).items():
        after, moved = kernels(qat)[name], 0.0
        for value in np.unique(before):
            members = after[before == value]
            # As stored they may part by rounding, where an optimizer sums in another order.
            np.testing.assert_allclose(members, members[0], rtol=1e-5, err_msg=name)
            moved = max(moved, abs(members[0] - value))
            if "sparsity" in kinds and value == 0:
                assert (members == 0).all()
        assert moved > 1e-3, name
    for layer in qat.layers:  # what is computed and written has exactly as many
        for index, _ in enumerate(getattr(layer, "preserve", ())):
            count = len(np.unique(preserved.values(layer, index)))
            assert 2 <= count <= 7


@both
def test_without_it_neither_stays(flavour: str) -> None:
    original = clustered(pruned(model(flavour)))
    pruned(original)
    qat = rewriter.rewrite(original)
    rewriter.calibrate(qat, X, progress=False)
    fitted(qat, optimizers(flavour)[0])
    for name, before in kernels(original).items():
        after = kernels(qat)[name]
        assert (after == 0).mean() < 0.1 < (before == 0).mean()
        assert len(np.unique(after)) > 10 > len(np.unique(before))


@both
@pytest.mark.parametrize("ranges", ["observed", "lsq"])
def test_from_a_saved_model_to_the_file(flavour: str, ranges: str, tmp_path: Path) -> None:
    """Training goes on after loading; the integers of pruned weights are zero points, 0."""
    original = pruned(clustered(model(flavour)))
    recipe = rewriter.Recipe(preserve=["clusters", "sparsity"], ranges=ranges)
    qat = rewriter.rewrite(original, rewriter.Recipe.from_json(recipe.to_json()))
    np.testing.assert_array_equal(np.array(qat(X)), np.array(original(X)))
    rewriter.calibrate(qat, X, progress=False)
    qat.save(tmp_path / "qat.keras")
    qat = fitted(
        rewriter.load_model(tmp_path / "qat.keras"),
        KERASES[flavour].optimizers.Adam(1e-5 if ranges == "lsq" else 1e-3),
    )
    for name, before in kernels(original).items():
        np.testing.assert_array_equal((kernels(qat)[name] == 0)[before == 0], True)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    found = rewriter.verify(qat, tmp_path / "m.tflite", X[:16], progress=False).comparison
    assert not found.differences and not found.skipped
    assert all(tensor.identical >= 0.999 for tensor in found.operator_by_operator)
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    interpreter.allocate_tensors()
    stored = [
        interpreter.get_tensor(detail["index"])
        for detail in interpreter.get_tensor_details()
        if tuple(detail["shape"]) == (8, 3, 3, 3) and detail["dtype"] == np.int8
    ]
    (integers,) = (np.moveaxis(array, 0, -1) for array in stored)
    zeros = kernels(original)["conv/0"] == 0
    assert (integers[zeros] == 0).all()
    for channel in range(8):
        assert len(np.unique(integers[..., channel])) <= 6


@both
def test_nothing_to_preserve(flavour: str) -> None:
    with pytest.raises(RecipeError, match=r"preserve: no kernel .* has clusters or sparsity"):
        rewriter.rewrite(model(flavour), rewriter.Recipe(preserve=["sparsity", "clusters"]))


@pytest.mark.parametrize("value", ["zeros", 3, ["sparsity", 1], {"sparsity"}])
def test_a_bad_field(value: Any) -> None:
    with pytest.raises(RecipeError, match="preserve must be one or several"):
        rewriter.Recipe(preserve=value)


def test_the_gradient_is_the_mean_within_a_cluster() -> None:
    values = tf.constant([[1.0, 2.0], [1.0, 0.0], [2.0, 1.0]])
    first = preserved.firsts(values.numpy())
    assert first.tolist() == [0, 1, 0, 3, 1, 0]
    with tf.GradientTape() as tape:
        tape.watch(values)
        kept = preserved.kept(values, preserved.KINDS, tf.constant(first))
        loss = tf.reduce_sum(kept * tf.constant([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    np.testing.assert_array_equal(kept, values)
    mean, other = (1 + 3 + 6) / 3, (2 + 5) / 2
    expected = [[mean, other], [mean, 0.0], [other, mean]]
    np.testing.assert_allclose(tape.gradient(loss, values), expected, rtol=1e-6)
    # Should an optimizer round them apart, all are what the first of their cluster is.
    apart = tf.constant([[1.5, 2.0], [1.0, 0.0], [2.25, 1.25]])
    together = preserved.kept(apart, ("clusters",), tf.constant(first))
    np.testing.assert_array_equal(together, [[1.5, 2.0], [1.5, 0.0], [2.0, 1.5]])
