"""Recurrent layers, read as the calls of all their steps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import rewriter
from checks import KERASES, both, call, decibels, everything
from rewriter.errors import ExportError
from rewriter.keras_compat import flavour_of
from rewriter.reading import recurrent

STEPS, FEATURES, UNITS = 5, 4, 6

Layer = Callable[[Any], Any]


def _cell(name: str, **options: Any) -> Layer:
    return lambda k: k.layers.RNN(getattr(k.layers, name)(UNITS), name="rnn", **options)


def _one(kind: str, **options: Any) -> Layer:
    return lambda k: getattr(k.layers, kind)(UNITS, name="rnn", **options)


def _both_ways(kind: str, merge: str | None = "concat", **options: Any) -> Layer:
    def build(k: Any) -> Any:
        layer = getattr(k.layers, kind)(UNITS, name="way", **options)
        return k.layers.Bidirectional(layer, merge_mode=merge, name="rnn")

    return build


def _several(*cells: str, **options: Any) -> Layer:
    def build(k: Any) -> Any:
        made = [getattr(k.layers, cell)(UNITS - i) for i, cell in enumerate(cells)]
        return k.layers.RNN(made, name="rnn", **options)

    return build


CASES: dict[str, Layer] = {
    "lstm": _one("LSTM"),
    "lstm_all": _one("LSTM", return_sequences=True, unit_forget_bias=False, unroll=True),
    "lstm_states": _one("LSTM", return_sequences=True, return_state=True, go_backwards=True),
    "lstm_hard": _one("LSTM", activation="relu", recurrent_activation="hard_sigmoid"),
    "lstm_cell": _cell("LSTMCell", return_sequences=True),
    "gru": _one("GRU"),
    "gru_plain": _one("GRU", use_bias=False, return_sequences=True, return_state=True),
    "gru_before": _one("GRU", reset_after=False, return_sequences=True),
    "gru_backwards": _one("GRU", go_backwards=True, implementation=1),
    "gru_cell": _cell("GRUCell"),
    "simple": _one("SimpleRNN", return_sequences=True),
    "simple_cell": _cell("SimpleRNNCell", go_backwards=True, return_sequences=True),
    "both_lstm": _both_ways("LSTM"),
    "both_lstm_all": _both_ways("LSTM", return_sequences=True),
    "both_gru_sum": _both_ways("GRU", "sum", return_sequences=True, return_state=True),
    "both_gru_average": _both_ways("GRU", "ave"),
    "both_simple_product": _both_ways("SimpleRNN", "mul", return_sequences=True),
    "both_simple_apart": _both_ways("SimpleRNN", None, return_sequences=True),
    "several": _several("LSTMCell", "GRUCell", return_sequences=True),
    "several_states": _several("LSTMCell", "SimpleRNNCell", return_state=True, go_backwards=True),
    "several_both": lambda k: k.layers.Bidirectional(
        k.layers.RNN([k.layers.GRUCell(UNITS), k.layers.GRUCell(3)], name="way"), name="rnn"
    ),
}


def _wide(k: Any) -> Any:
    return k.layers.Bidirectional(k.layers.GRU(64, name="way"), name="rnn")


def _model(k: Any, layer: Layer, steps: int = STEPS) -> Any:
    inputs = k.Input((steps, FEATURES), name="window")
    given = layer(k)(inputs)
    outputs = tf.nest.flatten(given)
    return k.Model(inputs, [k.layers.Dense(3, name=f"end{i}")(x) for i, x in enumerate(outputs)])


def _fresh(flavour: str) -> Any:
    k = KERASES[flavour]
    k.backend.clear_session()
    k.utils.set_random_seed(1)
    return k


def _filled(model: Any) -> Any:
    """The model, with biases that are not zeros."""
    rng = np.random.default_rng(2)
    model.set_weights([w + 0.2 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


def _windows(count: int = 16, steps: int = STEPS) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, steps, FEATURES)).astype(np.float32)


@both
@pytest.mark.parametrize("case", CASES)
def test_float_phase_training_twin_and_file(case: str, flavour: str, tmp_path: Path) -> None:
    def build(k: Any) -> Any:
        return _filled(_model(k, CASES[case]))

    # What bounds the gradients while training does so for each variable, and a GRU's bias is two.
    steps = 0 if "gru" in case else 3
    assert everything(flavour, build, {}, tmp_path, steps=steps).float_layers == ()


def _given(k: Any, kind: str, **options: Any) -> Any:
    """A model whose recurrent layer starts with what another layer gives it."""
    inputs = k.Input((STEPS, FEATURES), name="window")
    both = kind.startswith("both_")
    one = getattr(k.layers, kind.removeprefix("both_"))
    layer = k.layers.Bidirectional(one(UNITS), name="rnn") if both else one(UNITS, name="rnn")
    count = (2 if "LSTM" in kind else 1) * (2 if both else 1)
    flat = k.layers.Flatten()(inputs)
    states = [k.layers.Dense(UNITS, "tanh", name=f"state{i}")(flat) for i in range(count)]
    if options.get("by_keyword"):  # in the order of the names, states come before the sequence
        name = "inputs" if k.__name__.startswith("tf_keras") else "sequences"
        return k.Model(inputs, layer(**{name: inputs}, initial_state=states))
    return k.Model(inputs, layer(inputs, initial_state=states))


def _encoder_decoder(k: Any) -> Any:
    """States handed on from one LSTM to another (Sutskever et al. 2014, arXiv:1409.3215)."""
    inputs = k.Input((STEPS, FEATURES), name="window")
    _, *states = k.layers.LSTM(UNITS, return_state=True, name="encoder")(inputs)
    x = k.layers.Dense(FEATURES, name="words")(inputs)
    x = k.layers.LSTM(UNITS, return_sequences=True, name="decoder")(x, initial_state=states)
    return k.Model(inputs, k.layers.Dense(3, name="end")(x))


STARTS: dict[str, Callable[[Any], Any]] = {
    **{kind: (lambda k, kind=kind: _given(k, kind)) for kind in ("LSTM", "GRU", "SimpleRNN")},
    "both_LSTM": lambda k: _given(k, "both_LSTM"),
    "both_GRU": lambda k: _given(k, "both_GRU"),
    "keyword_LSTM": lambda k: _given(k, "LSTM", by_keyword=True),
    "keyword_both_LSTM": lambda k: _given(k, "both_LSTM", by_keyword=True),
    "encoder_decoder": _encoder_decoder,
}


@both
@pytest.mark.parametrize("case", STARTS)
def test_states_that_are_given(case: str, flavour: str, tmp_path: Path) -> None:
    steps = 0 if "GRU" in case else 3

    def build(k: Any) -> Any:
        return _filled(STARTS[case](k))

    assert everything(flavour, build, {}, tmp_path, steps=steps).float_layers == ()
    x, model = _windows(), build(_fresh(flavour))
    qat = rewriter.rewrite(model, calibration_data=x)
    assert decibels(call(rewriter.fold(qat), [x])[0], call(model, [x])[0]) > 20


def _cells(layer: Any) -> dict[str, Any]:
    """The cells of a recurrent layer, by the names of the layers that they are the cells of."""
    both = hasattr(layer, "forward_layer")
    each = [layer.forward_layer, layer.backward_layer] if both else [layer]
    return {one.name: one.cell for one in each}


def _gradients(model: Any, x: np.ndarray, weights: list[Any]) -> list[np.ndarray]:
    """Of a loss of the outputs of a model, by these weights."""
    own = [flavour_of(model).tf_variable(weight) for weight in weights]
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(model(x, training=True))
        loss = tf.add_n([tf.reduce_sum(tf.sin(3 * tf.cast(y, tf.float32))) for y in outputs])
    return [np.asarray(tf.convert_to_tensor(g)) for g in tape.gradient(loss, own)]


@both
@pytest.mark.parametrize("case", ["lstm", "gru", "gru_before", "simple", "both_lstm_all"])
def test_all_steps_have_the_weights_of_the_layer(case: str, flavour: str) -> None:
    """As many as the layer, with the same values, and the gradients of the stock layer."""
    model = _filled(_model(_fresh(flavour), CASES[case]))
    qat = rewriter.rewrite(model)
    rewriter.set_phase(qat, "float")
    sizes = [sum(int(np.prod(w.shape)) for w in m.trainable_weights) for m in (model, qat)]
    assert sizes[0] == sizes[1]
    x = _windows()
    for name, cell in _cells(model.get_layer("rnn")).items():
        weights = [cell.kernel, cell.recurrent_kernel, cell.bias]
        kernel, recurrent_kernel, bias = _gradients(model, x, weights)
        inputs, states = (qat.get_layer(f"{name}_{part}").host for part in ("input", "recurrent"))
        found = _gradients(qat, x, [inputs.kernel, inputs.bias, states.kernel])
        split = 2 * UNITS if case == "gru_before" else None
        first, *more = [bias] if bias.ndim == 1 else bias
        close(found[0], kernel)
        close(found[1], first)
        close(found[2], recurrent_kernel[:, :split])
        close(states.kernel, np.asarray(cell.recurrent_kernel)[:, :split])
        if split:
            rest = qat.get_layer(f"{name}_recurrent_candidate").host
            close(_gradients(qat, x, [rest.kernel])[0], recurrent_kernel[:, split:])
        if more:
            close(_gradients(qat, x, [states.bias])[0], more[0])


def close(found: Any, expected: Any) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@both
def test_a_layer_has_one_range_for_all_its_steps(flavour: str, tmp_path: Path) -> None:
    ranges, sizes = [], []
    for steps in (4, 8):
        model = _model(_fresh(flavour), _wide, steps)
        qat = rewriter.rewrite(model, calibration_data=_windows(steps=steps))
        ranges.append({layer.name for layer in qat.layers if type(layer).__name__ == "Quantize"})
        rewriter.export_tflite(qat, tmp_path / f"{steps}.tflite")
        sizes.append((tmp_path / f"{steps}.tflite").stat().st_size)
    assert ranges[0] == ranges[1]
    assert {"forward_way_update_gate_quantize", "backward_way_reset_sum_quantize"} <= ranges[0]
    assert sizes[1] - sizes[0] < 4 * 2 * 64 * 64  # the kernels have three times that


@both
@pytest.mark.parametrize("case", ["both_lstm_all", "both_gru_sum"])
def test_long_ones_run_on_microcontrollers(case: str, flavour: str, tmp_path: Path) -> None:
    """Whose LiteRT concatenates ten tensors at once."""
    x = _windows(steps=23)
    model = _model(_fresh(flavour), CASES[case], 23)
    qat = rewriter.rewrite(model, "int8-per-tensor", calibration_data=x)
    rewriter.export_tflite(qat, tmp_path / "m.tflite")
    assert not rewriter.check(tmp_path / "m.tflite", "tflite-micro").findings


@both
def test_a_layer_called_twice_has_its_weights_once(flavour: str) -> None:
    k = _fresh(flavour)
    inputs = [k.Input((STEPS, FEATURES)) for _ in range(2)]
    layer = k.layers.GRU(UNITS, name="rnn")
    model = k.Model(inputs, k.layers.Subtract()([layer(x) for x in inputs]))
    qat = rewriter.rewrite(model)
    assert len(qat.trainable_weights) == 4  # two kernels, two biases
    x = [_windows(), _windows()[::-1]]
    np.testing.assert_allclose(np.asarray(qat(x)), np.asarray(model(x)), atol=1e-6)


@both
def test_saved_and_loaded(flavour: str, tmp_path: Path) -> None:
    x = _windows()
    qat = rewriter.rewrite(_model(_fresh(flavour), CASES["both_lstm"]), calibration_data=x)
    qat.save(tmp_path / "m.keras")
    loaded = rewriter.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(qat(x)))
    for name, model in (("a", qat), ("b", loaded)):
        rewriter.export_tflite(model, tmp_path / f"{name}.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


@both
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_dropout_of_the_input_acts_in_training(kind: str, flavour: str) -> None:
    """As the stock layer's: tf_keras's LSTM and GRU drop each step by itself, the others all."""
    k = _fresh(flavour)
    inputs = k.Input((8, 400))
    model = k.Model(inputs, getattr(k.layers, kind)(3, dropout=0.5, name="rnn")(inputs))
    qat = rewriter.rewrite(model)
    x = np.ones((2, 8, 400), np.float32)
    np.testing.assert_allclose(np.asarray(qat(x)), np.asarray(model(x)), atol=1e-6)
    dropped = np.asarray(qat.get_layer("rnn_dropout")(x, training=True))
    assert set(np.unique(dropped)) == {0.0, 2.0} and 0.4 < np.mean(dropped == 0) < 0.6
    whole = bool((dropped == dropped[:, :1]).all())
    assert whole == (flavour == "keras" or kind == "SimpleRNN")
    found = [np.asarray(qat(x, training=True)) for _ in range(2)]
    assert not np.allclose(*found)


@both
def test_frozen_layers_stay_frozen(flavour: str) -> None:
    model = _model(_fresh(flavour), CASES["both_lstm"])
    model.get_layer("rnn").trainable = False
    qat = rewriter.rewrite(model)
    assert [w.shape for w in qat.trainable_weights] == [w.shape for w in model.trainable_weights]


@both
def test_regularizers_count_once(flavour: str) -> None:
    def build(k: Any) -> Any:
        l2 = k.regularizers.L2(0.1)
        return k.layers.LSTM(
            UNITS, name="rnn", kernel_regularizer=l2, recurrent_regularizer=l2, bias_regularizer=l2
        )

    model = _filled(_model(_fresh(flavour), build))
    qat = rewriter.rewrite(model)
    losses = [float(sum(np.asarray(loss) for loss in m.losses)) for m in (model, qat)]
    assert losses[0] > 0.1
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def _users_cell(k: Any) -> Any:
    class Cell(k.layers.Layer):  # type: ignore[name-defined]
        state_size = output_size = FEATURES

        def call(self, inputs: Any, states: Any) -> Any:
            return inputs + states[0], [inputs + states[0]]

    return k.layers.RNN(Cell(), name="rnn")


def _stateful(k: Any) -> Any:
    return k.Sequential([k.Input(batch_shape=(2, STEPS, FEATURES)) if k.__name__ == "keras"
                         else k.Input((STEPS, FEATURES), batch_size=2),
                         k.layers.LSTM(UNITS, stateful=True, name="rnn")])  # fmt: skip


def _initial(k: Any) -> Any:
    x, zeros = k.Input((STEPS, FEATURES)), np.full((2, UNITS), 0.3, np.float32)
    return k.Model(x, k.layers.GRU(UNITS, name="rnn")(x, initial_state=[tf.constant(zeros)]))


def _open(k: Any) -> Any:
    x = k.Input((None, FEATURES))
    return k.Model(x, k.layers.GRU(UNITS, name="rnn")(x))


def _long(k: Any) -> Any:
    return _model(k, CASES["gru"], recurrent.MOST_STEPS + 1)


def _of(kind: str, **options: Any) -> Callable[[Any], Any]:
    return lambda k: _model(k, _one(kind, **options))


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cell": (lambda k: _model(k, _users_cell), "its cell is Cell.* Use those"),
    "stateful": (_stateful, "it is stateful.*Build the layer without it"),
    "initial_state": (_initial, "initial_state is a constant.* let its states start at zero"),
    "open": (_open, "its number of steps is not known. Fix it"),
    "long": (_long, f"{recurrent.MOST_STEPS + 1} steps.* Shorten"),
    "dropout": (
        _of("SimpleRNN", recurrent_dropout=0.1),
        "recurrent_dropout=0.1.* Put a layer SpatialDropout1D",
    ),
    "dropouts": (
        lambda k: _model(
            k,
            lambda k: k.layers.RNN(k.layers.GRUCell(3, dropout=0.1, implementation=1), name="rnn"),
        ),
        " dropout=0.1",
    ),
    "recurrent_dropout": (_of("LSTM", recurrent_dropout=0.2), "recurrent_dropout=0.2"),
    "activation": (
        _of("LSTM", activation="log_softmax"),
        "activation 'log_softmax' has no integer",
    ),
    "recurrent_activation": (
        _of("GRU", recurrent_activation="log_softmax"),
        "recurrent_activation 'log_softmax' has no integer",
    ),
    "bias": (_of("GRU", bias_regularizer="l2"), "bias_regularizer.*without it"),
    "halves": (
        _of("GRU", reset_after=False, recurrent_constraint="unit_norm"),
        "recurrent_constraint.*without it",
    ),
    "activity": (_of("GRU", activity_regularizer="l2"), "activity_regularizer; add"),
    "precision": (_of("GRU", dtype="float64"), "float64.* float32"),
}


@both
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_form_says_why(case: str, flavour: str, tmp_path: Path) -> None:
    build, reason = REFUSED[case]
    model = build(_fresh(flavour))
    plan = rewriter.plan(model)
    assert plan.float_layers[:1] == ("rnn",)
    assert re.search(reason, plan.float_reasons["rnn"])
    assert re.search(f"rnn: .*{reason}", str(plan))
    if case in ("open", "dropouts"):
        return  # of which a copy in Keras 3 has one for all gates
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qat = rewriter.rewrite(model)
    x = [np.ones([n or 2 for n in t.shape], np.float32) for t in model.inputs]
    x = x if len(x) > 1 else x[0]
    np.testing.assert_allclose(np.asarray(qat(x)), np.asarray(model(x)), rtol=1e-5, atol=1e-6)
    rewriter.calibrate(qat, x, progress=False)
    with pytest.raises(ExportError, match=f"'rnn' has no integer form.* rnn: .*{reason}"):
        rewriter.export_tflite(qat, tmp_path / "m.tflite")
    if case == "precision":
        with pytest.raises(ExportError, match=r"Layer 'rnn': .*or unroll=True"):
            rewriter.export_tflite(qat, tmp_path / "m.tflite", allow_float=True)


def _always(k: Any, flag: bool, both: bool, **options: Any) -> Any:
    x = k.Input((STEPS, FEATURES))
    layer = k.layers.LSTM(UNITS, name="way" if both else "rnn", **options)
    layer = k.layers.Bidirectional(layer, name="rnn") if both else layer
    return k.Model(x, k.layers.Dense(2)(layer(x, training=flag)))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("option", ["dropout", "recurrent_dropout"])
def test_what_is_dropped_in_inference_too_has_no_such_form(option: str, both: bool) -> None:
    """In tf_keras alone: in Keras 3 the flag of the model comes before that of the call."""
    k, options = _fresh("tf_keras"), {option: 0.3}
    plan = rewriter.plan(_always(k, True, both, **options))
    assert "called with training=True, and so is random" in plan.float_reasons["rnn"]
    assert not rewriter.plan(_always(k, True, both)).float_layers
    again = rewriter.plan(_always(k, False, both, **options)).float_reasons.get("rnn", "")
    assert ("recurrent_dropout" in again) == (option == "recurrent_dropout")


@both
def test_open_steps_are_fixed_by_the_size_of_the_input(flavour: str) -> None:
    model = _open(_fresh(flavour))
    assert not rewriter.plan(model, input_shape=(STEPS, FEATURES)).float_layers


@both
def test_a_layer_that_was_left_in_float_stays_so(flavour: str, tmp_path: Path) -> None:
    """Also where its steps are known when the file is written."""
    x = _windows()
    qat = rewriter.calibrate(rewriter.rewrite(_open(_fresh(flavour))), x, progress=False)
    path, options = tmp_path / "m.tflite", {"input_shape": (STEPS, FEATURES)}
    with pytest.raises(ExportError, match=r"rnn: it has an integer form.* Rewrite the original"):
        rewriter.export_tflite(qat, path, **options)
    assert rewriter.export_tflite(qat, path, allow_float=True, **options).float_tensors


@both
def test_behind_layers_with_the_channels_first(flavour: str, tmp_path: Path) -> None:
    k = _fresh(flavour)
    inputs = k.Input((FEATURES, STEPS))
    x = k.layers.AveragePooling1D(1, data_format="channels_first")(inputs)
    x = k.layers.GRU(UNITS, name="rnn")(k.layers.Permute((2, 1))(x))
    model = k.Model(inputs, x)
    data = np.random.default_rng(0).normal(size=(8, FEATURES, STEPS)).astype(np.float32)
    qat = rewriter.rewrite(model)
    np.testing.assert_allclose(np.asarray(qat(data)), np.asarray(model(data)), atol=1e-6)
    assert len([layer for layer in qat.layers if layer.name.startswith("rnn_output")]) == 2


@both
def test_a_mask_is_a_reason(flavour: str) -> None:
    keras = _fresh(flavour)
    inputs = keras.Input((6, 4))
    model = keras.Model(inputs, keras.layers.LSTM(3, name="rnn")(keras.layers.Masking()(inputs)))
    assert "under a mask" in rewriter.plan(model).float_reasons["rnn"]
