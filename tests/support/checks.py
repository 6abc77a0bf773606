"""What the tests of layers, operations and topologies do with every model.

``everything(build, ...)`` builds a model, gives its normalizations random statistics, rewrites it,
and checks the plan, the equality in phase ``float`` in inference and after training steps, and the
export. The oracles are the stock model and LiteRT's interpreter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

import rewriter
from rewriter.errors import ExportError

KERASES = {"tf_keras": tf_keras, "keras": keras}
both = pytest.mark.parametrize("flavour", KERASES)

Build = Callable[[Any], Any]


def randomise(
    model: Any, rng: np.random.Generator, inputs: list[np.ndarray], dead: bool = True
) -> None:
    """Weights of a moderate size, and statistics near those of the data, perturbed.

    Gammas are negative, and one is zero if ``dead``. Statistics drawn without regard to the data would
    collapse the signal, so they come from a batch first.
    """
    norms = [layer for layer in model._flatten_layers() if hasattr(layer, "moving_variance")]
    for layer in norms:
        layer.momentum = 0.0
    call(model, inputs, training=True)
    for layer in norms:
        layer.momentum = 0.9
        for name in ("moving_mean", "moving_variance"):
            variable = getattr(layer, name)
            value = np.asarray(variable)
            if name == "moving_mean":
                value = value + 0.3 * np.abs(value).max(initial=0.1) * rng.normal(size=value.shape)
            else:
                value = (value + 1e-2) * np.exp(rng.uniform(-0.7, 0.7, value.shape))
            variable.assign(value.astype(np.float32))
        for name, sample in (("gamma", _gamma), ("beta", _normal)):
            variable = getattr(layer, name, None)
            if variable is not None:
                values = sample(rng, tuple(variable.shape))
                if name == "gamma" and dead and values.size > 2:
                    values.flat[1] = 0.0
                variable.assign(values.astype(np.float32))
    for layer in model._flatten_layers():
        bias = getattr(layer, "bias", None)
        if bias is not None and hasattr(bias, "assign"):
            bias.assign(rng.normal(0, 0.3, tuple(bias.shape)).astype(np.float32))
        alpha = getattr(layer, "alpha", None)
        if alpha is not None and hasattr(alpha, "assign"):
            alpha.assign(rng.uniform(-0.3, 0.6, tuple(alpha.shape)).astype(np.float32))


def _gamma(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 1.5, shape) * rng.choice([-1, 1], shape)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0, 0.5, shape)


def samples(model: Any, rng: np.random.Generator, count: int = 8) -> list[np.ndarray]:
    """One array for each input of the model."""
    arrays = []
    for tensor in model.inputs:
        shape = (count, *[size or 7 for size in tensor.shape[1:]])
        if "int" in str(tensor.dtype):
            arrays.append(rng.integers(0, 9, shape).astype(np.int32))
        else:
            arrays.append(rng.normal(0.2, 1.0, shape).astype(np.float32))
    return arrays


def structured(model: Any, arrays: list[np.ndarray]) -> Any:
    """The arrays in the nesting that the model was built with."""
    by_name = {
        tensor.name.split(":")[0]: array for tensor, array in zip(model.inputs, arrays, strict=True)
    }
    try:
        given = model.input
    except AttributeError:  # a Sequential of Keras 3
        return arrays[0]
    return tf.nest.map_structure(lambda tensor: by_name[tensor.name.split(":")[0]], given)


def call(model: Any, arrays: list[np.ndarray], **kwargs: Any) -> list[np.ndarray]:
    """The model's flattened outputs."""
    tensors = [tf.constant(array) for array in arrays]
    result = model(structured(model, tensors), **kwargs)
    return [np.asarray(t) for t in tf.nest.flatten(result)]


