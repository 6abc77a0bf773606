"""What must hold of a rewritten model, as functions: seeded faults show that each can fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import builders
import oracles
import rewriter
from rewriter.lowering.lower import lower

STATISTICS = ("moving_mean", "moving_variance")


def assert_close(found: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Within ``tolerance`` of the largest magnitude of ``expected``; neither has a NaN."""
    # In two steps: variables do not take a dtype here.
    found = np.asarray(found).astype(np.float64)
    expected = np.asarray(expected).astype(np.float64)
    assert found.shape == expected.shape, f"{what}: {found.shape} against {expected.shape}"
    assert np.isfinite(expected).all() and np.isfinite(found).all(), f"{what}: not finite"
    size = max(np.abs(expected).max(initial=0.0), 1e-12)
    off = np.abs(found - expected).max(initial=0.0) / size
    assert off <= tolerance, f"{what}: off by {off:.3g} of the largest magnitude {size:.3g}"


def flat(outputs: Any) -> list[np.ndarray]:
    """A model's outputs as arrays, dicts by key."""
    if isinstance(outputs, dict):
        return [array for key in sorted(outputs) for array in flat(outputs[key])]
    if isinstance(outputs, (list, tuple)):
        return [array for value in outputs for array in flat(value)]
    return [np.asarray(outputs)]


def check_no_batch_norm(model: Any) -> None:
    """No stock BatchNormalization is left, at any depth."""
    left = [layer.name for layer in builders.batch_norms(model)]
    assert not left, left


def check_plan(model: Any) -> None:
    """Every BatchNormalization has exactly one entry, and what it says is what happens."""
    plan = rewriter.plan(model)
    names = sorted(layer.name for layer in builders.batch_norms(model))
    assert sorted(entry.name.rpartition("/")[2] for entry in plan.entries) == names
    qat = rewriter.rewrite(model)
    fused = {host.name: host.batch_norm for host in builders.hosts(qat)}
    for entry in plan.entries:
        short = entry.name.rpartition("/")[2]
        if entry.action == "fused":
            assert fused[entry.host].name == short, entry
        else:
            assert entry.action == "standalone" and entry.host is None and entry.reason, entry
            assert type(qat.get_layer(short)).__name__ == "FusedBatchNormalization", entry


def check_float_phase(model: Any, qat: Any, x: Any, tolerance: float = 1e-5) -> None:
    """In phase ``float`` the rewritten model computes what the original does, in inference."""
    assert rewriter.get_phase(qat) == "float"
    pairs = zip(flat(qat(x, training=False)), flat(model(x, training=False)), strict=True)
    for index, (found, expected) in enumerate(pairs):
        assert_close(found, expected, tolerance, f"output {index}")


def train(
    model: Any, keras: Any, batches: list[tuple[Any, Any]], loss: Any, rate: float
) -> list[float]:
    """One step of SGD on every batch; the losses (regularization included)."""
    model.compile(optimizer=keras.optimizers.SGD(rate, momentum=0.9), loss=loss)
    return [float(np.ravel(model.train_on_batch(x, y))[0]) for x, y in batches]


def check_training(
    model: Any,
    qat: Any,
    keras: Any,
    batches: list[tuple[Any, Any]],
    loss: Any,
    rate: float,
    tolerance: float = 1e-4,
    must_move: tuple[str, ...] = ("kernel", *STATISTICS),
) -> None:
    """Steps of SGD in phase ``float`` change both models alike. Trains both."""
    before = builders.weights_by_name(model)
    losses = [train(m, keras, batches, loss, rate) for m in (model, qat)]
    assert_close(losses[1], losses[0], tolerance, "losses")
    expected, found = builders.weights_by_name(model), builders.weights_by_name(qat)
    assert expected.keys() <= found.keys(), expected.keys() - found.keys()
    for name, value in expected.items():
        assert_close(found[name], value, tolerance, name)
    # It proves something only if the training went somewhere.
    for kind in must_move:
        moved = [
            np.abs(expected[name] - old).max() / (np.abs(old).max() + 1e-9)
            for name, old in before.items()
            if name.endswith(kind)
        ]
        assert not moved or max(moved) > 10 * tolerance, f"{kind}: hardly moved ({max(moved):.2g})"


# One host with its normalization, against float64


def oracle_of(model: Any) -> tuple[oracles.Linear, oracles.Norm]:
    """The linear part and the normalization of a :func:`builders.host_model`."""
    return oracles.linear_of(model.get_layer("host")), oracles.norm_of(model.get_layer("norm"))


