"""One operator: written as a file, run by LiteRT, and computed by ``integer.compute``."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import litert_files
from rewriter.litert import integer, writer
from rewriter.program import Operator, Quantization


@dataclasses.dataclass
class Case:
    """An operator and the shapes of its inputs, without the batch; whole numbers below ``most``."""

    operator: Operator
    shapes: list[tuple[int, ...]]
    batch: int | None = None
    most: int = 1000


def write(case: Case) -> bytes:
    """The file with just this operator."""
    grids = case.operator.inputs
    values = [
        tf.zeros([1, *shape], tf.float32 if grid is None else tf.int32)
        for shape, grid in zip(case.shapes, grids, strict=True)
    ]
    result = integer.compute(case.operator, *values).shape[1:]
    program = litert_files.one_operator(case.operator, case.shapes, tuple(result))
    return writer.write(program, batch_size=case.batch)


def run(model: bytes, inputs: list[np.ndarray], resolver: OpResolverType) -> np.ndarray:
    """The raw output of the file."""
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=resolver)
    details = sorted(interpreter.get_input_details(), key=lambda detail: detail["name"])
    for detail, array in zip(details, inputs, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(details, inputs, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def inspect(model: bytes) -> tuple[list[str], Counter, tuple]:
    """The operators, the dtypes of all tensors, and the output's (scale, zero point)."""
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    operators = [detail["op_name"] for detail in interpreter._get_ops_details()]
    types = Counter(np.dtype(detail["dtype"]).name for detail in interpreter.get_tensor_details())
    return operators, types, interpreter.get_output_details()[0]["quantization"]


def random_inputs(case: Case, batch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Full-range int8 or int16 inputs, whole numbers; for float inputs, twice the output's range."""
    arrays = []
    for shape, grid in zip(case.shapes, case.operator.inputs, strict=True):
        if grid is None:
            low, high = case.operator.output.range
            span = high - low
            array = rng.uniform(low - span / 2, high + span / 2, (batch, *shape))
            arrays.append(array.astype(np.float32))
        elif grid.whole:
            dtype = np.int32 if grid.bits == 32 else np.int64
            arrays.append(rng.integers(0, case.most, (batch, *shape)).astype(dtype))
        elif grid.bits == 8:
            # Few values where the first of equal ones is found.
            low, high = (-3, 2) if case.operator.kind.startswith("ARG_") else (-128, 128)
            arrays.append(rng.integers(low, high, (batch, *shape)).astype(np.int8))
        else:
            low = (
                0 if case.operator.kind in ("RSQRT", "SQRT") else -(2**15)
            )  # LiteRT refuses others
            arrays.append(rng.integers(low, 2**15, (batch, *shape)).astype(np.int16))
    return arrays


def computed(case: Case, inputs: list[np.ndarray]) -> np.ndarray:
    """``integer.compute`` inside a ``tf.function`` of unknown batch."""
    specs = [
        tf.TensorSpec([None, *shape], tf.float32 if grid is None else tf.int32)
        for shape, grid in zip(case.shapes, case.operator.inputs, strict=True)
    ]
    function = tf.function(lambda *q: integer.compute(case.operator, *q), input_signature=specs)
    arguments = [
        tf.constant(array, spec.dtype) if spec.dtype == tf.float32 else tf.cast(array, tf.int32)
        for array, spec in zip(inputs, specs, strict=True)
    ]
    return function(*arguments).numpy()


def random_scale(rng: np.random.Generator, low: float = 0.002, high: float = 0.2) -> float:
    """A float32 scale."""
    return float(np.float32(np.exp(rng.uniform(np.log(low), np.log(high)))))


def random_quantization(rng: np.random.Generator, **limits: float) -> Quantization:
    """Any scale and any zero point."""
    return Quantization(random_scale(rng, **limits), int(rng.integers(-128, 128)))


def with_output(quantization: Quantization, ratio: float, zero: int) -> Quantization:
    """Another quantization, coarser by ``ratio``."""
    return Quantization(float(np.float32(quantization.scale * ratio)), zero)


def linear(
    kind: str,
    rng: np.random.Generator,
    kernel_shape: tuple[int, ...],
    channel_axes: tuple[int, ...],
    attributes: dict,
    activation: str = "none",
    bias: bool = True,
) -> Operator:
    """A convolution-like operator whose output scale fits what it computes."""
    kernel = rng.integers(-127, 128, kernel_shape)
    channels = [kernel_shape[axis] for axis in channel_axes]
    scales = np.float32(rng.uniform(1, 2, int(np.prod(channels))) * 2.0**-10)
    source = random_quantization(rng)
    summed = kernel.size / len(scales)
    spread = 74 * 73 * np.sqrt(summed)
    biases = rng.normal(0, spread, len(scales)).astype(np.int32) if bias else None
    step = float(np.float32(3 * spread * source.scale * scales.mean() / 128 * rng.uniform(0.7, 2)))
    zero = int(rng.choice([-128, rng.integers(-120, 100)]))
    return Operator(
        kind,
        (source,),
        Quantization(step, zero),
        attributes,
        activation,
        kernel.astype(np.int8),
        scales,
        biases,
    )