def assert_close(actual: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Equal to a share of the largest magnitude."""
    assert len(actual) == len(expected)
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        scale = max(float(np.abs(b).max(initial=0)), 1e-3)
        worst = float(np.abs(a.astype(np.float64) - b).max(initial=0)) / scale
        assert worst <= tolerance, f"output {index}: {worst:.2e} of the largest magnitude"


def train(model: Any, batches: list[list[np.ndarray]], rate: float = 0.02) -> list[float]:
    """Plain gradient descent on a loss that both models have; the losses.

    None where all outputs are whole numbers.
    """
    losses: list[float] = []
    if not batches or not any(y.dtype.kind == "f" for y in call(model, batches[0])):
        return losses
    for arrays in batches:
        with tf.GradientTape() as tape:
            tensors = [tf.constant(array) for array in arrays]
            outputs = tf.nest.flatten(model(structured(model, tensors), training=True))
            loss = tf.add_n(
                [tf.reduce_mean(tf.math.squared_difference(tf.cast(y, tf.float32), 0.5))
                 for y in outputs if y.dtype.is_floating]
            )  # fmt: skip
            if model.losses:
                loss += tf.add_n([tf.cast(value, tf.float32) for value in model.losses])
        variables = list(model.trainable_variables)
        targets = [v if isinstance(v, tf.Variable) else v.value for v in variables]
        for variable, gradient in zip(variables, tape.gradient(loss, targets), strict=True):
            if gradient is not None:
                gradient = tf.convert_to_tensor(gradient)
                norm = tf.maximum(tf.norm(gradient), 1.0)
                variable.assign(variable - rate * gradient / norm)
        losses.append(float(loss))
    return losses


def assert_plan(model: Any, expected: dict[str, str]) -> Any:
    """Each normalization's action: ``"standalone"``, ``"refused"``, or its host's name."""
    plan = rewriter.plan(model)
    found = {
        entry.name: entry.host if entry.action == "fused" else entry.action
        for entry in plan.entries
    }
    assert found == expected
    assert all(entry.reason for entry in plan.entries)
    return plan


def assert_float_equal(
    model: Any, rewritten: Any, rng: np.random.Generator, tolerance: float = 2e-5, steps: int = 3
) -> None:
    """The same outputs in inference, the same losses in training, and the same afterwards."""
    inputs = samples(model, rng)
    assert_close(call(rewritten, inputs, training=False), call(model, inputs, training=False),
                 tolerance)  # fmt: skip
    batches = [samples(model, rng) for _ in range(steps)]
    losses = train(model, batches)
    np.testing.assert_allclose(train(rewritten, batches), losses, rtol=1e-3, atol=1e-5)
    assert_close(call(rewritten, inputs, training=False), call(model, inputs, training=False),
                 50 * tolerance)  # fmt: skip


def assert_no_batch_norm(rewritten: Any) -> None:
    stock = (tf_keras.layers.BatchNormalization, keras.layers.BatchNormalization)
    assert not [layer for layer in rewritten._flatten_layers() if isinstance(layer, stock)]


def export(
    rewritten: Any,
    rng: np.random.Generator,
    path: Any,
    *,
    allow_float: bool = False,
    share: float = 0.999,
    folded: bool = True,
) -> Any:
    """Calibrate, export, and verify against the twin, operator by operator; the report."""
    data = samples(rewritten, rng, 16)
    given = structured(rewritten, data)
    rewriter.calibrate(rewritten, given, progress=False)
    report = rewriter.export_tflite(rewritten, path / "m.tflite", allow_float=allow_float)
    if not allow_float:
        assert not report.float_tensors
    found = rewriter.verify(rewritten, path / "m.tflite", given, progress=False).comparison
    assert not found.differences and not found.skipped
    for tensor in found.operator_by_operator:
        assert tensor.identical >= share, tensor
        assert tensor.within_one == 1.0, tensor
    on_device = run_file(path / "m.tflite", tf.nest.flatten(given))
    assert_same_model(rewritten, on_device, data)
    if folded:
        for a, b in zip(call(rewriter.fold(rewritten), data), on_device, strict=True):
            assert np.mean(np.isclose(a, b, rtol=1e-5, atol=1e-5)) >= 0.98
    return report


def run_file(path: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What LiteRT computes from real inputs, one sample at a time, as real outputs."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    results = []
    for i in range(len(arrays[0])):
        for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
            scale, zero = detail["quantization"]
            value = array[i : i + 1]
            if scale:
                value = np.clip(np.rint(value / np.float32(scale)) + zero, -128, 127)
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        row = []
        for detail in interpreter.get_output_details():
            scale, zero = detail["quantization"]
            value = interpreter.get_tensor(detail["index"]).astype(np.float32)
            row.append((value - zero) * scale if scale else value)
        results.append(row)
    return [np.concatenate(parts) for parts in zip(*results, strict=True)]


# Of the outputs of small models in the tests, by the width of the kernels: to what was trained, and
# to the float model. (Measured over hosts, operations and topologies: 30 and 25 at the least.)
SNR_DB = {8: (28.0, 23.0)}


def decibels(expected: np.ndarray, found: np.ndarray) -> float:
    """The signal over the difference."""
    a, b = (np.asarray(value, np.float64) for value in (expected, found))
    noise, signal = np.sum((a - b) ** 2), np.sum(a**2)
    return float("inf") if noise == 0 else float(10 * np.log10(max(signal, 1e-30) / noise))


def assert_same_model(
    rewritten: Any, on_device: list[np.ndarray], data: list[np.ndarray], bits: int = 8
) -> None:
    """The device's outputs are near those of phase ``quantize`` and of phase ``float``."""
    emulated = call(rewritten, data, training=False)
    rewriter.set_phase(rewritten, "float")
    floating = call(rewritten, data, training=False)
    rewriter.set_phase(rewritten, "quantize")
    trained, original = SNR_DB[bits]
    for a, b, c in zip(on_device, emulated, floating, strict=True):
        assert a.shape == c.shape
        if b.dtype.kind == "i":  # the places of values: what is rounded may be the same at two
            assert np.mean(a == b) >= 0.99 and np.mean(a == c) >= 0.8
            continue
        assert decibels(b, a) >= trained, decibels(b, a)
        assert decibels(c, a) >= original, decibels(c, a)


def everything(
    flavour: str,
    build: Build,
    expected: dict[str, str],
    path: Any,
    *,
    seed: int = 0,
    tolerance: float = 2e-5,
    refusal: str | None = None,
    allow_float: bool = False,
    share: float = 0.999,
    dead: bool = True,
    steps: int = 3,
    folded: bool = True,
) -> Any:
    """Plan, float phase, training, export: all that every case has to pass.

    Args:
      flavour: ``"tf_keras"`` or ``"keras"``.
      build: makes the model with that Keras.
      expected: what the plan says of each normalization; see :func:`assert_plan`.
      path: a folder.
      refusal: the export is refused with a message that matches.
      dead: have a gamma of zero. The gradient of a maximum over a channel that is the same
        everywhere is a matter of rounding.
      steps: of training.
      folded: build the twin as a Keras model too.
      allow_float: export with ``allow_float=True``, after a refusal without it.
    """
    library = KERASES[flavour]
    library.backend.clear_session()
    library.utils.set_random_seed(seed + 1)
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(library)
        randomise(model, rng, samples(model, rng, 16), dead)
        plan = assert_plan(model, expected)
        rewritten = rewriter.rewrite(model)
        assert_no_batch_norm(rewritten)
        assert_float_equal(model, rewritten, rng, tolerance, steps)
    if refusal is not None:
        rewriter.calibrate(rewritten, structured(rewritten, samples(rewritten, rng, 16)),
                           progress=False)  # fmt: skip
        with pytest.raises(ExportError, match=refusal):
            rewriter.export_tflite(rewritten, path / "m.tflite")
        assert not (path / "m.tflite").exists()
        if not allow_float:
            return plan
    export(rewritten, rng, path, allow_float=allow_float, share=share, folded=folded)
    return plan