def check_host_quantized(model: Any, qat: Any, x: np.ndarray) -> None:
    """Phase ``quantize`` in inference: ``norm(linear(x, Q(W)) + b)``."""
    linear, norm = oracle_of(model)
    rewriter.set_phase(qat, "quantize")
    (host,) = builders.hosts(qat)
    if host.between is not None:
        host.between.phase.assign(0)  # only the kernels are looked at here
    found = np.asarray(host(x, training=False), np.float64)
    sums = linear.quantized()(x)
    expected = norm(sums)
    assert np.isfinite(found).all()
    # float32 loses digits where large terms cancel: judge each channel by the size of its terms.
    rest = tuple(range(sums.ndim - 1))
    size = np.abs(norm.factor) * (np.abs(sums).max(axis=rest) + np.abs(norm.mean))
    size = size + np.abs(norm.beta) + 1e-9
    off = (np.abs(found - expected).max(axis=rest) / size).max()
    assert off <= 2e-5, f"off by {off:.3g}"


def range_of(layer: Any) -> oracles.Grid:
    """The grid that a Quantize layer's observed range asks for."""
    low, high = (float(np.asarray(layer.range_variables[k])) for k in ("min_var", "max_var"))
    return oracles.grid_of(low, high)


def quantize_layers(qat: Any) -> list[Any]:
    """The Quantize layers of a rewritten model, in order, those inside hosts included."""
    return [layer for layer in qat._flatten_layers() if type(layer).__name__ == "Quantize"]


def operators(twin: Any) -> list[Any]:
    """The twin's layers that have a kernel."""
    layers = [layer for layer in twin.layers if type(layer).__name__ == "IntegerOperator"]
    return [layer for layer in layers if layer.kernel is not None]


def check_grids(qat: Any) -> None:
    """Scales and zero points of the program are those of the observed ranges."""
    grids = {
        (np.float32(tensor.quantization.scale), tensor.quantization.zero_point)
        for tensor in lower(qat).tensors.values()
    }
    for layer in quantize_layers(qat):
        grid = range_of(layer)
        assert any(
            abs(scale - grid.scale) <= 1e-6 * grid.scale and zero == grid.zero_point
            for scale, zero in grids
        ), f"{layer.name}: {grid} is not among {sorted(grids)}"


def check_fold(model: Any, qat: Any, twin: Any) -> None:
    """The twin's kernel is ``s * Q(W)`` and its bias the nearest point of the int32 grid."""
    linear, norm = oracle_of(model)
    exact = linear.quantized().folded(norm)
    last = len(linear.kernels) - 1
    layer = operators(twin)[-1]
    operator = layer.operator
    step = np.float64(operator.inputs[0].scale) * np.asarray(operator.kernel_scale, np.float64)
    off = np.abs(np.asarray(layer.bias) - exact.bias)
    assert (off <= (0.5 + 1e-4) * step + 1e-6 * np.abs(exact.bias)).all(), (
        f"bias: off by {(off / step).max():.3g} steps"
    )
    found = np.asarray(layer.kernel, np.float64).reshape(exact.kernels[-1].shape)
    axes = tuple(a % found.ndim for a in linear.axes(last))
    rest = tuple(a for a in range(found.ndim) if a not in axes)
    difference = np.abs(found - exact.kernels[-1])
    relative = difference.max(axis=rest) / (np.abs(exact.kernels[-1]).max(axis=rest) + 1e-30)
    # What is left of a channel whose scale had to be raised: below 2 % of an output step.
    reach = 255 * operator.inputs[0].scale
    effect = difference.sum(axis=rest) * reach / operator.output.scale
    assert ((relative <= 1e-6) | (effect <= 0.02)).all(), (
        f"kernel: off by {relative.max():.3g}, {effect.max():.3g} steps of the output"
    )


def integer_oracle(model: Any, qat: Any, x: np.ndarray) -> tuple[np.ndarray, oracles.Grid]:
    """The output of a :func:`builders.host_model` on its int8 grids, and the output's grid."""
    linear, norm = oracle_of(model)
    folded = linear.quantized().folded(norm)
    grids = {layer.name: range_of(layer) for layer in quantize_layers(qat)}
    between = grids.pop("between", None)
    first, last = next(iter(grids.values())), list(grids.values())[-1]
    y = first(x)
    if between is not None:
        options = {k: getattr(folded, k) for k in ("strides", "dilations", "padding")}
        y = between(oracles.depthwise(y, folded.kernels[0], **options))
        y = oracles.convolution(y, folded.kernels[1]) + folded.bias
    else:
        y = folded(y)
    flatten = model.layers[-1].name == "flat"
    return last(y.reshape(len(y), -1) if flatten else np.maximum(y, 0)), last


