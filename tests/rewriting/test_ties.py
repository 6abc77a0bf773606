"""Variables that layers have in common: one in the rewritten model too, and in its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
import tied_models
from builders import KERASES, fresh, keras_of
from rewriter import keras_compat, layers
from rewriter.errors import LoadError, RecipeError
from rewriter.keras_compat import sharing

both = pytest.mark.parametrize("kind", KERASES)
cases = pytest.mark.parametrize("case", tied_models.CASES)


def _fit(kind: str, model: Any, steps: int = 5) -> np.ndarray:
    """The loss of each step."""
    x, y = tied_models.data(model)
    optimizer = keras_of(kind).optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(x, y, batch_size=len(x), epochs=steps, shuffle=False, verbose=0)
    return np.array(history.history["loss"])


def _owners(model: Any) -> dict[int, list[str]]:
    """The layers of a model by each variable that several of them hold."""
    flavour = keras_compat.flavour_of(model)
    found: dict[int, list[str]] = {}
    for layer in model.layers:
        for key in {id(flavour.tf_variable(v)) for v in layer.variables}:
            found.setdefault(key, []).append(layer.name)
    return {key: names for key, names in found.items() if len(names) > 1}


@both
@cases
def test_trains_as_the_original(kind: str, case: str) -> None:
    keras = fresh(keras_of(kind))
    model = tied_models.CASES[case](keras)
    assert not [note for note in rewriter.plan(model).notes if "in common" in note]
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    # A layer that is now the operators of its call holds what those read, and no more.
    assert 1 <= len(_owners(qat)) <= len(_owners(model))
    x, _ = tied_models.data(model)
    np.testing.assert_allclose(qat.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    np.testing.assert_allclose(_fit(kind, qat), _fit(kind, model), rtol=1e-5)
    np.testing.assert_allclose(qat.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)


@both
@pytest.mark.parametrize("case", ["head", "plain_head", "autoencoder", "half", "turned"])
def test_integers_that_are_tied(kind: str, case: str) -> None:
    plan = rewriter.plan(tied_models.CASES[case](fresh(keras_of(kind))))
    assert plan.float_layers == ()


@both
def test_a_layer_that_calls_another_and_reads_its_kernel(kind: str, tmp_path: Path) -> None:
    model = tied_models.there_and_back(fresh(keras_of(kind)))
    assert rewriter.plan(model).float_layers == ()
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    assert list(map(len, _owners(qat).values())) == [2]
    np.testing.assert_allclose(_fit(kind, qat), _fit(kind, model), rtol=1e-5)
    qat.save(tmp_path / "model.keras")
    loaded = rewriter.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(_fit(kind, loaded), _fit(kind, qat), rtol=1e-6)


@both
def test_a_constraint_is_not_lost(kind: str) -> None:
    """The operator that reads the table would not have it, where no other layer does."""
    keras = fresh(keras_of(kind))
    table = keras.layers.Embedding(
        9, 4, embeddings_constraint=keras.constraints.NonNeg(), name="words"
    )
    inputs = keras.Input((4,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, tied_models.classes(keras).TiedHead(table, name="head")(x))
    plan = rewriter.plan(model)
    assert plan.float_layers == ("head",)
    assert "'words', which has a regularizer or a constraint" in plan.float_reasons["head"]


@both
@cases
def test_the_file_is_the_twin(kind: str, case: str, tmp_path: Path) -> None:
    model = tied_models.CASES[case](fresh(keras_of(kind)))
    x, _ = tied_models.data(model)
    qat = rewriter.rewrite(model, calibration_data=x)
    before = _fit(kind, qat, 3)
    assert before[-1] < before[0] and _owners(qat)
    path = tmp_path / "model.tflite"
    rewriter.export_tflite(qat, path, allow_float=True)
    result = rewriter.verify(qat, path, x, progress=False)
    assert result.comparison.worst.identical == 1.0, str(result)
    assert result.snr is not None and result.snr > 20, str(result)


def _formats(kind: str) -> list[str]:
    return [".keras", ".h5", ""] if kind == "tf_keras" else [".keras", ".h5"]


@pytest.mark.parametrize(
    ("kind", "suffix"), [(kind, suffix) for kind in KERASES for suffix in _formats(kind)]
)
@pytest.mark.parametrize("case", ["head", "autoencoder"])
def test_still_after_loading(kind: str, suffix: str, case: str, tmp_path: Path) -> None:
    model = tied_models.CASES[case](fresh(keras_of(kind)))
    x, _ = tied_models.data(model)
    qat = rewriter.rewrite(model, calibration_data=x)
    _fit(kind, qat, 2)
    path = tmp_path / f"model{suffix}"
    qat.save(path)
    loaded = rewriter.load_model(path)
    assert list(_owners(loaded).values()) == list(_owners(qat).values())
    assert len(loaded.weights) == len(qat.weights)
    expected = qat.predict(x, verbose=0)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    twice = tmp_path / f"again{suffix}"
    loaded.save(twice)
    again = rewriter.load_model(twice)
    np.testing.assert_array_equal(again.predict(x, verbose=0), expected)
    np.testing.assert_allclose(_fit(kind, again), _fit(kind, loaded), rtol=1e-6)
    assert _owners(again)


@both
@pytest.mark.parametrize("keep", ["list", "dict"])
def test_in_containers(kind: str, keep: str, tmp_path: Path) -> None:
    model = tied_models.given(fresh(keras_of(kind)), keep)
    assert set(rewriter.plan(model).float_layers) == {"one", "two"}
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    np.testing.assert_allclose(_fit(kind, qat), _fit(kind, model), rtol=1e-5)
    qat.save_weights(tmp_path / "weights.weights.h5")


@both
def test_copies_and_other_sizes(kind: str) -> None:
    keras = fresh(keras_of(kind))
    qat = rewriter.rewrite(tied_models.head(keras))
    copy = keras.models.clone_model(qat)
    assert list(_owners(copy).values()) == list(_owners(qat).values())
    words = keras.Input((None,), dtype="int32")
    table = keras.layers.Embedding(9, 4, name="words")
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(table(words)))
    open_model = keras.Model(words, tied_models.classes(keras).TiedHead(table, name="head")(x))
    assert _owners(rewriter.rewrite(open_model, input_shape=(6,)))


@both
@pytest.mark.parametrize("case", ["head", "autoencoder", "given"])
def test_what_was_rewritten_gets_a_new_end(kind: str, case: str) -> None:
    keras = fresh(keras_of(kind))
    first = rewriter.rewrite(tied_models.CASES[case](keras))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(5, name="more")(first.output))
    model = keras.Model(first.input, x)
    qat = rewriter.rewrite(model)
    assert sorted(_owners(qat).values()) == sorted(_owners(first).values())
    assert len(qat.trainable_variables) == len(model.trainable_variables)
    np.testing.assert_allclose(_fit(kind, qat), _fit(kind, model), rtol=1e-5)


@both
def test_the_width_of_one_is_not_tried_on_the_other(kind: str) -> None:
    """On a grid of few bits the kernel would be another one for the other layer, too."""
    model = tied_models.given(fresh(keras_of(kind)))
    x, _ = tied_models.data(model)
    assert not rewriter.sensitivity(model, x, progress=False).layers


@both
def test_a_regularizer_counts_once(kind: str) -> None:
    keras = fresh(keras_of(kind))
    model = tied_models.head(keras, embeddings_regularizer=keras.regularizers.L2(0.1))
    qat = rewriter.rewrite(model)

    def loss(each: Any) -> float:
        each(tied_models.data(each)[0])
        return float(sum(float(np.asarray(value)) for value in each.losses))

    assert loss(model) > 0
    assert loss(qat) == pytest.approx(loss(model), rel=1e-6)
    np.testing.assert_allclose(_fit(kind, qat), _fit(kind, model), rtol=1e-5)


@both
def test_what_a_file_may_say(kind: str) -> None:
    """A place is one of a variable's, whatever else has that name."""
    keras = fresh(keras_of(kind))
    flavour = keras_compat.flavour_of(keras.layers.Dense(2))
    inputs = keras.Input((4,))
    one, two = keras.layers.Dense(4, name="one"), keras.layers.Dense(3, name="two")
    tensors = [two(one(inputs)), one.output]
    assert all(flavour.is_variable(value) for value in sharing.places(flavour, one).values())
    for ties, said in (
        ([[[0, "__class__"], [1, "__class__"]]], "none at '__class__'"),
        ([[[0, "build"], [1, "build"]]], "'two' has none"),
        ([[[7, "bias"], [1, "bias"]]], "7 has none"),
        ([[[0, "bias"], [1, "bias"]]], "'one' cannot have the variable 'bias'"),
    ):
        with pytest.raises(LoadError, match=said):
            layers.of(flavour).Tie(ties)(tensors)


