"""Functions without weights, and layers of users', read as what they compute.

The values are held by ``tests/rewriting/test_ops.py``; here is what is recognised, and what is not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import graph_files
import rewriter
from checks import KERASES, both
from rewriter.errors import ExportError
from rewriter.lowering.lower import lower
from rewriter.reading import from_keras, opening, scalar_functions
from rewriter.reading.operations import Operation
from rewriter.reading.roles import Opaque, Within
from rewriter.reading.traces import trace

RECOGNISED: dict[str, tuple[Callable[[Any], Any], tuple[str, dict[str, Any]]]] = {
    "relu": (lambda x: tf.maximum(x, 0), ("relu", {})),
    "relu6": (lambda x: tf.minimum(tf.nn.relu(x), 6), ("relu6", {})),
    "identity": (lambda x: x + 0, ("linear", {})),
    "swish": (lambda x: x / (1 + tf.exp(-x)), ("silu", {})),
    "swish_tanh": (lambda x: x * 0.5 * (1 + tf.tanh(x / 2)), ("silu", {})),
    "hard_swish": (lambda x: tf.nn.relu6(x + 3) * 0.16667 * x, ("hard_silu", {})),
    "hard_sigmoid": (lambda x: tf.clip_by_value(x / 6 + 0.5, 0, 1), ("hard_sigmoid", {})),
    "fifth": (lambda x: tf.nn.relu(tf.minimum(x * 0.2 + 0.5, 1)), ("hard_sigmoid_fifth", {})),
    "gelu": (lambda x: x * 0.5 * tf.math.erfc(-x / np.sqrt(2)), ("gelu", {})),
    "gelu_tanh": (
        lambda x: x * tf.sigmoid(1.5957691216 * (x + 0.044715 * x**3)),
        ("gelu_tanh", {}),
    ),
    "leaky": (lambda x: tf.maximum(x, 0.25 * x), ("leaky_relu", {"alpha": 0.25})),
    "elu": (lambda x: tf.nn.relu(x) - tf.nn.relu(1 - tf.exp(x)), ("elu", {})),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_functions_are_told_by_their_values(name: str) -> None:
    function, expected = RECOGNISED[name]
    found = trace(function, [(None,)])
    assert found is not None
    assert scalar_functions.recognise(found) == expected


@tf.custom_gradient
def _straight_through(x: Any) -> Any:
    return tf.nn.relu(x), lambda upstream: upstream


NOT_THESE: dict[str, Callable[[Any], Any]] = {
    "other_constant": lambda x: x * tf.nn.relu6(x + 3) * 0.168,
    "rough_gelu": lambda x: 0.5 * x * (1 + tf.tanh(0.8 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
    "ends_far_away": lambda x: tf.minimum(tf.nn.relu(x), 300),
    "infinite_far_away": lambda x: tf.where(x > 100.0, tf.math.log(0.0 * x), x),
    "twice": lambda x: 2 * x,
    "softplus": tf.nn.softplus,
    "of_its_neighbours": lambda x: tf.nn.relu(x) + 0 * tf.reduce_mean(x),
    "softmax": tf.nn.softmax,
    "noise": lambda x: tf.nn.relu(x) + 0 * tf.random.normal(tf.shape(x)),
    "own_gradient": _straight_through,
    "of_channels": lambda x: tf.nn.relu(x) * np.ones(1921 + 122, np.float32),
}


@pytest.mark.parametrize("name", NOT_THESE)
def test_other_functions_are_not_taken_for_them(name: str) -> None:
    found = trace(NOT_THESE[name], [(None,)])
    assert found is None or scalar_functions.recognise(found) is None


def model(flavour: str, function: Callable[[Any, Any], Any]) -> Any:
    keras = KERASES[flavour]
    inputs = keras.Input((6, 4), name="x")
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4)(inputs))
    return keras.Model(inputs, function(keras, x))


def roles(made: Any) -> list[str]:
    """What is behind the normalization: the names of operations, or of roles."""
    calls = from_keras.read(made).calls[3:]
    return [
        call.role.name if isinstance(call.role, Operation) else type(call.role).__name__
        for call in calls
    ]


def _six(keras: Any, x: Any) -> Any:
    return keras.layers.ReLU(6.0)(x)


@both
def test_a_chain_is_one_operation(flavour: str) -> None:
    def swish(keras: Any, x: Any) -> Any:
        return keras.layers.Multiply()([x, _six(keras, x + 3.0) * (1.0 / 6.0)])

    made = model(flavour, swish)
    assert roles(made) == ["Within"] * 3 + ["hard_silu"]
    data = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    program = lower(rewriter.rewrite(made, calibration_data=data))
    kinds = [step.operator.kind for step in program.steps]
    assert kinds == ["FULLY_CONNECTED", "HARD_SWISH"]


@both
def test_the_normalization_before_a_chain_is_not_part_of_it(flavour: str) -> None:
    """A scale before and one after: the function is found between them."""

    def scaled(keras: Any, x: Any) -> Any:
        x = x * 0.37
        return x * _six(keras, x + 3.0) / 6 * 2.5

    assert roles(model(flavour, scaled)) == ["affine", *["Within"] * 3, "hard_silu", "affine"]


@both
def test_what_is_read_elsewhere_is_not_within(flavour: str) -> None:
    def gate(keras: Any, x: Any) -> Any:
        inner = _six(keras, x + 3.0)
        return keras.layers.Concatenate()([x * inner / 6, inner])

    found = roles(model(flavour, gate))
    assert "Within" not in found and "hard_silu" not in found
    output = from_keras.read(model(flavour, lambda k, x: [x * (y := _six(k, x + 3.0)) / 6, y]))
    assert not any(isinstance(call.role, Within) for call in output.calls)


@both
def test_a_function_of_known_operations_is_opened(flavour: str) -> None:
    def function(keras: Any) -> Any:
        if flavour == "keras":
            return lambda t: keras.ops.concatenate([keras.ops.tanh(t), t * 2], -1)
        return lambda t: tf.concat([tf.tanh(t), t * 2], -1)

    made = model(flavour, lambda keras, x: keras.layers.Lambda(function(keras))(x))
    assert roles(made) == ["tanh", "affine", "concatenate"]


@both
def test_what_asks_whether_it_trains_stays_as_it_is(flavour: str) -> None:
    keras = KERASES[flavour]

    class Halved(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any, training: bool = False) -> Any:
            return x * x * x if training else (x + 1) * (x - 1)

    made = model(flavour, lambda keras, x: Halved()(x))
    assert roles(made) == ["Opaque"]


@both
def test_losses_of_a_layer_are_left_to_it(flavour: str) -> None:
    """Reading a model traces its layers: nothing of that stays in them."""
    keras = KERASES[flavour]

    class Costly(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            self.add_loss(0.25 * (x[0, 0, 0] * 0 + 1))
            return x * 2 + 0.5

    layer = Costly()
    made = model(flavour, lambda keras, x: layer(x))
    made(np.zeros((1, 6, 4), np.float32))
    before = list(made.losses)
    assert roles(made) == ["affine"]
    assert len(before) == 1 and made.losses[0] is before[0] and len(made.losses) == 1


@both
def test_a_layer_is_read_with_the_variables_it_has_now(flavour: str) -> None:
    keras = KERASES[flavour]

    class Scale(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shape: Any) -> None:
            self.gamma = self.add_weight(name="gamma", shape=(4,), initializer="ones")

        def call(self, x: Any) -> Any:
            return x * self.gamma - 1

    layer = Scale()
    made = model(flavour, lambda keras, x: layer(x))
    layer.gamma.assign([1.0, 2.0, -3.0, 0.5])
    role = from_keras.read(made).calls[-1].role
    assert isinstance(role, Operation) and role.name == "affine"
    np.testing.assert_array_equal(role.options["scale"], [1.0, 2.0, -3.0, 0.5])
    np.testing.assert_array_equal(role.options["offset"], -1)


@both
@pytest.mark.parametrize("weights", [[1.0, 0.3, 2.5], [0.5, -1.0, 1.0], [0.0, 2.0, 0.0]])
def test_a_weighted_sum_of_tensors(flavour: str, weights: list[float], tmp_path: Path) -> None:
    """As feature pyramids have it, by numbers that a layer learns; one of 0 leaves its tensor out."""
    keras = KERASES[flavour]

    class Weighted(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def build(self, shapes: Any) -> None:
            self.gain = self.add_weight(name="gain", shape=(len(shapes),), initializer="ones")

        def call(self, tensors: Any) -> Any:
            gain = tf.nn.relu(tf.convert_to_tensor(self.gain)) / 2.0
            return tf.reduce_sum(tf.stack([t * gain[i] for i, t in enumerate(tensors)]), axis=0)

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    layer = Weighted(name="fused")
    parts = [layers.Conv2D(4, size, padding="same")(inputs) for size in (1, 3, 5)]
    made = keras.Model(inputs, layers.Conv2D(2, 1)(layer(parts)))
    layer.gain.assign(weights)
    call = next(c for c in from_keras.read(made).calls if c.layer is layer)
    kept = [max(w, 0) / 2 for w in weights]
    assert isinstance(call.role, Operation) and call.role.name == "add"
    np.testing.assert_allclose(call.role.options["scales"], kept, rtol=1e-6)
    assert len(call.role.operands) == len(kept)
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype(np.float32)
    qat = rewriter.rewrite(made, calibration_data=x)
    assert not rewriter.export_tflite(qat, tmp_path / "m.tflite").float_tensors
    found = rewriter.verify(qat, tmp_path / "m.tflite", x[:4], progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    assert found.snr is not None and found.snr > 25


@pytest.mark.parametrize(
    ("name", "role"), {"sum": "add", "mean": "average", "max": "maximum"}.items()
)
def test_a_reduction_over_a_list_of_tensors(name: str, role: str, tmp_path: Path) -> None:
    """TensorFlow stacks them first, before the batch."""
    keras = KERASES["tf_keras"]
    keras.utils.set_random_seed(0)
    layers, reduce = keras.layers, getattr(tf, f"reduce_{name}")
    inputs = keras.Input((6, 6, 3))
    parts = [layers.Conv2D(4, size, padding="same")(inputs) for size in (1, 3, 5)]
    made = keras.Model(inputs, layers.Conv2D(2, 1)(reduce(parts, axis=0)))
    roles = [c.role for c in from_keras.read(made).calls]
    assert [r.name for r in roles if isinstance(r, Operation)] == [role]
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype(np.float32)
    qat = rewriter.rewrite(made, calibration_data=x)
    assert not rewriter.export_tflite(qat, tmp_path / "m.tflite").float_tensors
    found = rewriter.verify(qat, tmp_path / "m.tflite", x[:4], progress=False)
    assert all(t.identical == 1.0 for t in found.comparison.operator_by_operator)
    for odd in (reduce(parts, axis=-1), reduce(parts, axis=0, keepdims=True)):
        read = from_keras.read(keras.Model(inputs, odd))
        assert isinstance(read.calls[-1].role, Opaque)


@both
@pytest.mark.parametrize(
    "function",
    {
        "product": lambda a, b: a * b,
        "shift": lambda a, b: a + 2 * b + 1,
        "places": lambda a, b: a + b * tf.reshape(tf.range(4.0), (1, 1, 4)),
        "order": lambda a, b: (
            a + tf.reduce_sum(tf.stack([b, b]), axis=0) * tf.reduce_sum(b, axis=1)[:, None]
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_weighted_sum(flavour: str, function: Any) -> None:
    keras = KERASES[flavour]

    class Odd(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, tensors: Any) -> Any:
            return function[1](*tensors)

    inputs = [keras.Input((3, 4)), keras.Input((3, 4))]
    layer = Odd(name="odd")
    made = keras.Model(inputs, layer(inputs))
    roles = [c.role for c in from_keras.read(made).calls if c.layer is layer]
    assert not any(isinstance(r, Operation) and "scales" in r.options for r in roles)


@both
@pytest.mark.parametrize("how", ["Lambda", "layer", "lifted"])
def test_what_lifting_cannot_read_is_opened_once(
    flavour: str, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Inside it is the operator itself, in a layer of ours, and no layer that could be opened."""
    keras = KERASES[flavour]

    def odd(x: Any) -> Any:
        return tf.where(tf.pad(x, [[0, 0], [1, 1], [0, 0]])[:, 1:-1] > 0, tf.sin(x), x)

    class Odd(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            return odd(x)

    def inside(keras: Any, x: Any) -> Any:
        if how == "Lambda":
            return keras.layers.Lambda(odd, output_shape=lambda shape: shape)(x)
        return Odd()(x)

    made = model(flavour, inside)
    if how == "lifted":
        graph_files.write(made, "module", tmp_path / "saved")
        made = rewriter.load_model(tmp_path / "saved", flavour=flavour)
    opened, original = [], opening.opened

    def counted(flavour: Any, layer: Any, *args: Any) -> Any:
        opened.append(layer.name)
        return original(flavour, layer, *args)

    monkeypatch.setattr(opening, "opened", counted)
    assert any(isinstance(call.role, Opaque) for call in from_keras.read(made).calls)
    assert len(opened) == (0 if how == "lifted" else 1)


@both
def test_attributes_that_are_no_text(flavour: str) -> None:
    """Gradients of functions inside leave bytes with their nodes."""
    keras = KERASES[flavour]

    class Standardized(keras.layers.Layer):  # type: ignore[misc,name-defined]
        def call(self, x: Any) -> Any:
            y = tf.nn.relu(x)
            y.op._set_attr("_note", tf.compat.v1.AttrValue(s=b"\x80\x82"))
            return y

    traced = trace(Standardized().call, [(None, 4)])
    assert traced is not None and traced.nodes[0].attributes["_note"] == "\ufffd\ufffd"


@both
def test_a_failing_function_stays_opaque(flavour: str) -> None:
    """One that cannot be called on other tensors than those that it was written for."""
    keras = KERASES[flavour]

    class Once(keras.layers.Layer):  # type: ignore[misc,name-defined]
        calls = 0

        def call(self, x: Any) -> Any:
            if self.calls:
                raise RuntimeError("called again")
            self.calls += 1
            return x * 2

        def compute_output_shape(self, shape: Any) -> Any:
            return shape

    layer = Once()
    made = model(flavour, lambda keras, x: layer(x))
    layer.calls = 1
    assert isinstance(from_keras.read(made).calls[-1].role, Opaque)


@pytest.mark.parametrize("how", ["Lambda", "layer"])
@both
def test_a_layer_that_makes_a_mask_stays(flavour: str, how: str) -> None:
    """What is inside would be read in its place, but the mask is made by the layer."""
    keras = KERASES[flavour]
    layers = keras.layers

    class Doubled(layers.Layer):  # type: ignore[name-defined]
        def call(self, inputs: Any) -> Any:
            return 2 * inputs[:, 1:]

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            if flavour == "tf_keras":
                return tf.reduce_any(tf.not_equal(inputs[:, 1:], 0), -1)
            return keras.ops.any(keras.ops.not_equal(inputs[:, 1:], 0), -1)

        def compute_output_shape(self, input_shape: Any) -> Any:
            return (input_shape[0], 4, 3)

    made: Any = Doubled()
    if how == "Lambda":
        own = Doubled().compute_mask
        made = layers.Lambda(
            lambda x: 2 * x[:, 1:], output_shape=(4, 3), mask=lambda x, mask=None: own(x)
        )
    inputs = keras.Input((5, 3))
    x = layers.LSTM(2)(made(inputs))
    model = keras.Model(inputs, layers.BatchNormalization()(x))
    qat = rewriter.rewrite(model)
    assert any(type(layer) is type(made) for layer in qat.layers)
    data = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    data[:, 3:] = 0  # masked steps
    np.testing.assert_array_equal(qat.predict(data, verbose=0), model.predict(data, verbose=0))


@both
def test_one_image_without_a_batch_is_not_resized_as_one_of_many(
    flavour: str, tmp_path: Path
) -> None:
    """Of three axes TensorFlow 1's resizing takes the first for the height: here the batch.

    So no file computes it; whether it is opened, the model that trains does.
    """
    made = model(
        flavour,
        lambda keras, x: keras.layers.Lambda(
            lambda t: tf.compat.v1.image.resize_images(t, (6, 5)), output_shape=(5, 4)
        )(x),
    )
    data = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    qat = rewriter.rewrite(made)
    np.testing.assert_array_equal(qat(data), made(data))
    rewriter.calibrate(qat, data, progress=False)
    with pytest.raises(ExportError, match=r"has no integer form|has an unknown size in its shape"):
        rewriter.export_tflite(qat, tmp_path / "model.tflite")