def check_integers(model: Any, qat: Any, twin: Any, x: np.ndarray) -> None:
    """The twin computes what float64 does on the same grids: within one step, 99 % the same."""
    expected, grid = integer_oracle(model, qat, x)
    found = np.asarray(twin(x, training=False), np.float64)
    assert np.isfinite(found).all()
    steps = np.rint(np.abs(found - expected) / grid.scale)
    assert steps.max() <= 1, f"off by {steps.max():.0f} steps"
    assert (steps == 0).mean() >= 0.99, f"only {(steps == 0).mean():.2%} identical"


def check_steps(qat: Any, expected: list[tuple[str, str]]) -> None:
    """The program has these operators with these fused activations, in this order."""
    steps = lower(qat).steps
    assert [(step.operator.kind, step.operator.activation) for step in steps] == expected


# The file


@dataclasses.dataclass(frozen=True)
class Details:
    """What LiteRT's interpreter says of a file's tensors."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    tensors: list[dict[str, Any]]


def details(content: bytes) -> Details:
    """Asked of the interpreter without a delegate, whose tensors are the file's own."""
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=resolver)
    return Details(
        interpreter.get_input_details(),
        interpreter.get_output_details(),
        interpreter.get_tensor_details(),
    )


def run_file(content: bytes, x: np.ndarray) -> np.ndarray:
    """The real values of a one-input, one-output int8 file's output, without our own runner."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert source["dtype"] == target["dtype"] == np.int8
    scale, zero = source["quantization"]
    stored = np.clip(np.rint(x * (np.float32(1) / np.float32(scale))) + zero, -128, 127)
    results = []
    for sample in stored.astype(np.int8):
        interpreter.set_tensor(source["index"], sample[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(target["index"])[0])
    scale, zero = target["quantization"]
    return np.float32(scale) * (np.stack(results).astype(np.float32) - zero)


def check_file(qat: Any, twin: Any, x: np.ndarray, folder: Path) -> None:
    """The exported file computes what the twin computes."""
    report = rewriter.export_tflite(qat, folder / "model.tflite")
    assert not report.float_tensors
    content = (folder / "model.tflite").read_bytes()
    expected = np.asarray(twin(x, training=False))
    found = run_file(content, x).reshape(expected.shape)
    assert np.isfinite(expected).all()
    ((scale, _),) = [tensor["quantization"] for tensor in details(content).outputs]
    steps = np.rint(np.abs(found - expected) / scale)
    assert steps.max() <= 1, f"off by {steps.max():.0f} steps"
    assert (steps == 0).mean() >= 0.999, f"only {(steps == 0).mean():.3%} identical"


# Training


def check_statistics(model: Any, qat: Any, x: np.ndarray, bessel: bool) -> None:
    """A step in training moves the averages of ``norm`` as Keras does, in float64."""
    linear, norm = oracle_of(model)
    momentum = model.get_layer("norm").momentum
    sums = linear(x)
    rest = tuple(range(sums.ndim - 1))
    n = sums.size // sums.shape[-1]
    variance = sums.var(axis=rest) * (n / (n - 1) if bessel else 1.0)
    assert rewriter.get_phase(qat) == "float"
    qat(x, training=True)
    ours = "FusedBatchNormalization"
    found = next(layer for layer in qat._flatten_layers() if type(layer).__name__ == ours)
    mean = momentum * norm.mean + (1 - momentum) * sums.mean(axis=rest)
    assert_close(found.moving_mean, mean, 1e-5, "moving_mean")
    expected = momentum * norm.variance + (1 - momentum) * variance
    assert_close(found.moving_variance, expected, 1e-5, "moving_variance")


def check_frozen(model: Any, qat: Any, x: np.ndarray) -> None:
    """A frozen normalization keeps its statistics and uses them in training."""
    before = builders.weights_by_name(qat)
    found = flat(qat(x, training=True))
    after = builders.weights_by_name(qat)
    for name, value in before.items():
        assert np.array_equal(after[name], value), name
    for a, b in zip(found, flat(model(x, training=False)), strict=True):
        assert_close(a, b, 1e-5)