@both
def test_a_pruned_kernel_that_another_reads(kind: str) -> None:
    model = tied_models.autoencoder(fresh(keras_of(kind)))
    kernel = model.get_layer("encoder").kernel
    kernel.assign(np.where(np.abs(np.asarray(kernel)) < 0.3, 0, np.asarray(kernel)))
    with pytest.raises(RecipeError, match="'encoder' is held by 'decoder' too"):
        rewriter.rewrite(model, rewriter.Recipe(preserve="sparsity"))


@both
def test_what_cannot_be_is_said(kind: str) -> None:
    """A bias of another shape is one of a layer of its own, once its layer is taken apart."""
    keras = fresh(keras_of(kind))
    shift = getattr(keras, "Variable", None)
    value = np.ones((1, 6), np.float32)
    shared = tied_models._variable(keras, (1, 6)) if shift is None else shift(value)

    class Shifted(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.shift = shared
            self.norm = keras.layers.BatchNormalization()
            self.kernel = self.add_weight(name="kernel", shape=(6, 6), initializer="ones")

        def build(self, shape):
            self.norm.build(shape)
            self.built = True

        def call(self, x):
            kernel, shift = map(tf.convert_to_tensor, (self.kernel, self.shift))
            return self.norm(tf.matmul(x, kernel) + shift)

        def compute_output_shape(self, shape):
            return shape

    inputs = keras.Input((6,))
    model = keras.Model(inputs, Shifted(name="two")(Shifted(name="one")(inputs)))
    (note,) = [each for each in rewriter.plan(model).notes if "in common" in each]
    assert "'one' and 'two'" in note and "another shape" in note
    with pytest.warns(UserWarning, match="in common"):
        rewriter.rewrite(model)


@both
def test_what_cannot_be_inside_one_layer_is_said(kind: str) -> None:
    """The kernel of a layer that it calls, in another order of axes."""
    keras = fresh(keras_of(kind))

    class Turned(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = keras.layers.Dense(4, name="inside")

        def build(self, shape):
            self.dense.build(shape)
            self.built = True

        def call(self, x):
            kernel = tf.convert_to_tensor(self.dense.kernel)
            return tf.einsum("btw,dw->bdt", self.dense(x), kernel)

        def compute_output_shape(self, shape):
            return (shape[0], shape[2], shape[1])

    inputs = keras.Input((5, 6))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(6)(inputs))
    model = keras.Model(inputs, Turned(name="turned")(x))
    qat_has = len(rewriter.rewrite(model).trainable_variables)
    assert qat_has == len(model.trainable_variables) + 1
    (note,) = [each for each in rewriter.plan(model).notes if "in common" in each]
    assert "'inside' and 'turned'" in note and "another shape" in note


@both
@pytest.mark.parametrize("how", ["operation", "lambda", "closure", "default"])
def test_a_function_that_reads_a_variable(kind: str, how: str) -> None:
    """It reads the original's, whatever is done to the copy: that is said."""
    keras = fresh(keras_of(kind))
    keras_layers = keras.layers
    words = keras.Input((6,), dtype="int32")
    table = keras_layers.Embedding(9, 4, name="words")
    x = keras_layers.BatchNormalization()(keras_layers.Dense(4)(table(words)))

    def scores(x):
        return tf.matmul(x, table.embeddings, transpose_b=True)

    def given(x, table=table.embeddings):
        return tf.matmul(x, table, transpose_b=True)

    class Head(keras_layers.Layer):
        def __init__(self, function, **kwargs):
            super().__init__(**kwargs)
            self.function = function

        def call(self, x):
            return self.function(x)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 9)

    if how == "operation":
        einsum = tf.einsum if kind == "tf_keras" else keras.ops.einsum
        outputs = einsum("abc,dc->abd", x, table.embeddings)
    elif how == "lambda":
        outputs = keras_layers.Lambda(scores, output_shape=(6, 9), name="head")(x)
    else:
        outputs = Head(scores if how == "closure" else given, name="head")(x)
    model = keras.Model(words, outputs)
    (note,) = [each for each in rewriter.plan(model).notes if "not the rewritten model's" in each]
    assert "embeddings" in note and "attribute" in note
    assert how == "operation" or "'head'" in note
    with pytest.warns(UserWarning, match="not the rewritten model's"):
        rewriter.rewrite(model)
